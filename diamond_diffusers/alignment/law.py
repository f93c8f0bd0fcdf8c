"""The law that a run samples from: a model, a reward, and how much the reward counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import islice

import torch
from torch import Tensor

from ..core.cost import Cost
from ..core.flow_map import flow_map_of
from ..core.levels import Level, as_level
from ..core.model import Conditions, Model
from ..core.network import Network
from ..core.pending import Pending
from ..core.tensors import repeat_each, sent
from ..core.values import final_values, scaled_rewards
from ..rewards.base import Reward
from ..rewards.output import RewardOutput
from ..transitions.sampled_model import SampledModel
from .evaluation import Evaluation
from .execution import Execution
from .faults import NotFiniteError, check_decoded, check_evaluated, fault_of_gradient
from .reward_errors import RewardErrors, Scored, awaits
from .reward_of_each_image import RewardOfEachImage
from .reward_scales import scale_of_each_image


@dataclass(frozen=True)
class ScoreModel:
    """Another model of the same latents, which gives the posterior mean in place of the one that is sampled.

    Attributes:
        model: an ordinary one.
        conditions: its own of the same `B` images.
    """

    model: SampledModel
    conditions: Conditions


@dataclass(frozen=True)
class Law:
    """`p(z | prompt) exp(reward_scale * reward(z, prompt))` for each of `B` images, where its constraints hold.

    Args:
        model: which gives `p`.
        conditions: of the `B` images.
        prompts: their `B` prompts, for the reward.
        reward: None where only the plain model is sampled; `RewardOfEachImage` where images have different ones.
        reward_scale: multiplies the reward (inverse temperature): a finite number, or one for each image, `[B]`, of
            which all are 0 or none is. It is kept as the latter, in float64 on the CPU.
        score_model: gives the posterior mean in place of the model.
        execution: how rows are evaluated, and what that costs.
        groups: numbers of consecutive images whose rows are evaluated together whatever the batch; None for each image
            by itself.
        reward_errors: what is done where the reward fails.

    Raises:
        ValueError: `reward_scale` is not finite, 0 for some images alone, or not one for each.

    Example:
        A method asks a law about its particles `x`, `[B P, ...]`, image after image::

            rows = law.rows(x)
            predicted = rows.network.predict(x, noise_to_signal)
            rewards = rows.evaluate(predicted).total
    """

    model: SampledModel
    conditions: Conditions
    prompts: Sequence[str]
    reward: Reward | None = None
    reward_scale: float | Tensor = 1.0
    score_model: ScoreModel | None = None
    execution: Execution = field(default_factory=Execution)
    groups: tuple[int, ...] | None = None
    reward_errors: RewardErrors = field(default_factory=RewardErrors)

    def __post_init__(self) -> None:
        object.__setattr__(self, "reward_scale", scale_of_each_image(self.reward_scale, len(self.prompts)))

    @property
    def num_images(self) -> int:
        return len(self.prompts)

    @property
    def cost(self) -> Cost:
        """What has been evaluated so far."""
        return self.execution.cost

    @cached_property
    def is_tilted(self) -> bool:
        """Whether the reward, or a constraint, counts at all: for all images, or for none."""
        return bool(self.scales().any()) or self.is_constrained

    @cached_property
    def is_constrained(self) -> bool:
        """Whether the law is restricted to the images that hold some constraints."""
        return self.reward is not None and self.reward.is_constrained

    def scales(self, num_rows: int | None = None) -> Tensor:
        """The reward's scale at `num_rows` rows, equally many consecutive ones of each image; by default one of each.

        Returns:
            Float64 on the CPU.
        """
        scale = self.reward_scale
        assert isinstance(scale, Tensor), "it is kept as one for each image"
        return scale if num_rows is None else repeat_each(scale, num_rows // self.num_images)

    def scales_at(self, images: Tensor) -> Tensor:
        """The reward's scale at rows that belong to these images, `[N]`; `[]` where it is the same for all images."""
        return self.scales()[images] if self._shared_scale is None else self._shared_scale

    @cached_property
    def _shared_scale(self) -> Tensor | None:
        scales = self.scales()
        return scales[0] if bool((scales == scales[0]).all()) else None

    def values(self, evaluation: Evaluation) -> Tensor:
        """The values of rows, equally many consecutive ones of each image, `[N]`: `scaled_rewards`."""
        return scaled_rewards(evaluation.total, self.scales(len(evaluation.total)), evaluation.violation)

    def final_values(self, evaluation: Evaluation) -> Tensor:
        """As `values` without constraints; with some, images that violate one lie below all others."""
        return final_values(evaluation.total, self.scales(len(evaluation.total)), evaluation.violation)

    def rows(self, x: Tensor) -> LawAtRows:
        """The law at the rows `x [N, ...]`, equally many consecutive ones of each image."""
        # On the CPU, where reading them waits for nothing.
        count = len(x) // self.num_images
        images = torch.tensor([image for image in range(self.num_images) for _ in range(count)], dtype=torch.long)
        groups = self.groups or (1,) * self.num_images
        return LawAtRows(self, images, tuple(count * size for size in groups))

    def rows_of(self, images: Sequence[int]) -> LawAtRows:
        """The law at rows that belong to these images, each to any of them; rows of one image are consecutive."""
        counts = Counter(images)
        owners = iter(range(self.num_images))
        groups = [
            sum(counts[image] for image in islice(owners, size)) for size in self.groups or (1,) * self.num_images
        ]
        return LawAtRows(self, torch.tensor(images, dtype=torch.long), tuple(size for size in groups if size))

    def of_images(self, images: Tensor, groups: tuple[int, ...] | None = None) -> Law:
        """This law with a row for each of the images `[N]`, as an image of its own; costs are counted together.

        Args:
            images: their indices.
            groups: numbers of consecutive rows that are evaluated together whatever the batch, such as those of one
                image; None for each row by itself.
        """
        scores = self.score_model
        return replace(
            self,
            conditions=self.conditions.rows(images),
            prompts=[self.prompts[image] for image in images.tolist()],
            reward=self.reward_at(images),
            reward_scale=self.scales()[images.cpu()],
            score_model=scores and ScoreModel(scores.model, scores.conditions.rows(images)),
            groups=groups,
        )

    def reward_at(self, images: Tensor) -> Reward | None:
        """The reward of rows that belong to these images, `[N]`."""
        return self.reward.rows(images) if isinstance(self.reward, RewardOfEachImage) else self.reward


@dataclass(frozen=True)
class LawAtRows:
    """The law at rows that each belong to one of its images.

    Attributes:
        law: of all images.
        owners: the image of each row, `[N]`, on the CPU.
        groups: numbers of consecutive rows that are evaluated together whatever the batch; see `Execution`.
    """

    law: Law
    owners: Tensor
    groups: tuple[int, ...]

    @cached_property
    def network(self) -> Network:
        """The model at these rows, or at equally many consecutive copies of each of them."""
        law, model = self.law, self.law.model
        scores = law.score_model or ScoreModel(model, law.conditions)

        def predict(x: Tensor, noise_to_signal: Level) -> Tensor:
            return self._evaluated(model.predict, model, law.conditions, (x,), noise_to_signal)

        def denoise(x: Tensor, noise_to_signal: Level) -> Tensor:
            return self._evaluated(scores.model.denoise, scores.model, scores.conditions, (x,), noise_to_signal)

        def flow_map(x: Tensor, noise_to_signal: Level, next_noise_to_signal: Level) -> Tensor:
            return self._evaluated(model.flow_map, model, law.conditions, (x,), noise_to_signal, next_noise_to_signal)

        def diamond_map(xbar: Tensor, s: Level, r: Level, x: Tensor, noise_to_signal: Level) -> Tensor:
            def mapped(xbar: Tensor, x: Tensor, noise_to_signal: Level, s: Level, r: Level, rows: Conditions) -> Tensor:
                return model.diamond_map(xbar, s, r, x, noise_to_signal, rows)

            # Its guidance is baked in.
            unguided = replace(law.conditions, negative_features=None)
            return self._evaluated(mapped, model, unguided, (xbar, x), noise_to_signal, s, r)

        predicts_mean = model.predicts_mean and law.score_model is None
        inner_map = diamond_map if model.has_diamond_map else None
        return Network(
            predictor=predict,
            denoiser=(predict if predicts_mean else denoise) if scores.model.has_denoiser else None,
            map=flow_map if model.has_flow_map else inner_map and flow_map_of(inner_map),
            predicts_mean=predicts_mean,
            maps_by_prediction=model.maps_by_prediction,
            max_noise_to_signal=min(model.max_noise_to_signal, scores.model.max_noise_to_signal),
            inner_map=inner_map,
        )

    def _evaluated(
        self,
        function: Callable[..., Tensor],
        model: Model,
        conditions: Conditions,
        states: tuple[Tensor, ...],
        *levels: Level,
    ) -> Tensor:
        """Rows of states through a function of (states, levels, conditions), in chunks and counted."""
        execution = self.law.execution
        num_copies = len(states[0]) // len(self.owners)
        row_owners = repeat_each(self.owners, num_copies)
        row_levels = [as_level(level) for level in levels]
        counted = 0

        def at_rows(index: Tensor) -> list[Tensor]:
            return [level[sent(index, level.device)] if level.ndim else level for level in row_levels]

        def evaluate_rows(index: Tensor, *rows: Tensor) -> Tensor:
            with model.evaluating_network(execution.gradient_checkpointing.network):
                return function(*rows, *at_rows(index), conditions.rows(row_owners[index]))

        def count(index: Tensor) -> None:
            nonlocal counted
            evaluations = len(index) * model.evaluations_per_row(at_rows(index)[0], conditions)
            counted += evaluations
            execution.cost.network_evaluations += evaluations

        def count_backward(gradient: Tensor) -> None:
            execution.cost.backward_passes += counted

        result = execution.over_chunks(
            partial(execution.checkpointed, "network", evaluate_rows), self._groups(num_copies), *states, count=count
        )
        if result.requires_grad:
            result.register_hook(count_backward)
        if self.law.reward is not None:
            # Plain samples are the stock pipeline's, whatever they are.
            check_evaluated(model, result, states, row_levels[0])
        return result

    def _groups(self, num_copies: int) -> list[int]:
        """The groups of equally many copies of each row."""
        return [num_copies * size for size in self.groups]

    def decode(self, z: Tensor, preview: bool = False) -> Tensor:
        """Images `[N, 3, H, W]` in [0, 1] of clean latents `[N, ...]`; `preview` as of `Model.decode`."""

        def count(index: Tensor) -> None:
            self.law.cost.decodes += len(index)

        return self.law.execution.over_chunks(
            lambda index, rows: self._decode_rows(self.owners[index], rows, preview), self.groups, z, count=count
        )

    def evaluate(self, z: Tensor, noise_to_signal: Level = 0.0) -> Evaluation:
        """Decodes and scores clean latents `[N, ...]`, looked ahead to from a level, which rewards may ask for."""
        names: list[str] = []

        def count(index: Tensor) -> None:
            self.law.cost.reward_calls += len(index)

        def columns(output: RewardOutput) -> Tensor:
            names[:] = output.terms
            return output.columns()

        def score_rows(index: Tensor, latents: Tensor, images: Tensor) -> Tensor | Pending[Tensor]:
            return self._score_rows(columns, index, self.owners, noise_to_signal, latents, images)

        images, rows = self._decode_and_score(score_rows, z, count)
        output = RewardOutput.of_columns(rows, names)
        terms = {name: term.detach() for name, term in output.terms.items()}
        return Evaluation(output.total, terms, images, output.violation)

    def _decode_and_score(
        self, score_rows: Callable[..., Tensor | Pending[Tensor]], z: Tensor, count: Callable[[Tensor], None]
    ) -> tuple[Tensor, Tensor]:
        """The images of latents `[N, ...]`, and what is made of their scores."""
        law = self.law
        assert law.reward is not None, "methods ask for scores only where there is a reward"
        if not awaits(law.reward, z) or law.execution.shards is not None:
            images = self.decode(z)
            return images, law.execution.over_chunks(score_rows, self.groups, z, images, count=count)
        decoded: list[Tensor] = []

        def decode_and_score(index: Tensor, latents: Tensor) -> Tensor | Pending[Tensor]:
            law.cost.decodes += len(index)
            decoded.append(self._decode_rows(self.owners[index], latents, preview=False))
            count(index)
            return score_rows(index, latents, decoded[-1])

        # The next chunk is decoded while the service scores this one.
        scores = law.execution.over_chunks(decode_and_score, self.groups, z)
        return decoded[0] if len(decoded) == 1 else torch.cat(decoded), scores

    def tilt(self, z: Tensor, noise_to_signal: Level = 0.0) -> Tensor:
        """The values of look-aheads `[N K, ...]` from a level, consecutive copies of each row: `scaled_rewards`."""
        return self.tilt_and_rank(z, noise_to_signal)[0]

    def tilt_and_rank(self, z: Tensor, noise_to_signal: Level = 0.0) -> tuple[Tensor, Tensor]:
        """As `tilt`, and what look-aheads are compared by as clean images: their `final_values`, without a graph."""
        num_copies = len(z) // len(self.owners)
        owners = repeat_each(self.owners, num_copies)

        def count(index: Tensor) -> None:
            self.law.cost.decodes += len(index)
            self.law.cost.reward_calls += len(index)

        def score_rows(index: Tensor, latents: Tensor) -> Tensor | Pending[Tensor]:
            # Images of look-aheads are scored where they are decoded, and not kept.
            images = self._decode_rows(owners[index], latents, preview=True)
            return self._score_rows(RewardOutput.differentiated, index, owners, noise_to_signal, latents, images)

        carried = self.law.execution.over_chunks(score_rows, self._groups(num_copies), z, count=count).to(z.device)
        total, *violation = carried.unbind(1)
        scales = self.law.scales_at(owners)
        values = scaled_rewards(total, scales, *violation)
        return values, final_values(total, scales, *violation) if violation else values.detach()

    def _decode_rows(self, owners: Tensor, z: Tensor, preview: bool) -> Tensor:
        law = self.law

        def decode(owners: Tensor, rows: Tensor) -> Tensor:
            with law.model.evaluating_decoder(law.execution.gradient_checkpointing.decoder, preview):
                images = law.model.decode(rows, law.conditions.rows(owners), preview)
            # Sums over pixels, as rewards take, round by the order in memory, which is the decoder's own.
            return images.contiguous()

        return law.execution.checkpointed("decoder", decode, owners, z)

    def _score_rows(
        self,
        made_of: Callable[[RewardOutput], Tensor],
        index: Tensor,
        owners: Tensor,
        noise_to_signal: Level,
        latents: Tensor,
        images: Tensor,
    ) -> Tensor | Pending[Tensor]:
        """What is made of the scores of one chunk of the rows whose owners and levels are given."""
        law, chunk = self.law, self.law.reward_at(owners[index])
        assert chunk is not None, "methods ask for scores only where there is a reward"
        level = as_level(noise_to_signal)

        def scored(by: Callable[..., Callable[..., Scored]], index: Tensor, latents: Tensor, images: Tensor) -> Scored:
            reward = law.reward_at(owners[index])
            assert reward is not None, "that of the chunk has been looked at"
            prompts = [law.prompts[owner] for owner in owners[index].tolist()]
            row_levels = level[sent(index, level.device)] if level.ndim else level
            check_decoded(law.model, images, latents, row_levels)
            return by(reward)(images, prompts, latents=latents, noise_to_signal=row_levels)

        return law.reward_errors.scored(made_of, law.execution, chunk, scored, index, latents, images)

    def fault_of_gradient(
        self, z: Tensor, rows: Tensor, noise_to_signal: Level, preview: bool = True
    ) -> NotFiniteError:
        """Why the gradient at some of these rows is not finite; decodes and scores the first of them once more.

        Args:
            z: clean look-aheads, consecutive ones of each row, `[N K, ...]`.
            rows: whether the gradient is not finite, `[N]`.
            noise_to_signal: level of the rows.
            preview: as of `Model.decode`.
        """
        law, row = self.law, rows.tolist().index(True)
        reward = law.reward_at(self.owners[row : row + 1].repeat_interleave(len(z) // len(rows)))
        assert reward is not None, "it was differentiated"
        with torch.enable_grad():
            z = z.detach().unflatten(0, (len(rows), -1))[row].requires_grad_()
            owners = self.owners[row : row + 1].repeat_interleave(len(z))
            images = self._decode_rows(owners, z, preview)
            pixels = images.detach().requires_grad_()
            prompts = [law.prompts[owner] for owner in owners.tolist()]
            output = reward.evaluate(pixels, prompts, latents=z.detach(), noise_to_signal=noise_to_signal)
            scores = output.differentiated().sum()
            (of_images,) = torch.autograd.grad(scores, pixels, materialize_grads=True)
            (of_latents,) = torch.autograd.grad(images, z, of_images)
        return fault_of_gradient(law.model, reward, of_images, of_latents, noise_to_signal, preview)

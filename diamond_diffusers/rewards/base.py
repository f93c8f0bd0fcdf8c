"""The base class of rewards, and their sums.

A reward maps images `[B, 3, H, W]` in [0, 1] and `B` prompts to `B` scores, higher is better. Rewards are values of a
small algebra: `2 * a + b - c / 2` is a reward again, and reports the scores of `a`, `b` and `c` next to the total. A
comparison makes a constraint of a reward: `2 * a + (b < 0.2)` asks for a high `a` among images for which `b < 0.2`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import cached_property, partial
from numbers import Real
from typing import Any, Self

import torch
from torch import Tensor, nn

from ..core.attention import differentiable_attention
from ..core.pending import Pending, together
from .checks import check_batch, naming_inference_tensors
from .context import check_context, select_context, wanted_context
from .hub import is_cached
from .names import distinct, sum_of
from .output import RewardOutput
from .probing import tried_on_a_random_image
from .returned_scores import is_one_number, read_scores
from .shared_features import one_evaluation
from .threshold import STRENGTH, Threshold


class Reward(ABC):
    """A function of images and prompts that returns one score for each image. Subclasses define `score`.

    Attributes:
        differentiable: whether the scores carry gradients to the pixels.
        reads_prompts: whether the scores depend on the prompts.
        is_concurrent: whether `begin` returns before the scores are there, as it may where a service computes them.
        is_constrained: whether it holds a constraint, so that its output says how far images violate it.
        is_constraint: whether it consists of constraints alone: its total is 0, and no weight or scale counts.
        max_batch_size: the largest number of images in one call of `score`; None for all at once.
        default_reward_scale: the `reward_scale` of calls that give none, at which the reward makes itself felt; None
            for 1, as of rewards of which that is not known. See `docs/judges/scales.md`.
        licence: licence of the weights.
        source: the publication or the project that the score comes from.
        size: size of the download on first use, such as "1.7 GB".
        hub_files: the repositories on the Hub that are needed on first use, each with one file that tells whether it
            is in the local cache.
        requires: packages that have to be importable, beyond this package's own dependencies. If such a package cannot
            be imported by its name alone, the class has a static method `import_package`, which takes that name.
        is_free: whether a score costs next to nothing, as that of a formula of the pixels does. A call that is to ask
            any other reward for more than 200 scores of an image says so before.
        is_dear: whether a score is slow or paid, as that of a service is, so that alignment `"auto"` takes methods that
            ask for few.
        example_prompt: one that the reward can score images of, for trials.

    Example:
        >>> from diamond_diffusers.rewards import as_reward
        >>> reward = as_reward("2*brightness") + as_reward(lambda images, prompts: images[:, 0].mean((1, 2)))
        >>> reward(torch.ones(1, 3, 8, 8), ["a red star"])
        tensor([3.])
    """

    differentiable: bool = True
    reads_prompts: bool = True
    is_concurrent: bool = False
    is_constrained: bool = False
    is_constraint: bool = False
    max_batch_size: int | None = None
    default_reward_scale: float | None = None
    licence: str = "unspecified"
    source: str = "unspecified"
    size: str = "none"
    hub_files: tuple[tuple[str, str], ...] = ()
    requires: tuple[str, ...] = ()
    is_free: bool = False
    is_dear: bool = False
    example_prompt: str = "a photo"
    gave_one_number: bool = False

    @abstractmethod
    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """One score per image, higher is better.

        A subclass that needs more than images and prompts names further parameters: `latents`, `noise_to_signal` or
        `pil_images`; see `context.py` for their forms. A parameter with a default value is optional.

        Args:
            images: `[B, 3, H, W]` in [0, 1], of any floating dtype, size and device.
            prompts: `B` prompts; the same prompt often occurs many times.

        Returns:
            `[B]` finite numbers; or what else can only mean them, as `returned_scores.read_scores` lists.
        """

    @cached_property
    def name(self) -> str:
        """The name under which scores and errors are reported; by default that of the class."""
        return type(self).__name__

    @property
    def term_names(self) -> list[str]:
        """The names of the terms that `evaluate` reports, in their order."""
        return [self.name]

    @cached_property
    def wanted_context(self) -> dict[str, bool]:
        """The further parameters that `score` names, and whether each is required."""
        return wanted_context(self.score)

    def check_prompts(self, prompts: Sequence[str]) -> None:  # noqa: B027 - most rewards take any
        """Raises a `ValueError` for a prompt that no image of it could be scored by; asked before a run samples any.

        Rewards that take any prompt leave this as it is, which does nothing.
        """

    def evaluate(self, images: Tensor, prompts: Sequence[str], **context: Tensor | float) -> RewardOutput:
        """The checked scores of a batch. A reward that is not differentiable never sees a graph.

        Args:
            images: `[B, 3, H, W]` in [0, 1], of any floating dtype, size and device.
            prompts: `B` prompts.
            context: `latents` `[B, ...]` and `noise_to_signal` (a number or `[B]`), if the caller knows them.

        Raises:
            TypeError: `images` is not a floating tensor, `prompts` is no list of strings, the context has another name,
                or what `score` returned holds no scores.
            ValueError: the shape or range of `images`, or the number of `prompts`, is wrong; `max_batch_size` is not
                positive; a required context is missing; the scores are not one per image, are not finite, or lack the
                gradient that the reward declares; the reward holds inference tensors and is to be differentiated.
        """
        check_batch(self.name, images, prompts)
        checked = check_context(self.name, images, context)
        tracked = self._tracks(images, *checked.values())
        if not tracked:
            images, checked = images.detach(), {key: value.detach() for key, value in checked.items()}
        with torch.set_grad_enabled(tracked), _differentiated(self.name) if tracked else nullcontext():
            scores = self._score_in_batches(images, prompts, checked)
        if tracked and not scores.requires_grad:
            raise ValueError(
                f"Reward '{self.name}' declares itself differentiable, but its scores carry no gradient to the images; "
                "compute them with torch operations outside `no_grad`, or set `differentiable` to False."
            )
        return RewardOutput(scores if tracked else scores.detach(), {self.name: scores.detach()})

    def begin(self, images: Tensor, prompts: Sequence[str], **context: Tensor | float) -> Pending[RewardOutput]:
        """The scores of a batch, which can be awaited later; arguments and exceptions as of `evaluate`, then or here.

        A reward that leaves its computations to a service overrides this and sets `is_concurrent`: a run then goes on
        with other evaluations until the scores are there. Such scores carry no graph.

        Example:
            >>> from diamond_diffusers.rewards import Brightness
            >>> Brightness().begin(torch.ones(1, 3, 8, 8), ["a red star"]).result().total
            tensor([1.])
        """
        output = self.evaluate(images, prompts, **context)
        return Pending(lambda: output)

    def _score_in_batches(self, images: Tensor, prompts: Sequence[str], context: Mapping[str, Tensor]) -> Tensor:
        selected = select_context(self.name, self.wanted_context, images, context)
        size = len(images) if self.max_batch_size is None else self.max_batch_size
        if not isinstance(size, int) or size < 1:
            raise ValueError(f"Reward '{self.name}' has max_batch_size={size!r}; give a positive number, or None.")
        scores = []
        for start in range(0, len(images), size):
            rows = slice(start, start + size)
            extra = {key: value[rows] for key, value in selected.items()}
            returned = self.score(images[rows], prompts[rows], **extra)
            self.gave_one_number = is_one_number(returned)
            scores.append(read_scores(self.name, returned, prompts[rows], images.device))
        return torch.cat(scores)

    def __call__(self, images: Tensor, prompts: Sequence[str], **context: Tensor | float) -> Tensor:
        """The checked scores `[B]`; see `evaluate`."""
        return self.evaluate(images, prompts, **context).total

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """Moves and casts every torch module that the reward holds as an attribute, in place; returns the reward."""
        for held in vars(self).values():
            if isinstance(held, nn.Module):
                held.to(device=device, dtype=dtype)
        return self

    def compile(self, **options: Any) -> Self:
        """Compiles every torch module that the reward holds as an attribute, in place, by `torch.compile(**options)`.

        Returns:
            The reward.
        """
        for held in vars(self).values():
            if isinstance(held, nn.Module):
                held.compile(**options)
        return self

    def probe(
        self,
        device: torch.device | str = "cpu",
        image_size: tuple[int, int] = (64, 64),
        prompt: str | None = None,
        needs_gradient: bool = False,
        **context: Tensor | float,
    ) -> int:
        """Scores one random image, so that a broken reward fails before the expensive work.

        Args:
            device: device of the images of the run.
            image_size: height and width.
            prompt: any prompt; None for `example_prompt`.
            needs_gradient: whether the run differentiates the reward.
            context: as in `evaluate`, with one row; the level is 0 if not given.

        Returns:
            How many images were scored; a call counts them in its cost.

        Raises:
            TypeError, ValueError: as in `evaluate`; or a gradient is needed, but missing or not finite.
        """
        text = self.example_prompt if prompt is None else prompt
        return tried_on_a_random_image(
            self, device, image_size, text, needs_gradient, {"noise_to_signal": 0.0, **context}
        )

    @classmethod
    def missing_downloads(cls) -> list[str]:
        """The downloads that are still missing before the reward can be made with its default arguments."""
        return [repository for repository, file in cls.hub_files if not is_cached(repository, file)]

    def _tracks(self, *inputs: Tensor | float) -> bool:
        has_graph = any(isinstance(value, Tensor) and value.requires_grad for value in inputs)
        # Whether a callable is differentiable may have to be tried first, so that comes last.
        return has_graph and torch.is_grad_enabled() and self.differentiable

    def _weighted_terms(self) -> list[tuple[float, Reward]]:
        return [(1.0, self)]

    def __mul__(self, factor: float) -> Reward:
        if not isinstance(factor, Real):
            return NotImplemented
        return WeightedSum([(factor * weight, reward) for weight, reward in self._weighted_terms()])

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> Reward:
        if not isinstance(divisor, Real):
            return NotImplemented
        if divisor == 0 or not math.isfinite(divisor):
            raise ValueError(f"Reward '{self.name}' is divided by {divisor}; give a finite number other than 0.")
        return self * (1 / divisor)

    def __neg__(self) -> Reward:
        return -1.0 * self

    def __add__(self, other: Reward) -> Reward:
        if not isinstance(other, Reward):
            return NotImplemented
        return WeightedSum(self._weighted_terms() + other._weighted_terms())

    def __radd__(self, other: int) -> Reward:
        # The built-in `sum` starts from the integer 0.
        return self if isinstance(other, Real) and other == 0 else NotImplemented

    def __sub__(self, other: Reward) -> Reward:
        return self + -other if isinstance(other, Reward) else NotImplemented

    def __lt__(self, bound: float) -> Reward:
        return Constraint(self, "<", bound) if isinstance(bound, Real) else NotImplemented

    def __le__(self, bound: float) -> Reward:
        return Constraint(self, "<=", bound) if isinstance(bound, Real) else NotImplemented

    def __gt__(self, bound: float) -> Reward:
        return Constraint(self, ">", bound) if isinstance(bound, Real) else NotImplemented

    def __ge__(self, bound: float) -> Reward:
        return Constraint(self, ">=", bound) if isinstance(bound, Real) else NotImplemented

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"


class CompositeReward(Reward):
    """A reward that is made of other rewards. Subclasses define `evaluate`.

    It is differentiable if every part is: the gradient of some of the parts would be that of another reward. All other
    declarations follow from the parts, too.
    """

    def __init__(self, rewards: Sequence[Reward], name: str) -> None:
        self.rewards = list(rewards)
        self.name = name
        self.licence = ", ".join(dict.fromkeys(reward.licence for reward in self.rewards))
        self.source = ", ".join(dict.fromkeys(reward.source for reward in self.rewards))

    @abstractmethod
    def evaluate(self, images: Tensor, prompts: Sequence[str], **context: Tensor | float) -> RewardOutput:
        """The total, and the scores of every part; errors name the part. See `Reward.evaluate`."""

    @property
    def differentiable(self) -> bool:  # type: ignore[override]
        """Whether every part is differentiable."""
        return all(reward.differentiable for reward in self.rewards)

    @property
    def is_free(self) -> bool:  # type: ignore[override]
        """Whether every part is free."""
        return all(reward.is_free for reward in self.rewards)

    @property
    def is_dear(self) -> bool:  # type: ignore[override]
        """Whether any part is dear."""
        return any(reward.is_dear for reward in self.rewards)

    @property
    def reads_prompts(self) -> bool:  # type: ignore[override]
        """Whether any part reads prompts."""
        return any(reward.reads_prompts for reward in self.rewards)

    @property
    def is_constrained(self) -> bool:  # type: ignore[override]
        """Whether any part is."""
        return any(reward.is_constrained for reward in self.rewards)

    @property
    def term_names(self) -> list[str]:
        """Those of all parts; of equal names, the second gets the suffix `_2`, and so on."""
        return distinct([name for reward in self.rewards for name in reward.term_names])

    @property
    def wanted_context(self) -> dict[str, bool]:
        """The context that any of the parts wants."""
        wanted: dict[str, bool] = {}
        for reward in self.rewards:
            for key, is_required in reward.wanted_context.items():
                wanted[key] = wanted.get(key, False) or is_required
        return wanted

    def score(self, images: Tensor, prompts: Sequence[str], **context: Tensor | float) -> Tensor:
        """The total `[B]`."""
        return self.evaluate(images, prompts, **context).total

    def check_prompts(self, prompts: Sequence[str]) -> None:
        """See `Reward.check_prompts`: no part may refuse a prompt."""
        for reward in self.rewards:
            reward.check_prompts(prompts)

    def compile(self, **options: Any) -> Self:
        """Compiles every part, in place; returns this reward."""
        for reward in self.rewards:
            reward.compile(**options)
        return self

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """Moves and casts every part, in place; returns this reward."""
        for reward in self.rewards:
            reward.to(device, dtype)
        return self

    def probe(
        self,
        device: torch.device | str = "cpu",
        image_size: tuple[int, int] = (64, 64),
        prompt: str | None = None,
        needs_gradient: bool = False,
        **context: Tensor | float,
    ) -> int:
        """Probes every part, so that an error names the one at fault; an image counts once. See `Reward.probe`."""
        return max(reward.probe(device, image_size, prompt, needs_gradient, **context) for reward in self.rewards)


class Constraint(CompositeReward):
    """A threshold on a reward: the law is restricted to images whose score is on the right side of it.

    Comparing a reward with a number makes one, and adding it to other rewards restricts these. By itself it adds
    nothing to the total. Images that violate it are only taken where no other is found, and then by how little they do:
    see `docs/judges/constraints.md`.

    Args:
        reward: what is bounded; a reward without constraints.
        comparison: `<`, `<=`, `>` or `>=`.
        bound: any finite number.
        strength: nats by which an image that violates the constraint loses for each unit of excess: how hard samples
            are drawn to where it holds. Missing the bound by a tenth of it counts a factor of e by default.
        unit: of the excess; None for the size of the bound, or 1 where that is 0.

    Raises:
        ValueError: an argument is out of range, or `reward` is a constraint already.

    Example:
        >>> from diamond_diffusers.rewards import Brightness, Colour
        >>> reward = Colour() + (Brightness() < 0.5)
        >>> images = torch.tensor([0.1, 0.9])[:, None, None, None].expand(-1, 3, 8, 8)
        >>> reward.name, reward.evaluate(images, ["a red star"] * 2).violation == 0
        ('colour, brightness < 0.5', tensor([ True, False]))
    """

    def __init__(
        self, reward: Reward, comparison: str, bound: float, *, strength: float = STRENGTH, unit: float | None = None
    ) -> None:
        if reward.is_constrained:
            raise ValueError(
                f"Reward '{reward.name}' holds a constraint and is compared with {bound}; compare the rewards in it, "
                "each by itself, and add the constraints."
            )
        self.threshold = Threshold(comparison, float(bound), strength, unit)
        super().__init__([reward], f"{reward.name} {self.threshold}")

    is_constraint = True

    @property
    def is_constrained(self) -> bool:  # type: ignore[override]
        """True."""
        return True

    def evaluate(self, images: Tensor, prompts: Sequence[str], **context: Tensor | float) -> RewardOutput:
        """A total of 0, the scores of the bounded reward, and how far they violate the constraint."""
        return self.of_scores(self.rewards[0].evaluate(images, prompts, **context))

    @property
    def is_concurrent(self) -> bool:  # type: ignore[override]
        """Whether the bounded reward is."""
        return self.rewards[0].is_concurrent

    def begin(self, images: Tensor, prompts: Sequence[str], **context: Tensor | float) -> Pending[RewardOutput]:
        """See `Reward.begin`."""
        return self.rewards[0].begin(images, prompts, **context).then(self.of_scores)

    def of_scores(self, output: RewardOutput) -> RewardOutput:
        """The output of this constraint where that of the bounded reward is known."""
        return RewardOutput(0 * output.total, output.terms, self.threshold.violation(output.total))

    def __bool__(self) -> bool:
        # Else `a < r < b`, which is `a < r and r < b`, would be its second half alone.
        raise TypeError(
            f"The constraint '{self.name}' is neither true nor false; add constraints instead of chaining them or "
            "joining them by `and`: (reward > 0.1) + (reward < 0.5)."
        )


class WeightedSum(CompositeReward):
    """The sum `sum_i weight_i * reward_i`, made by arithmetic on rewards, of which some may be constraints.

    It is differentiable if every term but the constraints is. Those that are not restrict images without guiding them;
    of constraints alone it takes one that is.

    Args:
        terms: at least one pair of a finite weight and a reward. If two rewards share a name, the scores of the
            second are reported with the suffix `_2`, and so on. Constraints have positive weights, which do not count.

    Raises:
        ValueError: there is no term, a weight is not finite, or that of a constraint is not positive.
    """

    def __init__(self, terms: Sequence[tuple[float, Reward]]) -> None:
        if not terms:
            raise ValueError("A sum of rewards got terms=[]; give at least one pair of a weight and a reward.")
        for weight, reward in terms:
            if not math.isfinite(weight):
                raise ValueError(f"Reward '{reward.name}' got the weight {weight}; give a finite number.")
            if reward.is_constraint and not weight > 0:
                raise ValueError(
                    f"The constraint '{reward.name}' got the weight {weight}; add it as it is, or turn its comparison "
                    "round."
                )
        # Those without constraints come first, as in the expression.
        ordered = sorted(terms, key=lambda term: term[1].is_constraint)
        rewards = [reward for _, reward in ordered]
        self.weights = [1.0 if reward.is_constraint else float(weight) for weight, reward in ordered]
        summed = [reward.name for reward in rewards if not reward.is_constraint]
        constraints = [reward.name for reward in rewards if reward.is_constraint]
        total = [sum_of(self.weights[: len(summed)], summed)] if summed else []
        super().__init__(rewards, ", ".join([*total, *constraints]))

    @property
    def differentiable(self) -> bool:  # type: ignore[override]
        """Whether every term but constraints is differentiable, or any constraint where there is nothing else."""
        summed = [reward for reward in self.rewards if not reward.is_constraint]
        # Whether a callable is differentiable is tried only where that counts.
        decides = all if summed else any
        return decides(reward.differentiable for reward in summed or self.rewards)

    def probe(
        self,
        device: torch.device | str = "cpu",
        image_size: tuple[int, int] = (64, 64),
        prompt: str | None = None,
        needs_gradient: bool = False,
        **context: Tensor | float,
    ) -> int:
        """Probes every term; the gradient of no constraint is needed that has none. See `CompositeReward.probe`."""

        def is_differentiated(reward: Reward) -> bool:
            restricts_alone = reward.is_constraint and not reward.differentiable and self.differentiable
            return not restricts_alone

        tried: dict[int, Reward] = {}
        needed: dict[int, bool] = {}
        for reward in self.rewards:
            bounded = _bounded(reward)
            # One that is both bounded and summed is tried once.
            tried[id(bounded)] = bounded
            needed[id(bounded)] = needed.get(id(bounded), False) or is_differentiated(reward)
        return max(
            reward.probe(device, image_size, prompt, needs_gradient and needed[key], **context)
            for key, reward in tried.items()
        )

    @property
    def is_constraint(self) -> bool:  # type: ignore[override]
        """Whether every term is."""
        return all(reward.is_constraint for reward in self.rewards)

    @property
    def is_concurrent(self) -> bool:  # type: ignore[override]
        """Whether any term is: the others are computed while it is awaited."""
        return any(_bounded(reward).is_concurrent for reward in self.rewards)

    def evaluate(self, images: Tensor, prompts: Sequence[str], **context: Tensor | float) -> RewardOutput:
        """The total, and the unweighted scores of every term; errors name the term. See `Reward.evaluate`."""
        if self.is_concurrent:
            return self.begin(images, prompts, **context).result()
        with torch.set_grad_enabled(self._tracks(images, *context.values())), one_evaluation():
            return self._summed([reward.evaluate(images, prompts, **context) for reward in self._evaluated()[0]])

    def begin(self, images: Tensor, prompts: Sequence[str], **context: Tensor | float) -> Pending[RewardOutput]:
        """The terms that are concurrent are begun first, so that the others are computed meanwhile."""
        evaluated, _ = self._evaluated()
        order = sorted(range(len(evaluated)), key=lambda index: not evaluated[index].is_concurrent)
        with torch.set_grad_enabled(self._tracks(images, *context.values())), one_evaluation():
            terms = together(partial(evaluated[index].begin, images, prompts, **context) for index in order)
        return terms.then(lambda outputs: self._summed([outputs[order.index(index)] for index in range(len(order))]))

    def _evaluated(self) -> tuple[list[Reward], list[int]]:
        """The rewards to evaluate, and which of them each term is made of: constraints take one that is there."""
        evaluated: list[Reward] = []
        places: list[int] = []
        known: dict[int, int] = {}
        for reward in self.rewards:
            bounded = _bounded(reward)
            if not isinstance(reward, Constraint) or id(bounded) not in known:
                known[id(bounded)] = len(evaluated)
                evaluated.append(bounded)
            places.append(known[id(bounded)])
        return evaluated, places

    def _summed(self, evaluations: Sequence[RewardOutput]) -> RewardOutput:
        outputs: list[RewardOutput] = []
        for reward, place in zip(self.rewards, self._evaluated()[1], strict=True):
            output = evaluations[place]
            outputs.append(reward.of_scores(output) if isinstance(reward, Constraint) else output)
        weighted = [weight * output.total for weight, output in zip(self.weights, outputs, strict=True)]
        total = sum(weighted, torch.zeros_like(weighted[0]))
        scores = [item for index in self._reported for item in outputs[index].terms.items()]
        names = distinct([name for name, _ in scores])
        terms = {name: score for name, (_, score) in zip(names, scores, strict=True)}
        violations = [output.violation for output in outputs if output.violation is not None]
        return RewardOutput(total, terms, torch.stack(violations).sum(0) if violations else None)

    @property
    def term_names(self) -> list[str]:
        """As of `CompositeReward`; a reward that is both bounded and summed is reported once."""
        return distinct([name for index in self._reported for name in self.rewards[index].term_names])

    @property
    def _reported(self) -> list[int]:
        """Which terms' scores are reported: of those that bound or sum one reward the first."""
        seen = [id(_bounded(reward)) for reward in self.rewards]
        return [
            index
            for index, reward in enumerate(self.rewards)
            if not isinstance(reward, Constraint) or seen.index(seen[index]) == index
        ]

    @property
    def default_reward_scale(self) -> float | None:  # type: ignore[override]
        """That at which the sum counts as much as one of its terms by itself; None where that of a term is not known.

        A term's own scale tells how much its scores differ. In the sum these differences are taken as independent, so
        that it is `1 / sqrt(sum_i (weight_i / scale_i)^2)`. The weights say how terms count beside each other.
        Constraints are not scaled.
        """
        shares = []
        for weight, reward in zip(self.weights, self.rewards, strict=True):
            if reward.is_constraint:
                continue
            if not reward.default_reward_scale:
                return None
            shares.append(weight / reward.default_reward_scale)
        return 1 / math.hypot(*shares) if any(shares) else None

    def _weighted_terms(self) -> list[tuple[float, Reward]]:
        return list(zip(self.weights, self.rewards, strict=True))


def _bounded(reward: Reward) -> Reward:
    """The reward that a constraint bounds, or the reward itself."""
    return reward.rewards[0] if isinstance(reward, Constraint) else reward


@contextmanager
def _differentiated(name: str) -> Iterator[None]:
    """Surrounds scores with a graph of the reward `name`."""
    with differentiable_attention(), naming_inference_tensors(name):
        yield

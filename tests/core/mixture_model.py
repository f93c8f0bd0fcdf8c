"""The mixture as the network of a model family, and rewards that it can be tilted by in closed form."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diamond_diffusers import Reward
from diamond_diffusers.alignment.execution import Checkpointing, Execution
from diamond_diffusers.alignment.law import Law, LawAtRows, ScoreModel
from diamond_diffusers.core.levels import GaussianPath, Level, RectifiedFlowPath, VariancePreservingPath, as_level
from diamond_diffusers.core.model import Conditions
from diamond_diffusers.core.tensors import expand
from diamond_diffusers.transitions.sampled_model import SampledModel

from .mixture import GaussianMixture, coefficients

SIGMA_DATA = 0.7
PIXEL_RANGE = 1000.0
"""Width of the latents that fit into an image."""


class TrigonometricPath(GaussianPath):
    """`x_t = cos t z + sigma_data sin t eps`; the network predicts `F` with `dx / dt = sigma_data F` (SANA-Sprint).

    Args:
        sigma_data: standard deviation of the data and of the noise.
    """

    def __init__(self, sigma_data: float) -> None:
        self.sigma_data = sigma_data

    def coefficients(self, time: Level) -> tuple[Tensor, Tensor]:
        t = as_level(time)
        return torch.cos(t), self.sigma_data * torch.sin(t)

    def time(self, noise_to_signal: Level) -> Tensor:
        return torch.atan(as_level(noise_to_signal) / self.sigma_data)

    def denoised(self, x: Tensor, prediction: Tensor, time: Level) -> Tensor:
        t = as_level(time)
        return expand(torch.cos(t), x) * x - expand(self.sigma_data * torch.sin(t), x) * prediction


@dataclass(frozen=True)
class PathUnderTest:
    """A path of the package next to the test's own account of it.

    Attributes:
        path: under test.
        schedule: `alpha_t` and `sigma_t` of a time.
        predict: what the network returns where `x_t = alpha_t z + sigma_t eps`, from `(z, eps, alpha_t, sigma_t)`.
    """

    path: GaussianPath
    schedule: Callable[[Tensor], tuple[Tensor, Tensor]]
    predict: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def _circle(t: Tensor) -> tuple[Tensor, Tensor]:
    return torch.cos(t), torch.sin(t)


FAMILIES = {
    "rectified_flow": PathUnderTest(RectifiedFlowPath(), lambda t: (1 - t, t), lambda z, eps, alpha, sigma: eps - z),
    "epsilon": PathUnderTest(VariancePreservingPath("epsilon"), _circle, lambda z, eps, alpha, sigma: eps),
    "v_prediction": PathUnderTest(
        VariancePreservingPath("v_prediction"), _circle, lambda z, eps, alpha, sigma: alpha * eps - sigma * z
    ),
    "sample": PathUnderTest(VariancePreservingPath("sample"), _circle, lambda z, eps, alpha, sigma: z),
    "trigonometric": PathUnderTest(
        TrigonometricPath(SIGMA_DATA),
        lambda t: (torch.cos(t), SIGMA_DATA * torch.sin(t)),
        lambda z, eps, alpha, sigma: alpha * eps - sigma / SIGMA_DATA**2 * z,
    ),
}
# An epsilon network says nothing of z at pure noise.
FAMILIES_AT_PURE_NOISE = [name for name in FAMILIES if name != "epsilon"]


class MixtureModel(SampledModel):
    """The exact network of a family for a mixture that each image's conditions displace by their `offset`.

    Latents may have any shape `[N, ...]` of `d` numbers. Counts what it is asked for.

    Attributes:
        evaluations: network evaluations.
        backwards: network evaluations that were differentiated.
        decoded: latents decoded.
        largest_batch: rows of the largest call.
        max_noise_to_signal: may be set.
    """

    max_noise_to_signal = math.inf

    def __init__(self, mixture: GaussianMixture, family: str = "rectified_flow") -> None:
        self.mixture = mixture
        self.case = FAMILIES[family]
        self.path = self.case.path
        self.evaluations = self.backwards = self.decoded = self.largest_batch = 0

    def network(self, x: Tensor, time: Tensor, offset: Tensor | None) -> Tensor:
        """The family's prediction at `x_t` in the family's scale."""
        self._count(x)
        alpha, sigma = self.case.schedule(time)
        noisy = x.double().flatten(1)
        column_alpha, column_sigma = alpha.unsqueeze(-1), sigma.unsqueeze(-1)
        centre = torch.zeros_like(noisy) if offset is None else offset.double()
        z = self.mixture.denoised(noisy - column_alpha * centre, alpha, sigma) + centre
        eps = (noisy - column_alpha * z) / column_sigma
        return self.case.predict(z, eps, column_alpha, column_sigma).reshape(x.shape).to(x.dtype)

    def predict(self, x: Tensor, noise_to_signal: Level, conditions: Conditions) -> Tensor:
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        time = self.path.time(noise_to_signal)
        noisy = self.path.from_bounded(x, time)
        prediction = self.network(noisy, time, conditions.features.get("offset"))
        if conditions.negative_features is not None:
            negative = self.network(noisy, time, conditions.negative_features.get("offset"))
            prediction = negative + conditions.classifier_free_guidance_scale * (prediction - negative)
        return self.path.denoised(noisy, prediction, time)

    def decode(self, z: Tensor, conditions: Conditions, preview: bool = False) -> Tensor:
        self.decoded += len(z)
        return images_of(z)

    def _count(self, x: Tensor) -> None:
        rows = len(x)
        self.evaluations += rows
        self.largest_batch = max(self.largest_batch, rows)
        if torch.is_grad_enabled() and x.requires_grad:
            x.register_hook(lambda _: self._count_backward(rows))

    def _count_backward(self, rows: int) -> None:
        self.backwards += rows


class MixtureMapFamily(MixtureModel):
    """The exact flow map of the mixture, as a few-step model knows it; its score model, if any, has the denoiser."""

    has_denoiser = False
    has_flow_map = True
    predicts_mean = False

    def __init__(self, mixture: GaussianMixture, score_model: MixtureModel | None = None, num_steps: int = 16) -> None:
        super().__init__(mixture)
        self.score_model = score_model
        self.has_denoiser = score_model is not None
        self.num_steps = num_steps

    def predict(self, x: Tensor, noise_to_signal: Level, conditions: Conditions) -> Tensor:
        return self.flow_map(x, noise_to_signal, 0.0, conditions)

    def flow_map(
        self, x: Tensor, noise_to_signal: Level, next_noise_to_signal: Level, conditions: Conditions
    ) -> Tensor:
        self._count(x)
        offset = conditions.features["offset"].double()
        (alpha, _), (next_alpha, _) = coefficients(noise_to_signal), coefficients(next_noise_to_signal)
        levels = float(noise_to_signal), float(next_noise_to_signal)
        end = self.mixture.flow(x.double().flatten(1) - alpha * offset, *levels, self.num_steps) + next_alpha * offset
        return end.reshape(x.shape).to(x.dtype)


def images_of(z: Tensor) -> Tensor:
    """Three equal channels of one row, which holds `z`, brought to [0, 1]."""
    return (z.double().flatten(1) / PIXEL_RANGE + 0.5)[:, None, None].expand(-1, 3, 1, -1)


class QuadraticReward(Reward):
    """`linear . z - quadratic |z|^2 / 2`, with a `linear` for each prompt."""

    name = "quadratic"

    def __init__(self, linear: dict[str, Sequence[float]], quadratic: float = 0.0) -> None:
        self.linear = {prompt: torch.tensor(direction, dtype=torch.float64) for prompt, direction in linear.items()}
        self.quadratic = quadratic
        self.calls = 0

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        self.calls += len(prompts)
        z = PIXEL_RANGE * (images[:, 0, 0].double() - 0.5)
        rows = {prompt: row for row, prompt in enumerate(self.linear)}
        linear = torch.stack([*self.linear.values()])[[rows[prompt] for prompt in prompts]]
        return (linear * z).sum(1) - self.quadratic / 2 * z.square().sum(1)

    def tilt(self, law: GaussianMixture, prompt: str = "", scale: float = 1.0) -> tuple[GaussianMixture, Tensor]:
        """The tilted law and `log E[exp(scale * reward)]`."""
        identity = torch.eye(law.means.shape[-1], dtype=torch.float64)
        return law.tilt(scale * self.linear[prompt], scale * self.quadratic * identity)


LINEAR = QuadraticReward({"": (0.9, -0.7, 0.6)})
QUADRATIC = QuadraticReward({"": (0.6, 0.8, -0.5)}, 0.5)


def unconditional(num_images: int = 1) -> Conditions:
    return Conditions({"offset": torch.zeros(num_images, 1)})


def law_of(
    model: SampledModel,
    conditions: Conditions,
    prompts: Sequence[str],
    reward: Reward | None = None,
    reward_scale: float = 1.0,
    score_model: tuple[SampledModel, Conditions] | None = None,
    gradient_checkpointing: bool = False,
    **execution: object,
) -> Law:
    """The law, with the options of its execution beside its own."""
    scores = score_model and ScoreModel(*score_model)
    checkpointing = Checkpointing.of_all(gradient_checkpointing)
    execution = Execution(gradient_checkpointing=checkpointing, **execution)
    return Law(model, conditions, prompts, reward, reward_scale, scores, execution)


def at_rows(law: Law, rows_per_image: int) -> LawAtRows:
    """The law at so many consecutive rows of every image."""
    return law.rows(torch.empty(law.num_images * rows_per_image))


def make_law(
    mixture: GaussianMixture,
    reward: Reward | None = None,
    family: str = "rectified_flow",
    num_images: int = 1,
    **options: object,
) -> Law:
    """The same tilted mixture for every image, with the empty prompt."""
    return law_of(MixtureModel(mixture, family), unconditional(num_images), [""] * num_images, reward, **options)


def make_map_law(
    mixture: GaussianMixture,
    reward: Reward | None = None,
    num_images: int = 1,
    has_scores: bool = True,
    num_steps: int = 16,
    **options: object,
) -> Law:
    """As `make_law`, of the exact flow map, with the exact denoiser as its score model."""
    scores = MixtureModel(mixture) if has_scores else None
    conditions = unconditional(num_images)
    return law_of(
        MixtureMapFamily(mixture, scores, num_steps),
        conditions,
        [""] * num_images,
        reward,
        score_model=scores and (scores, conditions),
        **options,
    )

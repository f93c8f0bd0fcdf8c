"""How well a map draws from the laws of its teacher, on rows that it is not trained on.

At each of some levels, held-out clean latents are noised, and look-aheads are drawn by the teacher's GLASS in many
steps, which is the reference, by GLASS in few, and by the map (arXiv 2509.25170, 2602.05993). All start from the same
noise.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..core.levels import RectifiedFlowPath, add_noise
from ..core.model import Conditions
from ..core.network import Network
from ..core.sample_statistics import deviation_ratio, energy_distance, mean_with_error, total_variance
from ..core.tensors import FLOAT64_DEVICES, repeat_each
from ..files.staging import write_safetensors
from ..pipelines.map_accuracy import LawAccuracy, MapAccuracy
from ..posteriors.base import PosteriorSampler
from ..posteriors.diamond import DiamondPosterior
from ..posteriors.glass import GlassPosterior
from .errors import TrainingError

if TYPE_CHECKING:
    from ..families.posterior_map import PosteriorMap
    from .teacher import Teacher

LEVELS = (0.3, 0.5, 0.7, 0.9, 1.0)
"""Of the observations, as times of rectified flow; one above the model's largest level stands for that."""
REFERENCE_STEPS = 32
"""GLASS steps of the reference."""
TEACHERS: dict[str, PosteriorSampler] = {f"GLASS, {steps} steps": GlassPosterior(steps) for steps in (4, 8)}
"""What the map is judged beside."""
MAPS: dict[str, PosteriorSampler] = {
    "map, 1 step": DiamondPosterior(1, 1),
    "map, 2 steps": DiamondPosterior(1, 2),
}


@dataclass(frozen=True)
class Observed:
    """Clean latents that are observed at all levels.

    Attributes:
        numbers: of the `n` rows, which decide their noise.
        clean: `[n, ...]` float32 on the CPU.
        features: of their captions, one row each, on the CPU.
    """

    numbers: list[int]
    clean: Tensor
    features: dict[str, Tensor]


@dataclass(frozen=True)
class TeacherLaws:
    """What the teacher draws at observations, which is drawn once.

    Attributes:
        observed: the `n` rows.
        samples: look-aheads of the reference, `[levels, n, K, ...]` float32 on the CPU.
        variances: their `total_variance`, `[n, levels]` float64.
        statistics: of the samplers in `TEACHERS`: see `Laws.statistics`.
    """

    observed: Observed
    samples: Tensor
    variances: Tensor
    statistics: dict[str, Tensor]

    def save(self, file: Path) -> None:
        """Writes them whole or not at all.

        Raises:
            UnwritableError: the file cannot be written.
        """
        tensors = {"clean": self.observed.clean, "samples": self.samples, "variances": self.variances}
        tensors["numbers"] = torch.tensor(self.observed.numbers)
        tensors |= {f"features.{name}": feature for name, feature in self.observed.features.items()}
        tensors |= {f"statistics.{name}": found for name, found in self.statistics.items()}
        write_safetensors(file, {name: tensor.contiguous() for name, tensor in tensors.items()})

    @classmethod
    def load(cls, file: Path) -> TeacherLaws:
        """Those of a file of `save`.

        Raises:
            TrainingError: it cannot be read.
        """
        try:
            tensors = load_file(file)
            numbers, clean = tensors["numbers"].tolist(), tensors["clean"]
            features, statistics = (
                {name.removeprefix(prefix): kept for name, kept in tensors.items() if name.startswith(prefix)}
                for prefix in ("features.", "statistics.")
            )
            return cls(Observed(numbers, clean, features), tensors["samples"], tensors["variances"], statistics)
        except (OSError, SafetensorError, KeyError) as error:
            raise TrainingError(f"'{file}' cannot be read ({error}); delete it, so that it is made again") from error


@dataclass(frozen=True)
class Laws:
    """Draws from the laws of a teacher and of its map, and compares them.

    Args:
        teacher: the teacher.
        num_samples: look-aheads `K` of each observation, at least 2.
        seed: of all noise; that of a row depends on its number alone.
        batch_size: rows that are evaluated at once.

    Example:
        >>> laws = Laws(teacher, num_samples=16, seed=0, batch_size=64)
        >>> drawn = laws.of_teacher(observed)
        >>> laws.statistics(MAPS["map, 1 step"], drawn, diamond_map)
    """

    teacher: Teacher
    num_samples: int
    seed: int
    batch_size: int

    @torch.no_grad()
    def of_teacher(self, observed: Observed) -> TeacherLaws:
        """Look-aheads of the reference, and how those of `TEACHERS` compare with them."""
        reference = GlassPosterior(REFERENCE_STEPS)
        samples = torch.stack(list(self._draw(reference, observed, None)))
        variances = torch.stack([self._by_observation(total_variance, drawn) for drawn in samples], 1)
        alone = TeacherLaws(observed, samples, variances, {})
        statistics = {name: self.statistics(sampler, alone, None) for name, sampler in TEACHERS.items()}
        return TeacherLaws(observed, samples, variances, statistics)

    @torch.no_grad()
    def statistics(self, sampler: PosteriorSampler, drawn: TeacherLaws, diamond_map: PosteriorMap | None) -> Tensor:
        """How the look-aheads of a sampler compare with those of the reference at each of `n` observations.

        Returns:
            `[2, n, levels]` float64: energy distances, and `total_variance` of the sampler.
        """
        found = []
        for samples, exact in zip(self._draw(sampler, drawn.observed, diamond_map), drawn.samples, strict=True):
            energies = self._by_observation(partial(energy_distance, share_noise=True), samples, exact)
            found.append(torch.stack([energies, self._by_observation(total_variance, samples)]))
        return torch.stack(found, -1)

    def _draw(
        self, sampler: PosteriorSampler, observed: Observed, diamond_map: PosteriorMap | None
    ) -> Iterator[Tensor]:
        """Look-aheads `[n, K, ...]` of all observations on the CPU, level by level."""
        count, device = self.num_samples, self.teacher.family.device
        for level in LEVELS:
            kappa = min(RectifiedFlowPath().noise_to_signal(level).item(), self.teacher.family.max_noise_to_signal)
            x = add_noise(observed.clean, self._noise("observation", level, observed, 1)[:, 0], kappa)
            noise = self._noise("look-aheads", level, observed, count).flatten(0, 1)
            rows = repeat_each(torch.arange(len(x)), count)
            parts = []
            for batch in range(0, len(rows), self.batch_size):
                part = slice(batch, batch + self.batch_size)
                features = {name: feature[rows[part]].to(device) for name, feature in observed.features.items()}
                network = network_of(self.teacher.family, self.teacher.conditions(features), diamond_map)
                here, noise_here = x[rows[part]].to(device), noise[part].to(device)
                parts.append(sampler.sample(network, here, kappa, None, noise_here).samples[:, 0].float().cpu())
            yield torch.cat(parts).unflatten(0, (-1, count))

    def _noise(self, name: str, level: float, observed: Observed, count: int) -> Tensor:
        """Standard normals `[n, count, ...]`."""
        shape = (count, *observed.clean.shape[1:])
        seeds = [random.Random(f"{self.seed} {level} {name} {row}").getrandbits(63) for row in observed.numbers]
        return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])

    def _by_observation(self, figure: Callable[..., Tensor], *samples: Tensor) -> Tensor:
        """A figure of each observation's samples `[n, K, ...]`, as vectors in float64: `[n]` on the CPU.

        One after the other, since they would fill the device at once, beside all that is trained.
        """
        device = self.teacher.family.device
        home = device if device.type in FLOAT64_DEVICES else torch.device("cpu")
        each = zip(*samples, strict=True)
        return torch.cat([figure(*(one[None].flatten(2).to(home).double() for one in these)).cpu() for these in each])


def network_of(family: Any, conditions: Conditions, diamond_map: PosteriorMap | None) -> Network:
    """The guided teacher at rows of conditions, with a map if there is one."""
    return Network(
        predictor=lambda x, level: family.predict(x, level, conditions),
        denoiser=lambda x, level: family.predict(x, level, conditions),
        inner_map=None
        if diamond_map is None
        else lambda xbar, s, r, x, level: diamond_map(xbar, s, r, x, level, conditions),
    )


def accuracy(statistics: Mapping[str, Tensor], variances: Tensor, num_samples: int) -> MapAccuracy:
    """The figures of samplers at each level, over all observations.

    Args:
        statistics: by the samplers' names, as of `Laws.statistics`.
        variances: of the reference, `[n, levels]`.
        num_samples: look-aheads of each observation.
    """
    laws = []
    for name, (energies, widths) in statistics.items():
        for place, level in enumerate(LEVELS):
            figures = mean_with_error(energies[:, place]) + deviation_ratio(widths[:, place], variances[:, place])
            laws.append(LawAccuracy(name, level, *(value if math.isfinite(value) else None for value in figures)))
    return MapAccuracy(len(variances), num_samples, REFERENCE_STEPS, laws)

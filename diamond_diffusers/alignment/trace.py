"""What a run recorded at each step."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class TraceStep:
    """Figures at one noise level, each `[B]` over the images, or None where a method has no such figure.

    Attributes:
        noise_to_signal: the level that the step moved particles from; the first one where it sampled noises to the end.
        mean_value: mean over particles of the estimated value `V` (scaled reward).
        best_value: its maximum.
        effective_sample_size: of the particles' weights, before any resampling.
        log_evidence: estimate so far of the tilted law's evidence, up to this level.
        inverse_temperature: that tempering gave to this level.
        resampled: which images were resampled here.
        look_ahead_effective_sample_size: of the importance weights of one particle's look-aheads, mean over particles;
            where it is near 1, a value rests on a single look-ahead.
        gradient_norm: mean root-mean-square of the shift that guidance made to the denoised sample.
    """

    noise_to_signal: float
    mean_value: Tensor | None = None
    best_value: Tensor | None = None
    effective_sample_size: Tensor | None = None
    log_evidence: Tensor | None = None
    inverse_temperature: Tensor | None = None
    resampled: Tensor | None = None
    look_ahead_effective_sample_size: Tensor | None = None
    gradient_norm: Tensor | None = None


FIGURES = {
    "mean_value": "mean value",
    "best_value": "best value",
    "effective_sample_size": "effective sample size",
    "log_evidence": "log evidence",
    "inverse_temperature": "inverse temperature",
    "look_ahead_effective_sample_size": "look-aheads' effective sample size",
    "gradient_norm": "guidance shift (RMS)",
}


@dataclass
class Trace:
    """The steps of a run, first to last."""

    steps: list[TraceStep] = field(default_factory=list)

    def figures(self) -> list[str]:
        """Names of the figures that this run recorded."""
        return [name for name in FIGURES if any(getattr(step, name) is not None for step in self.steps)]

    def as_dict(self) -> list[dict[str, object]]:
        """The steps as plain numbers and lists, for JSON."""
        rows = []
        for step in self.steps:
            row: dict[str, object] = {"noise_to_signal": step.noise_to_signal}
            for name in (*FIGURES, "resampled"):
                figure = getattr(step, name)
                if figure is not None:
                    row[name] = figure.tolist()
            rows.append(row)
        return rows

    def plot(self) -> Figure:
        """Draws every recorded figure against the step, one line an image."""
        from matplotlib.figure import Figure

        names = self.figures()
        if not names:
            raise ValueError(
                f"this run recorded no figures, since none of its {len(self.steps)} steps took look-aheads; take an "
                "alignment other than 'none' and 'best_of_n', with guidance at some of its levels"
            )
        figure = Figure(figsize=(4 * len(names), 3), layout="constrained")
        for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
            rows = [(i, getattr(step, name)) for i, step in enumerate(self.steps) if getattr(step, name) is not None]
            steps, values = zip(*rows, strict=True)
            for image in range(len(values[0])):
                axes.plot(steps, [value[image].item() for value in values], marker=".", label=f"image {image}")
            axes.set_xlabel("step")
            axes.set_title(FIGURES[name])
        if len(axes.lines) > 1:
            figure.legend(handles=axes.lines, loc="outside right upper")
        return figure

"""What an experiment costs, counted on a few of its images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

from ...core.cost import Cost
from ..text_tables import TextTable

COUNTS = ("network_evaluations", "backward_passes", "decodes", "reward_calls")
HEADERS = ["run", "of", *(name.replace("_", " ") for name in COUNTS), "backward counts 2", "forward alone"]


@dataclass(frozen=True)
class DryRun:
    """A run of an experiment, of which a few images were drawn.

    Attributes:
        name: of the run, such as that of its method.
        cost: of the images that were drawn.
        num_tried: images on which the reward was tried before these were drawn; `cost` has them.
        num_drawn: number of images that were drawn.
        num_images: number of images of the experiment.
        num_calls: number of calls of the experiment, each of which tries the reward.
    """

    name: str
    cost: Cost
    num_tried: int
    num_drawn: int
    num_images: int
    num_calls: int

    def of_image(self) -> dict[str, Fraction]:
        """What sampling one image costs, by the names in `COUNTS`; without trials."""
        counts = {name: Fraction(getattr(self.cost, name)) for name in COUNTS}
        counts["reward_calls"] -= self.num_tried
        return {name: count / self.num_drawn for name, count in counts.items()}

    def of_experiment(self) -> dict[str, Fraction]:
        """What all images cost, and the trials of all calls, by the names in `COUNTS`."""
        counts = {name: count * self.num_images for name, count in self.of_image().items()}
        counts["reward_calls"] += self.num_tried * self.num_calls
        return counts

    def rows(self) -> Iterator[list[str]]:
        """The lines of the table: an image, and the experiment."""
        whole = f"{self.num_images} image{'s' if self.num_images > 1 else ''}"
        for part, counts in (("an image", self.of_image()), (whole, self.of_experiment())):
            forward, backward = counts["network_evaluations"], counts["backward_passes"]
            yield [self.name, part, *map(_shown, (*counts.values(), forward + 2 * backward, forward))]


def table(runs: list[DryRun]) -> TextTable:
    """All runs in one table."""
    return TextTable("Cost", HEADERS, [row for run in runs for row in run.rows()])


def _shown(count: Fraction) -> str:
    return str(count.numerator) if count.denominator == 1 else f"{float(count):.1f}"

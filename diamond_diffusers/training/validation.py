"""What a run shows of its averaged map while it trains, and at the end on its card: figures and images."""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from diffusers.training_utils import EMAModel
from PIL import Image
from torch import Tensor, nn

from ..core.glass import inner_times
from ..files.output import whole_file
from ..pipelines.map_accuracy import ACCURACY, MapAccuracy, distance_text, ratio_text
from .data.held_out import Rows
from .data.images import Preparation, choose_caption
from .grid import TEACHER_ROW, grid_drawer, labelled_grid, map_rows, teacher_row
from .laws import LEVELS, MAPS, REFERENCE_STEPS, Laws, Observed, TeacherLaws, accuracy
from .options.identity import digest_of
from .release import writing_logs
from .teacher import Teacher

if TYPE_CHECKING:
    from accelerate import Accelerator

    from .options.records import Options

logger = logging.getLogger(__name__)

DEFAULT_PROMPT = "a photo of an astronaut riding a horse"
MINIATURE_PROMPT = "a red star left of a blue ring"


@dataclass(frozen=True)
class Validated:
    """What a validation has found.

    Attributes:
        grid: images of the prompt, if there is one.
        accuracy: the figures, if they are wanted.
    """

    grid: Image.Image | None
    accuracy: MapAccuracy | None

    def facts(self) -> dict[str, Any]:
        """What the map's declaration says of it."""
        return {} if self.accuracy is None else {ACCURACY: asdict(self.accuracy)}


class Validation:
    """Validates the map of a run; all its noise comes from generators of its own, so that training does not notice.

    Every process calls its methods. Each judges an equal share of the held-out rows, so that all evaluate a
    distributed network equally often.

    Args:
        options: options of the run.
        teacher: the teacher.
        latents_shape: shape of the latents of one image.
        rows: rows of the run, of which some are held out if there are to be figures.
        accelerator: accelerator of the run.
    """

    def __init__(
        self, options: Options, teacher: Teacher, latents_shape: tuple[int, ...], rows: Rows, accelerator: Accelerator
    ) -> None:
        self.options, self.teacher, self.rows = options, teacher, rows
        self.latents_shape, self.accelerator = latents_shape, accelerator
        validation = options.validation
        self.laws = Laws(
            teacher, validation.num_validation_samples, options.machine.seed, options.updates.train_batch_size
        )
        self._of_teacher: TeacherLaws | None = None
        self._teacher_rows: dict[str, Tensor] = {}

    def prepare(self, module: Callable[..., Any]) -> None:
        """Draws what the map is compared with, or reads it if an earlier part of the run has drawn it.

        Args:
            module: the `DistilledModule`, through which a distributed network has to be evaluated.
        """
        if not self.options.validation.validation_metrics:
            return
        file = self._file()
        device = self.accelerator.device
        # All evaluate the network, or none does.
        if self.accelerator.gather(torch.tensor([int(not file.exists())], device=device)).any():
            logger.info("drawing the look-aheads of the teacher that the map is going to be compared with")
            with torch.no_grad():
                observed = self._observed(module)
                drawn = module(lambda _: self.laws.of_teacher(observed))
            drawn.save(file)
        self._of_teacher = TeacherLaws.load(file)

    def __call__(self, module: Callable[..., Any], step: int, prompt: str | None) -> Validated:
        """Validates the map with its weights of this moment, and logs and keeps what comes out.

        Args:
            module: as of `prepare`, which comes first.
            step: number of updates so far.
            prompt: prompt of the grid; None for no grid.
        """
        found = Validated(None if prompt is None else self._grid(module, prompt), self._accuracy(module))
        folder = self.options.output.output_dir / "validation"
        if found.grid is not None:
            self._keep_grid(found.grid, folder / f"step-{step}.png", step)
        if found.accuracy is not None:
            self._keep_accuracy(found.accuracy, folder / f"step-{step}.json", step)
        return found

    def _grid(self, module: Callable[..., Any], prompt: str) -> Image.Image:
        count, seed = self.options.validation.num_validation_images, self.options.machine.seed
        draw = grid_drawer(self.teacher, prompt, self.latents_shape, count, seed)
        if prompt not in self._teacher_rows:
            self._teacher_rows[prompt] = module(lambda _: teacher_row(draw))
        rows = module(lambda diamond_map: map_rows(draw, diamond_map))
        return labelled_grid({TEACHER_ROW: self._teacher_rows[prompt], **rows})

    def _accuracy(self, module: Callable[..., Any]) -> MapAccuracy | None:
        drawn = self._of_teacher
        if drawn is None:
            return None
        statistics = module(
            lambda diamond_map: {
                name: self.laws.statistics(sampler, drawn, diamond_map) for name, sampler in MAPS.items()
            }
        )
        # Rows first, as processes have different ones.
        gathered = {
            name: self._gathered(found.movedim(1, 0)).movedim(0, 1)
            for name, found in {**statistics, **drawn.statistics}.items()
        }
        return accuracy(gathered, self._gathered(drawn.variances), self.laws.num_samples)

    def _gathered(self, rows: Tensor) -> Tensor:
        """Those of all processes' observations `[n, ...]`, on the CPU, without those that come twice."""
        gathered = self.accelerator.gather(rows.to(self.accelerator.device, torch.float32))
        return gathered[: len(self.rows.held_out)].cpu().double()

    def _observed(self, module: Callable[..., Any]) -> Observed:
        """Clean latents of this process's share of the held-out rows, which all processes have equally many of."""
        options, seed = self.options, self.options.machine.seed
        total, processes = len(self.rows.held_out), self.accelerator.num_processes
        share = -(-total // processes)
        numbers = [(self.accelerator.process_index * share + place) % total for place in range(share)]
        generators = [
            torch.Generator().manual_seed(random.Random(f"{seed} clean {number}").getrandbits(63)) for number in numbers
        ]
        choices = [random.Random(f"{seed} held out {number}") for number in numbers]
        rows = [self.rows.held_out[number] for number in numbers]
        if options.learns_from_samples:
            captions = [choose_caption(row, choice) for row, choice in zip(rows, choices, strict=True)]
            num_steps = options.preparation.teacher_num_inference_steps
            clean = module(
                lambda _: [
                    self.teacher.sample([caption], num_steps, generator)
                    for caption, generator in zip(captions, generators, strict=True)
                ]
            )
        else:
            preparation = options.preparation
            prepare = Preparation(self.teacher.resolution, preparation.center_crop, preparation.random_flip)
            prepared = list(map(prepare, rows, choices))
            captions = [caption for _, caption in prepared]
            clean = [
                self._latents(image, generator) for (image, _), generator in zip(prepared, generators, strict=True)
            ]
        features = self.teacher.features(captions)
        return Observed(
            numbers, torch.cat(clean).float().cpu(), {name: feature.cpu() for name, feature in features.items()}
        )

    def _latents(self, image: Tensor, generator: torch.Generator) -> Tensor:
        mean, deviation = self.teacher.family.encode_images(image[None])
        return mean.cpu() + deviation.cpu() * torch.randn(mean.shape, generator=generator)

    def _file(self) -> Path:
        """Of what the teacher draws in this process, named by all that it depends on."""
        names = (
            "pretrained_model_name_or_path revision variant quantize mixed_precision max_sequence_length dataset_name "
            "dataset_config_name dataset_split train_data_dir prompts_file image_column caption_column center_crop "
            "random_flip teacher_samples teacher_num_inference_steps num_validation_observations "
            "num_validation_samples seed"
        )
        settings = {
            "teacher": f"{self.teacher.resolution} {self.teacher.guidance}",
            "laws": f"{LEVELS} {inner_times(REFERENCE_STEPS, 1.0).tolist()}",
            "rows": self.rows.fingerprint,
        }
        digest = digest_of(self.options, names, settings)
        share = f"{self.accelerator.process_index}-of-{self.accelerator.num_processes}"
        return self.options.output.output_dir / "cache" / f"validation-{digest}-{share}.safetensors"

    def _keep_grid(self, grid: Image.Image, file: Path, step: int) -> None:
        with writing_logs(self.options):
            for tracker in self.accelerator.trackers:
                layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
                tracker.log_images({"validation": np.asarray(grid)[None]}, step=step, **layout)
        if self.accelerator.is_main_process:
            with whole_file(file) as partial:
                grid.save(partial, "png")

    def _keep_accuracy(self, found: MapAccuracy, file: Path, step: int) -> None:
        with writing_logs(self.options):
            self.accelerator.log(tracked(found), step=step)
        if self.accelerator.is_main_process:
            for line in lines_of(found):
                logger.info("step %d: %s", step, line)
            with whole_file(file) as partial:
                partial.write_text(json.dumps(asdict(found), indent=2) + "\n")


def tracked(found: MapAccuracy) -> dict[str, float]:
    """The figures under names such as `validation/energy_distance/map_1_step/t0.3`, and their standard errors."""
    names = ("energy_distance", "energy_distance_error", "deviation_ratio", "deviation_ratio_error")
    return {
        f"validation/{name}/{law.sampler.replace(',', '').replace(' ', '_')}/t{law.level:g}": value
        for law in found.laws
        for name in names
        if (value := getattr(law, name)) is not None
    }


def lines_of(found: MapAccuracy) -> Iterator[str]:
    """The figures as lines of a log."""
    levels = ", ".join(f"{level:g}" for level in found.levels)
    for what, text in (("energy distance to", distance_text), ("deviation over that of", ratio_text)):
        for sampler, texts in found.by_sampler(text).items():
            yield f"{what} GLASS of {found.reference_steps} steps at t = {levels}: {sampler}: {', '.join(texts)}"


def prompt_of_card(options: Options) -> str:
    """The prompt of the model card's samples."""
    if options.validation.validation_prompt is not None:
        return options.validation.validation_prompt
    return MINIATURE_PROMPT if options.model.is_miniature else DEFAULT_PROMPT


@contextmanager
def averaged(average: EMAModel | None, parameters: list[nn.Parameter]) -> Iterator[None]:
    """Context in which the parameters are their average, if there is one."""
    if average is None:
        yield
        return
    average.store(parameters)
    average.copy_to(parameters)
    try:
        yield
    finally:
        average.restore(parameters)

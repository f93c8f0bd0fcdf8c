"""Distils a Posterior Diamond Map: `accelerate launch -m diamond_diffusers.training.distill --help`."""

from __future__ import annotations

import argparse
import logging
import math
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, DistributedType
from diffusers.training_utils import EMAModel
from PIL import Image
from torch import Tensor
from torch.distributed.tensor import DTensor
from tqdm.auto import tqdm

from ..core.attention import differentiable_attention
from ..core.memory_errors import want_of_memory
from ..files.foreign import ForeignFileError
from ..files.foreign_models import UNLOADABLE, why_unloadable
from ..files.output import whole_file, writing
from ..files.staging import staged
from ..maps.diamond_map import DiamondMap
from ..maps.map_config import declare_map
from ..maps.storage import save_diamond_map
from ..pipelines.model_card import check_card, write_model_card
from .arguments import MAY_CHANGE, MINIATURE, parse_arguments
from .batches import Order
from .checkpoints import ANOTHER, Checkpoints
from .errors import TrainingError
from .module import DistilledModule
from .release import facts, make_repository, origin, push
from .setup import (
    DTYPES,
    build_loss,
    build_optimizer,
    build_schedule,
    check_packages,
    load_base,
    lora_layers,
    make_accelerator,
    prepare_distribution,
    prepare_output,
)
from .sources import load_rows, open_source
from .teacher import Teacher
from .validation import ROWS, image_grid, validation_images

logger = logging.getLogger(__name__)

DEFAULT_PROMPT = "a photo of an astronaut riding a horse"
MINIATURE_PROMPT = "a red star left of a blue ring"


def main(arguments: Sequence[str] | None = None) -> None:
    """The command: distils, saves, and pushes what its options name."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    given = parse_arguments(arguments)
    try:
        Distillation(given).run()
    except (TrainingError, ForeignFileError, OSError) as error:
        logger.debug("stopped", exc_info=True)
        sys.exit(f"error: {error}")
    except (RuntimeError, MemoryError) as error:
        reason = want_of_memory(error)
        if reason is None:
            raise
        sys.exit(f"error: {reason}; lower --train_batch_size, --resolution or --rank, or add --gradient_checkpointing")


class Distillation:
    """A run of the trainer.

    All randomness of a batch follows from the seed, its number and its process, so that a resumed run continues as an
    unbroken one would.

    Args:
        given: options, as of `parse_arguments`.
        accelerator: in place of the one that the options describe.

    Raises:
        TrainingError: the run cannot start.
    """

    def __init__(self, given: argparse.Namespace, accelerator: Accelerator | None = None) -> None:
        self.given = given
        check_packages(given)
        self.rows = load_rows(given)
        prepare_output(given)
        self.accelerator = accelerator or make_accelerator(given)
        prepare_distribution(self.accelerator, given)
        one_state = self.accelerator.distributed_type != DistributedType.FSDP
        self.checkpoints = Checkpoints(
            given.output_dir,
            given.checkpoints_total_limit,
            self.accelerator.process_index,
            self.accelerator.num_processes,
            one_state,
            self.accelerator.wait_for_everyone,
        )
        checkpoint, state = self._find_state()
        self.step = state["step"] if state else 0
        self.checkpoints.check_none_is_ahead(self.step)
        self.repository = None
        if given.push_to_hub and self.accelerator.is_main_process:
            self.repository = make_repository(given)
        if given.allow_tf32:
            torch.backends.cuda.matmul.allow_tf32 = True
        self._build_map()
        self._build_optimizer()
        self.loss = build_loss(given)
        if state:
            self._restore(checkpoint, state)

    def _build_map(self) -> None:
        given, accelerator = self.given, self.accelerator
        # Every process starts from the same LoRA.
        torch.manual_seed(given.seed)
        self.pipe = load_base(given, DTYPES[accelerator.mixed_precision]).to(accelerator.device)
        family = self.pipe.family
        self.teacher = Teacher(
            family, self.pipe.defaults, given.resolution, given.guidance_scale, given.max_sequence_length
        )
        layers = lora_layers(given, family.network_module)
        try:
            self.diamond_map = DiamondMap(family, given.rank, given.lora_alpha, layers, given.condition_on_observation)
            # What the map is going to say of itself has to be possible before it is trained.
            check_card(given.license, given.validation_prompt)
            declare_map(family, self.teacher.call_defaults, **origin(given), training=self._facts())
        except ValueError as error:
            raise TrainingError(str(error)) from error
        if given.gradient_checkpointing:
            family.network_module.enable_gradient_checkpointing()
        size = self.teacher.resolution
        mean, _ = family.encode_images(torch.zeros(1, 3, size, size))
        self.latents_shape = tuple(mean.shape[1:])

    def _build_optimizer(self) -> None:
        module = DistilledModule(self.diamond_map).to(self.accelerator.device)
        optimizer = build_optimizer(self.given, self.diamond_map.trained_parameters())
        self.module, self.optimizer = self.accelerator.prepare(module, optimizer)
        self.schedule = build_schedule(self.given, self.optimizer.optimizer)
        # Sharding replaces the parameters.
        self.parameters = self.diamond_map.trained_parameters()
        self.average = EMAModel(self.parameters, self.given.ema_decay) if self.given.ema_decay > 0 else None

    def run(self) -> None:
        """Trains, saves the map and its card, and pushes them."""
        given, accelerator = self.given, self.accelerator
        order = partial(
            Order,
            batch_size=given.train_batch_size,
            process_index=accelerator.process_index,
            num_processes=accelerator.num_processes,
            seed=given.seed,
        )
        first_batch = self.step * given.gradient_accumulation_steps
        source = open_source(
            given, self.rows, self.teacher, order, first_batch, accelerator.wait_for_everyone, self.module
        )
        self._start_trackers()
        bar = tqdm(
            total=given.max_train_steps, initial=self.step, desc="Steps", disable=not accelerator.is_local_main_process
        )
        while self.step < given.max_train_steps:
            figures = self._update(source)
            self.step += 1
            self.schedule.step()
            if self.average is not None:
                self.average.step(self.parameters)
            bar.update()
            bar.set_postfix({name: f"{value:.3g}" for name, value in figures.items()})
            with self._writing_logs():
                accelerator.log(figures, step=self.step)
            if self.step % given.checkpointing_steps == 0:
                self._save_checkpoint()
            # The last grid is that of the model card.
            if (
                given.validation_prompt is not None
                and self.step % given.validation_steps == 0
                and self.step < given.max_train_steps
            ):
                self._validate(given.validation_prompt)
        bar.close()
        self._finish()
        with self._writing_logs():
            accelerator.end_training()

    def _writing_logs(self) -> AbstractContextManager[None]:
        return writing(self.given.output_dir / self.given.logging_dir)

    def _start_trackers(self) -> None:
        if not self.accelerator.log_with:
            return
        options = {name: value for name, value in vars(self.given).items() if name != "hub_token"}
        settings = {name: value if isinstance(value, int | float) else str(value) for name, value in options.items()}
        with self._writing_logs():
            self.accelerator.init_trackers(self.given.tracker_project_name, settings)

    @differentiable_attention()
    def _update(self, source: Any) -> dict[str, float]:
        """One update of the weights; returns figures to log."""
        given, accelerator = self.given, self.accelerator
        totals: dict[str, list[Tensor]] = {}
        for micro_step in range(given.gradient_accumulation_steps):
            batch = self.step * given.gradient_accumulation_steps + micro_step
            draw = next(source)
            # Of a seed there are 64 bits.
            torch.manual_seed(((given.seed * 1_000_003 + batch) * 65_537 + accelerator.process_index) % 2**63)
            data, features = draw()
            conditions = self.teacher.conditions(features)
            with accelerator.accumulate(self.module):
                loss, parts = self.module(partial(self.loss, data=data, conditions=conditions, batch_number=batch))
                self._check("loss", loss)
                # Checkpointed blocks are evaluated again, and have to be the map's then.
                with self.diamond_map.awake() if given.gradient_checkpointing else nullcontext():
                    accelerator.backward(loss)
                if accelerator.sync_gradients:
                    norm = accelerator.clip_grad_norm_(self.parameters, given.max_grad_norm or math.inf)
                    # A scaler of gradients leaves such an update out itself.
                    if accelerator.scaler is None and isinstance(norm, Tensor):
                        self._check("norm of the gradients", full(norm))
                self.optimizer.step()
                self.optimizer.zero_grad()
            for name, value in {"loss": loss.detach(), **parts}.items():
                totals.setdefault(name, []).append(value)
        means = accelerator.reduce(torch.stack([torch.stack(values).mean() for values in totals.values()]), "mean")
        return dict(zip(totals, means.tolist(), strict=True)) | {"learning_rate": self.schedule.get_last_lr()[0]}

    def _check(self, name: str, value: Tensor) -> None:
        if not torch.isfinite(value):
            raise TrainingError(
                f"the {name} is {value.item()} at step {self.step}; lower --learning_rate or --max_grad_norm, or take "
                "--mixed_precision bf16 or no, and resume from the last checkpoint"
            )

    def _check_weights(self) -> None:
        """What the last update did to them, no loss has seen; called by all processes."""
        self._check(
            "sum of the weights", torch.stack([full(weight.detach()).sum() for weight in self.parameters]).sum()
        )

    def _decisive_options(self) -> dict[str, str]:
        """What makes a run the one that a checkpoint is of."""
        options = {name: str(value) for name, value in vars(self.given).items() if name not in MAY_CHANGE}
        machine = {name: str(getattr(self.accelerator, name)) for name in ("mixed_precision", "num_processes")}
        return {**options, **machine}

    def _save_checkpoint(self) -> None:
        self._check_weights()
        state = {
            "options": self._decisive_options(),
            "weights": dict(
                zip(self.diamond_map.weights(), [weight.detach() for weight in self.parameters], strict=True)
            ),
            "average": self.average.state_dict() if self.average is not None else None,
            "schedule": self.schedule.state_dict(),
            "scaler": self.accelerator.scaler.state_dict() if self.accelerator.scaler is not None else None,
        }
        if self.accelerator.distributed_type == DistributedType.DEEPSPEED:
            # The optimiser's state is in the engine, a part in each process.
            self.checkpoints.save(
                self.step, state, lambda folder: self.module.save_checkpoint(folder, exclude_frozen_parameters=True)
            )
        else:
            self.checkpoints.save(self.step, {**state, "optimizer": self.optimizer.state_dict()})

    def _find_state(self) -> tuple[Path | None, dict[str, Any] | None]:
        """The checkpoint to resume from and its state, if there is one."""
        name = self.given.resume_from_checkpoint
        checkpoint = None if name is None else self.checkpoints.find(name)
        if checkpoint is None:
            if name is not None:
                logger.info("there is no checkpoint in %s; starting a new run", self.given.output_dir)
            return None, None
        state = self.checkpoints.load(checkpoint)
        self.checkpoints.check_same_run(checkpoint, state, self._decisive_options())
        return checkpoint, state

    def _restore(self, checkpoint: Path, state: dict[str, Any]) -> None:
        try:
            self._load_state(checkpoint, state)
        except UNLOADABLE as error:
            raise TrainingError(f"{checkpoint} is of another run ({why_unloadable(error)}); {ANOTHER}") from error
        logger.info("resumed from %s", checkpoint)

    def _load_state(self, checkpoint: Path, state: dict[str, Any]) -> None:
        if self.accelerator.distributed_type == DistributedType.DEEPSPEED:
            self.module.load_checkpoint(checkpoint, load_module_strict=False)
        else:
            self.optimizer.load_state_dict(state["optimizer"])
        with torch.no_grad():
            for name, parameter in zip(self.diamond_map.weights(), self.parameters, strict=True):
                parameter.copy_(state["weights"][name])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
            self.average.to(self.accelerator.device)
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        # The learning rate of that step is that of this run's own schedule.
        self.schedule.load_state_dict({**state["schedule"], "base_lrs": self.schedule.base_lrs})
        self.schedule.last_epoch = self.step - 1
        self.schedule.step()

    def _validate(self, prompt: str) -> Any:
        """Draws, logs and returns the grid of the averaged weights."""
        given = self.given
        if self.average is not None:
            self.average.store(self.parameters)
            self.average.copy_to(self.parameters)
        with torch.no_grad():
            images = self.module(
                lambda diamond_map: validation_images(
                    diamond_map, self.teacher, prompt, self.latents_shape, given.num_validation_images, given.seed
                )
            )
        if self.average is not None:
            self.average.restore(self.parameters)
        grid = image_grid(images)
        with self._writing_logs():
            for tracker in self.accelerator.trackers:
                layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
                tracker.log_images({"validation": np.asarray(grid)[None]}, step=self.step, **layout)
        if self.accelerator.is_main_process:
            file = given.output_dir / "validation" / f"step-{self.step}.png"
            with whole_file(file) as partial:
                grid.save(partial, "png")
        return grid

    def _finish(self) -> None:
        """Saves the averaged map with its card, and pushes it where that is asked for."""
        given, accelerator = self.given, self.accelerator
        self._check_weights()
        prompt = given.validation_prompt
        if prompt is None:
            prompt = MINIATURE_PROMPT if given.pretrained_model_name_or_path == MINIATURE else DEFAULT_PROMPT
        samples = self._validate(prompt)
        trained = self.parameters if self.average is None else self.average.shadow_params
        weights = dict(zip(self.diamond_map.weights(), [full(weight) for weight in trained], strict=True))
        if accelerator.is_main_process:
            self._save(weights, prompt, samples)
            if given.push_to_hub:
                push(given, self.repository)
        accelerator.wait_for_everyone()

    def _save(self, weights: dict[str, Tensor], prompt: str, samples: Image.Image) -> None:
        """Writes the map and its card, which take the place of those that are there when they are complete."""
        given = self.given
        with writing(given.output_dir), staged(given.output_dir) as stage:
            save_diamond_map(
                stage.path,
                self.diamond_map,
                self.teacher.call_defaults,
                self._facts(),
                weights=weights,
                **origin(given),
            )
            repository = self.repository or str(given.output_dir)
            caption = f"Rows: {', '.join(ROWS)}."
            write_model_card(stage.path, repository, given.license, prompt, samples, caption)
        logger.info("the map is in %s", given.output_dir)

    def _facts(self) -> dict[str, Any]:
        return facts(self.given, self.step, self.teacher.resolution, self.accelerator)


def full(weight: Tensor) -> Tensor:
    """A weight in one piece, where it is sharded; called by all processes."""
    return weight.full_tensor() if isinstance(weight, DTensor) else weight


if __name__ == "__main__":
    main()

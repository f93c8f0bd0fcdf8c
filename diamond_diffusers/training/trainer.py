"""A run of the trainer, from its options to the saved map."""

from __future__ import annotations

import logging
import math
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from diffusers.training_utils import EMAModel
from torch import Tensor
from torch.distributed.tensor import DTensor
from tqdm.auto import tqdm

from ..core.attention import differentiable_attention
from ..files.foreign_models import UNLOADABLE, why_unloadable
from ..files.output import writing
from ..files.staging import staged
from ..maps.map_config import declare_map
from ..maps.storage import save_diamond_map
from ..pipelines.model_card import check_card, write_model_card
from ..pipelines.quantization import cast_layerwise
from .base_model import DTYPES, check_base_can_be_quantised, check_initial_map, load_base, new_map
from .checkpoints import ANOTHER, Checkpoints, decisive_options
from .data.batches import Order
from .data.held_out import load_split_rows
from .data.sources import Source, fill_cache, open_source
from .distribution import check_trackers, make_accelerator, prepare_distribution, start_trackers
from .errors import TrainingError
from .figures import GRADIENT_NORM, Blame, Figures, SkippedUpdates
from .grid import CAPTION
from .module import DistilledModule
from .optimisation import build_optimizer, build_schedule, check_optimizer
from .options.records import Options
from .release import Effort, facts, make_repository, origin, prepare_output, push, writing_logs
from .teacher import Teacher
from .validation import Validated, Validation, averaged, prompt_of_card

logger = logging.getLogger(__name__)


class Trainer:
    """A run of the trainer.

    All randomness of a batch follows from the seed, the number of the batch and its process, so that a resumed run
    continues as an unbroken one would.

    Args:
        options: options of the run, as from `parse_options`.
        accelerator: accelerator to use in place of the one that the options describe.

    Raises:
        TrainingError: the run cannot start.
    """

    def __init__(self, options: Options, accelerator: Accelerator | None = None) -> None:
        self.options = options
        self.loss = options.loss.build()
        check_optimizer(options.optimizer)
        check_trackers(options.logging)
        self.rows = load_split_rows(
            options.data, options.model.cache_dir, options.machine.seed, options.validation.num_held_out
        )
        prepare_output(options.output, options.logging)
        self.accelerator = accelerator or make_accelerator(options)
        prepare_distribution(self.accelerator, options, self.loss)
        check_base_can_be_quantised(options.model, self.accelerator.device)
        check_initial_map(options.map, options.model.cache_dir)
        one_state = self.accelerator.distributed_type != DistributedType.FSDP
        self.checkpoints = Checkpoints(
            options.output.output_dir,
            options.checkpoints.checkpoints_total_limit,
            self.accelerator.process_index,
            self.accelerator.num_processes,
            one_state,
            self.accelerator.wait_for_everyone,
        )
        checkpoint, state = self._find_state()
        self.step = state["step"] if state else 0
        self.checkpoints.check_none_is_ahead(self.step)
        self.repository = None
        if options.output.push_to_hub and self.accelerator.is_main_process:
            self.repository = make_repository(options.output)
        if options.machine.allow_tf32:
            torch.backends.cuda.matmul.allow_tf32 = True
        self.effort = Effort()
        self._build_map()
        if not one_state and options.preparation.keeps_rows:
            # While the base is whole: each process evaluates it at rows of its own, which shards could not.
            with self.effort.counted():
                fill_cache(options, self.rows.training, self.teacher, self._order(len(self.rows.training)))
        self._build_optimizer()
        self.validation = Validation(options, self.teacher, self.latents_shape, self.rows, self.accelerator)
        if state:
            assert checkpoint is not None, "the state is that of a checkpoint"
            self._restore(checkpoint, state)

    def _build_map(self) -> None:
        options, accelerator = self.options, self.accelerator
        # Every process starts from the same LoRA.
        torch.manual_seed(options.machine.seed)
        self.pipe = load_base(options.model, DTYPES[accelerator.mixed_precision]).to(accelerator.device)
        family = self.pipe.family
        self.teacher = Teacher(
            family,
            self.pipe.defaults,
            options.teacher.resolution,
            options.teacher.guidance_scale,
            options.teacher.max_sequence_length,
        )
        self.diamond_map = new_map(options.map, family, options.model.cache_dir)
        try:
            # What the map is going to say of itself has to be possible before it is trained.
            check_card(options.output.license, options.validation.validation_prompt)
            declare_map(family, self.teacher.call_defaults, **origin(options), training=self._facts())
        except ValueError as error:
            raise TrainingError(str(error)) from error
        if options.model.quantize == "fp8":
            # The map's own layers, which are there by now, stay as they are.
            cast_layerwise(family.network_module, DTYPES[accelerator.mixed_precision])
        size = self.teacher.resolution
        mean, _ = self.teacher.family.encode_images(torch.zeros(1, 3, size, size))
        self.latents_shape = tuple(mean.shape[1:])

    def _build_optimizer(self) -> None:
        module = DistilledModule(self.diamond_map).to(self.accelerator.device)
        is_scaled = self.accelerator.scaler is not None
        optimizer = build_optimizer(self.options.optimizer, self.diamond_map.trained_parameters(), is_scaled)
        # Before accelerate watches its steps, so that both see them.
        self.schedule = build_schedule(self.options.schedule, optimizer, self.options.updates.max_train_steps)
        self.module, self.optimizer = self.accelerator.prepare(module, optimizer)
        # Sharding replaces the parameters.
        self.parameters = self.diamond_map.trained_parameters()
        decay = self.options.updates.ema_decay
        # Torch does not copy a list of sharded weights at once.
        is_whole = not isinstance(self.parameters[0], DTensor)
        self.average = EMAModel(self.parameters, decay, foreach=is_whole) if decay > 0 else None
        self.skipped = SkippedUpdates()
        self.blame = Blame(self.options.loss.name, DTYPES[self.accelerator.mixed_precision])
        self.figures = Figures(self.blame, partial(self.accelerator.reduce, reduction="mean"))

    def run(self) -> None:
        """Trains, saves the map and its card, and pushes them."""
        updates, accelerator = self.options.updates, self.accelerator
        with self.effort.counted():
            source = self._open_source()
        with writing_logs(self.options):
            start_trackers(accelerator, self.options)
        self.validation.prepare(self.module)
        self._free_memory()
        with tqdm(
            total=updates.max_train_steps,
            initial=self.step,
            desc="Steps",
            disable=not accelerator.is_local_main_process,
        ) as bar:
            while self.step < updates.max_train_steps:
                with self.effort.counted():
                    figures = self._update(source)
                    self._follow_up()
                self.step += 1
                bar.update()
                if figures:
                    self._log(figures, bar)
                self._save_and_validate_when_due()
        self._finish()
        with writing_logs(self.options):
            accelerator.end_training()

    def _order(self, num_rows: int) -> Order:
        """The order of so many rows in this process."""
        accelerator = self.accelerator
        batch_size, seed = self.options.updates.train_batch_size, self.options.machine.seed
        return Order(num_rows, batch_size, accelerator.process_index, accelerator.num_processes, seed)

    def _open_source(self) -> Source:
        """The batches that follow those of the completed steps."""
        return open_source(
            self.options,
            self.rows.training,
            self.teacher,
            self._order,
            self.step * self.options.updates.gradient_accumulation_steps,
            self.accelerator.wait_for_everyone,
            self.module if self.loss.needs_trajectories else None,
        )

    def _free_memory(self) -> None:
        """Takes off the device what updates do not need: text encoders if rows are kept, and the autoencoder.

        That decodes for validation alone, after which it is called again.
        """
        options = self.options
        if options.preparation.keeps_rows:
            self.teacher.drop_text_encoders([prompt_of_card(options)])
        if options.preparation.keeps_rows or options.learns_from_samples:
            self.teacher.park_autoencoder()

    def _save_and_validate_when_due(self) -> None:
        if self.step % self.options.checkpoints.checkpointing_steps == 0:
            self._save_checkpoint()
        validation = self.options.validation
        # The last grid is that of the model card.
        is_last = self.step >= self.options.updates.max_train_steps
        if validation.is_wanted and self.step % validation.validation_steps == 0 and not is_last:
            self._validate(validation.validation_prompt)
            self._free_memory()

    def _log(self, figures: dict[str, float], bar: tqdm) -> None:
        """Shows and logs the figures of the updates up to this step."""
        figures = {**figures, "learning_rate": self.schedule.get_last_lr()[0]}
        if self.accelerator.scaler is not None:
            figures["skipped_updates"] = self.skipped.total
        bar.set_postfix({name: f"{value:.3g}" for name, value in figures.items()})
        with writing_logs(self.options):
            self.accelerator.log(figures, step=self.step)

    @differentiable_attention()
    def _update(self, source: Any) -> dict[str, float]:
        """One update of the weights; returns the figures to log, of all updates since the last that returned some.

        To read them waits for the device, and nothing else does. They are read before the update is applied, which it
        then is not if it is no number.
        """
        options, accelerator = self.options, self.accelerator
        figures: dict[str, float] = {}
        for micro_step in range(options.updates.gradient_accumulation_steps):
            batch = self.step * options.updates.gradient_accumulation_steps + micro_step
            draw = next(source)
            # Of a seed there are 64 bits.
            torch.manual_seed(((options.machine.seed * 1_000_003 + batch) * 65_537 + accelerator.process_index) % 2**63)
            data, features = draw()
            conditions = self.teacher.conditions(features)
            with accelerator.accumulate(self.module):
                # Checkpointed blocks are evaluated again as they were, with the map and the weights of then.
                with self.pipe.family.evaluating_network(options.machine.gradient_checkpointing):
                    loss, parts = self.module(partial(self.loss, data=data, conditions=conditions, batch_number=batch))
                self.figures.add(self.step, {"loss": loss.detach(), **parts})
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    norm = accelerator.clip_grad_norm_(self.parameters, options.updates.max_grad_norm or math.inf)
                    # A scaler of gradients leaves such an update out itself.
                    if accelerator.scaler is None and isinstance(norm, Tensor):
                        self.figures.add(self.step, {GRADIENT_NORM: full(norm)})
                    if self._is_read:
                        figures = self.figures.read()
                self.optimizer.step()
                self.optimizer.zero_grad()
        return figures

    @property
    def _is_read(self) -> bool:
        """Whether figures are read in the update at hand: to be logged, and before anything is saved or drawn."""
        number, options = self.step + 1, self.options
        intervals = [options.logging.logging_steps, options.checkpoints.checkpointing_steps]
        if options.validation.is_wanted:
            intervals.append(options.validation.validation_steps)
        return any(number % interval == 0 for interval in intervals) or number >= options.updates.max_train_steps

    def _follow_up(self) -> None:
        """Moves the learning rate and the average on after an update, unless a scaler of gradients has skipped it."""
        self.skipped.count(self.optimizer.step_was_skipped)
        if self.skipped.are_too_many:
            # A loss that is no number itself is told by its name.
            self.figures.read()
            scale = self.accelerator.scaler.get_scale() if self.accelerator.scaler is not None else 1
            raise self.blame.always_skipped(self.skipped.in_a_row, self.step, scale)
        if self.skipped.in_a_row == 0:
            self.schedule.step()
            if self.average is not None:
                self.average.step(self.parameters)

    def _check_weights(self) -> None:
        """Checks the weights after the last update, which no loss has seen; called by all processes."""
        total = torch.stack([full(weight.detach()).sum() for weight in self.parameters]).sum().item()
        if not math.isfinite(total):
            raise self.blame.not_finite("sum of the weights", total, self.step)

    def _save_checkpoint(self) -> None:
        self._check_weights()
        state = {
            "options": decisive_options(self.options, self.accelerator, self.rows.num_taken),
            "weights": dict(
                zip(self.diamond_map.weights(), [weight.detach() for weight in self.parameters], strict=True)
            ),
            "average": self.average.state_dict() if self.average is not None else None,
            "schedule": self.schedule.state_dict(),
            "scaler": self.accelerator.scaler.state_dict() if self.accelerator.scaler is not None else None,
            "skipped": asdict(self.skipped),
            "seconds": self.effort.seconds,
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
        name = self.options.checkpoints.resume_from_checkpoint
        checkpoint = None if name is None else self.checkpoints.find(name)
        if checkpoint is None:
            if name is not None:
                logger.info("there is no checkpoint in %s; starting a new run", self.options.output.output_dir)
            return None, None
        state = self.checkpoints.load(checkpoint)
        self.checkpoints.check_same_run(
            checkpoint, state, decisive_options(self.options, self.accelerator, self.rows.num_taken)
        )
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
        self.skipped = SkippedUpdates(**state["skipped"])
        # Beside what this part has spent on rows that were missing.
        self.effort.seconds += state.get("seconds", 0.0)
        # The learning rate of that step is that of this run's own schedule.
        self.schedule.load_state_dict({**state["schedule"], "base_lrs": self.schedule.base_lrs})
        self.schedule.last_epoch -= 1
        self.schedule.step()

    def _validate(self, prompt: str | None) -> Validated:
        """Validates the averaged weights."""
        with torch.no_grad(), averaged(self.average, self.parameters):
            return self.validation(self.module, self.step, prompt)

    def _finish(self) -> None:
        """Saves the averaged map with its card, and pushes it if the options say so."""
        options, accelerator = self.options, self.accelerator
        self._check_weights()
        prompt = prompt_of_card(options)
        validated = self._validate(prompt)
        trained = self.parameters if self.average is None else self.average.shadow_params
        weights = dict(zip(self.diamond_map.weights(), [full(weight) for weight in trained], strict=True))
        if accelerator.is_main_process:
            self._save(weights, prompt, validated)
            if options.output.push_to_hub:
                assert self.repository is not None, "it was made before training"
                push(options.output, self.repository)
        accelerator.wait_for_everyone()

    def _save(self, weights: dict[str, Tensor], prompt: str, validated: Validated) -> None:
        """Writes the map and its card; when they are complete, they replace the former ones."""
        options = self.options
        with writing(options.output.output_dir), staged(options.output.output_dir) as stage:
            save_diamond_map(
                stage.path,
                self.diamond_map,
                self.teacher.call_defaults,
                self._facts(validated),
                weights=weights,
                **origin(options),
            )
            repository = self.repository or str(options.output.output_dir)
            write_model_card(stage.path, repository, options.output.license, prompt, validated.grid, CAPTION)
        logger.info("the map is in %s", options.output.output_dir)

    def _facts(self, validated: Validated | None = None) -> dict[str, Any]:
        known = facts(self.options, self.loss, self.step, self.teacher.resolution, self.accelerator)
        known |= {"rank": self.diamond_map.rank, "condition_on_observation": self.diamond_map.condition_on_observation}
        known |= self.effort.facts(self.rows, self.accelerator)
        return known if validated is None else {**known, **validated.facts()}


def full(weight: Tensor) -> Tensor:
    """A weight in one piece, even if it is sharded; called by all processes."""
    return weight.full_tensor() if isinstance(weight, DTensor) else weight

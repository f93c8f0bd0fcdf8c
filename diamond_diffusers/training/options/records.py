"""The options of the trainer, one record for each part of it, under the names that diffusers' training scripts use."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..losses import LOSSES
from .fields import Option, above_zero, at_least, below_one, option, options_of, share

if TYPE_CHECKING:
    from ..data.trajectories import TrajectoryDraws
    from ..losses.base import DistillationLoss

MINIATURE = "miniature"
"""Names the embedded model, and the world that it draws."""

DEFAULT_WARMUP_STEPS = 100


@dataclass(frozen=True)
class ModelOptions:
    """The base model."""

    pretrained_model_name_or_path: str | None = option(
        None, "Base model: a folder, a repository on the Hub, or 'miniature' for the embedded one."
    )
    revision: str | None = option(None, "Revision of the base on the Hub.")
    variant: str | None = option(None, "Variant of the base's weight files, such as fp16.")
    cache_dir: str | None = option(None, "Folder that downloads are kept in.", may_change=True)
    quantize: Literal["nf4", "int8", "fp8"] | None = option(
        None,
        "Form of the frozen base: nf4 (bitsandbytes) or int8 (torchao) of the network and the large text encoders; "
        "fp8: the network's weights as they are stored, each cast while it is used.",
    )

    @property
    def is_miniature(self) -> bool:
        return self.pretrained_model_name_or_path == MINIATURE


@dataclass(frozen=True)
class DataOptions:
    """Images with captions, or prompts."""

    dataset_name: str | None = option(
        None,
        "A dataset for `datasets`, local or on the Hub, or 'miniature' for scenes of the embedded model's world.",
        names_data=True,
    )
    dataset_config_name: str | None = option(None, "Configuration of the dataset.")
    dataset_split: str = option("train", "Split of the dataset.")
    train_data_dir: Path | None = option(  # noqa: RUF009
        None, "Folder of images with metadata.jsonl, metadata.csv or .txt captions.", names_data=True
    )
    prompts_file: Path | None = option(  # noqa: RUF009
        None, "File of prompts, one a line, for a run on samples of the teacher.", names_data=True
    )
    streaming: bool = option(False, "Read the dataset as it is downloaded.")
    shuffle_buffer_size: int = option(1000, "Rows that a streamed dataset is shuffled among.", check=at_least(1))
    image_column: str = option("image", "Column of the dataset that holds the images.")
    caption_column: str = option("text", "Column of the dataset or of the metadata that holds the captions.")
    max_train_samples: int | None = option(None, "Use the first so many rows only.", check=at_least(1))

    @property
    def has_images(self) -> bool:
        """Whether the options name a dataset or a folder."""
        return self.dataset_name is not None or self.train_data_dir is not None

    @property
    def is_a_dataset(self) -> bool:
        """Whether the rows are those of a dataset for `datasets`."""
        return self.dataset_name not in (None, MINIATURE)


@dataclass(frozen=True)
class PreparationOptions:
    """How rows become clean latents."""

    teacher_samples: bool = option(False, "Train on samples that the teacher draws, instead of on the images.")
    teacher_num_inference_steps: int = option(20, "Steps of one sample of the teacher.", check=at_least(1, 10_000))
    center_crop: bool = option(False, "Crop images at the centre instead of at random.")
    random_flip: bool = option(False, "Mirror half of the images.")
    cache_latents: bool = option(
        False, "Encode images and captions once, or draw the teacher's samples once, into the output folder."
    )
    cache_trajectories: bool = option(
        False, "Run the teacher's inner flow once for each image or sample, for --loss trajectories."
    )
    num_trajectories: int = option(
        2, "Trajectories of the teacher for each row, with --loss trajectories.", check=at_least(2, 64)
    )
    cache_dtype: Literal["float32", "float16", "bfloat16"] = option(
        "float32", "Floating-point type of cached latents and trajectories; half precision halves their size."
    )
    cache_location: Literal["auto", "device", "disk"] = option(
        "auto",
        "Where training reads cached rows: the memory of its device, or the files; auto is an accelerator's memory "
        "where they fill at most half of what is free.",
        may_change=True,
    )
    teacher_batch_size: int | None = option(
        None,
        "Rows that the teacher evaluates at once for a cache, halved where memory runs out; by default as many as "
        "memory holds.",
        check=at_least(1, 65_536),
        may_change=True,
    )
    dataloader_num_workers: int = option(
        0, "Processes that read images or cached rows ahead.", check=at_least(0, 1024), may_change=True
    )

    @property
    def keeps_rows(self) -> bool:
        """Whether latents or trajectories are computed once and kept in files."""
        return self.cache_latents or self.cache_trajectories


@dataclass(frozen=True)
class TeacherOptions:
    """The base as a teacher."""

    guidance_scale: float = option(
        3.0,
        "Guidance of the teacher, which is baked into the map.",
        check=above_zero("and is 1 without guidance"),
    )
    resolution: int | None = option(
        None, "Side of the square images in pixels; by default the base's own.", check=at_least(8, 16_384)
    )
    max_sequence_length: int | None = option(
        None, "Length of the prompts in tokens, where the base has that argument.", check=at_least(1, 65_536)
    )


@dataclass(frozen=True)
class LossOptions:
    """The loss that is minimised. All options except the first two are fields of the losses that use them."""

    name: str = option("lagrangian", "Loss that the map learns its steps by.", flag="loss", choices=LOSSES.names)
    modules: str | None = option(
        None,
        "Python files or modules, comma-separated, that are imported first: for losses of your own, which "
        "register_loss names.",
        flag="import",
        may_change=True,
    )
    diagonal_fraction: float = option(
        0.75, "Share of the rows that learn the velocity; not with --loss trajectories.", check=share
    )
    regression_weight: float = option(
        0.05, "Weight of the regression beside the energy score, with --loss trajectories.", check=at_least(0)
    )
    pure_noise_share: float = option(
        0.1, "Share of the rows that are observed at pure noise, where every run begins.", check=share
    )
    adaptive_weight_power: float = option(
        0.0, "p of the rows' weights 1 / (loss + 0.01)^p, which are all 1 for p = 0.", check=at_least(0)
    )

    def taken_by(self, loss: type) -> dict[str, float]:
        """The options among these for which a class of losses has fields."""
        known = {described.name for described in fields(loss)}
        return {name: value for name, value in vars(self).items() if name in known - {"name", "modules"}}

    def build(self) -> DistillationLoss:
        """Makes the loss, and imports its file.

        Raises:
            ValueError: there is no loss of that name.
        """
        loss = LOSSES.get(self.name, "--loss")
        return loss(**self.taken_by(loss))


@dataclass(frozen=True)
class MapOptions:
    """The Diamond Map itself."""

    rank: int = option(64, "Rank of the LoRA.", check=at_least(1, 65_536))
    lora_alpha: float | None = option(
        None,
        "Scale of the LoRA; by default its rank.",
        check=above_zero("since the LoRA is multiplied by it"),
    )
    lora_layers: str | None = option(
        None, "Names or endings of the adapted modules, comma-separated; by default every linear layer in a block."
    )
    condition_on_observation: bool = option(False, "Tell the network the noisy image itself too.")
    initial_map: str | None = option(
        None, "Diamond Map that training begins with, a folder or a repository; its rank and layers are taken."
    )


@dataclass(frozen=True)
class OptimizerOptions:
    """The optimiser."""

    optimizer: Literal["adamw", "prodigy"] = option(
        "adamw", "Optimiser; prodigy is that of the package prodigyopt.", convert=str.lower
    )
    use_8bit_adam: bool = option(False, "Take AdamW of the package bitsandbytes.")
    learning_rate: float = option(1e-4, "Learning rate where it is highest.", check=at_least(0), may_change=True)
    adam_beta1: float = option(0.9, "Decay of the mean of the gradients, for both optimisers.", check=below_one)
    adam_beta2: float = option(0.999, "Decay of the mean of their squares, for both optimisers.", check=below_one)
    adam_weight_decay: float = option(0.0, "Weight decay, for both optimisers.", check=at_least(0))
    adam_epsilon: float = option(
        1e-8,
        "Term that keeps updates finite, for both optimisers.",
        check=above_zero("since a map's gradients begin at 0"),
    )


@dataclass(frozen=True)
class ScheduleOptions:
    """The learning rate over the updates."""

    lr_scheduler: Literal[
        "linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup"
    ] = option("constant_with_warmup", "Schedule of the learning rate, one of diffusers'.", may_change=True)
    lr_warmup_steps: int | None = option(
        None,
        f"Updates that the rate rises for; {DEFAULT_WARMUP_STEPS} where the schedule has a warm-up.",
        check=at_least(0),
        may_change=True,
    )
    lr_num_cycles: int = option(1, "Cycles of cosine_with_restarts.", check=at_least(1), may_change=True)
    lr_power: float = option(1.0, "Power of polynomial.", check=at_least(0), may_change=True)

    @property
    def warmup_steps(self) -> int:
        return DEFAULT_WARMUP_STEPS if self.lr_warmup_steps is None else self.lr_warmup_steps


@dataclass(frozen=True)
class UpdateOptions:
    """The updates of the weights."""

    train_batch_size: int = option(4, "Rows of one process in one forward pass.", check=at_least(1, 65_536))
    gradient_accumulation_steps: int = option(1, "Batches of one update.", check=at_least(1))
    max_train_steps: int = option(1000, "Updates of the weights.", check=at_least(1), may_change=True)
    max_grad_norm: float = option(
        1.0, "Norm that gradients are clipped to; 0 for no clipping.", check=at_least(0), may_change=True
    )
    ema_decay: float = option(
        0.9999, "Decay of the averaged weights, which are those that are saved; 0 for no average.", check=share
    )

    @property
    def num_batches(self) -> int:
        """Batches of one process in the whole run."""
        return self.max_train_steps * self.gradient_accumulation_steps


@dataclass(frozen=True)
class MachineOptions:
    """The machine that a run uses."""

    mixed_precision: Literal["no", "fp16", "bf16"] | None = option(
        None, "Precision of the base; by default as accelerate is configured."
    )
    allow_tf32: bool = option(False, "Multiply in TF32, which is quicker on NVIDIA Ampere and later.", may_change=True)
    gradient_checkpointing: bool = option(
        False, "Save memory by evaluating blocks again; not with the lagrangian loss.", may_change=True
    )
    seed: int = option(0, "Seed of all that is random.", check=at_least(0, 2**32 - 1))


@dataclass(frozen=True)
class CheckpointOptions:
    """Checkpoints, and resuming from them."""

    checkpointing_steps: int = option(
        500, "Updates from one checkpoint to the next.", check=at_least(1), may_change=True
    )
    checkpoints_total_limit: int | None = option(
        None, "Checkpoints that are kept; by default all.", check=at_least(1), may_change=True
    )
    resume_from_checkpoint: str | None = option(
        None, "Checkpoint to go on from: a folder, or 'latest'.", may_change=True
    )


@dataclass(frozen=True)
class LoggingOptions:
    """Trackers, and what they are told."""

    logging_dir: str = option("logs", "Folder of the trackers, inside the output folder.", may_change=True)
    report_to: str = option(
        "tensorboard",
        "Trackers: tensorboard, wandb, none, or several, comma-separated.",
        may_change=True,
        convert=lambda names: ",".join(name.strip() for name in names.split(",")),
    )
    tracker_project_name: str = option("diamond-map", "Name of the project in the trackers.", may_change=True)
    logging_steps: int = option(
        10,
        "Updates from one reading of the losses to the next, which logs their means and stops a run that is not "
        "finite.",
        check=at_least(1),
        may_change=True,
    )

    @property
    def trackers(self) -> list[str]:
        return [name for name in self.report_to.split(",") if name != "none"]


@dataclass(frozen=True)
class ValidationOptions:
    """Images and figures that show the progress of the map."""

    validation_prompt: str | None = option(
        None, "Prompt that is drawn while training and for the model card.", may_change=True
    )
    num_validation_images: int = option(4, "Images in a row of the grid.", check=at_least(1, 1024), may_change=True)
    validation_metrics: bool = option(
        False,
        "Compare the look-aheads of the map with those of the teacher's GLASS on held-out rows, while training and for "
        "the model card.",
        may_change=True,
    )
    num_validation_observations: int = option(
        16, "Rows that are held out for the comparison.", check=at_least(2, 65_536), may_change=True
    )
    num_validation_samples: int = option(
        16,
        "Look-aheads of each of these rows, at each of five noise levels.",
        check=at_least(2, 65_536),
        may_change=True,
    )
    validation_steps: int = option(
        500, "Updates from one grid and comparison to the next.", check=at_least(1), may_change=True
    )

    @property
    def is_wanted(self) -> bool:
        """Whether anything is to be shown while the map is trained."""
        return self.validation_metrics or self.validation_prompt is not None

    @property
    def num_held_out(self) -> int:
        """Rows that training does not see."""
        return self.num_validation_observations if self.validation_metrics else 0


@dataclass(frozen=True)
class OutputOptions:
    """The finished map."""

    output_dir: Path = option(  # noqa: RUF009
        Path("diamond-map"), "Folder that the map and the checkpoints are saved in.", may_change=True
    )
    push_to_hub: bool = option(False, "Upload the map and its card.", may_change=True)
    hub_model_id: str | None = option(
        None, "Repository of the upload; by default the name of the output folder.", may_change=True
    )
    hub_token: str | None = option(None, "Token of the upload; by default that of hf auth login.", may_change=True)
    license: str = option("other", "Licence of the map in its model card, as the Hub names it.", may_change=True)


@dataclass(frozen=True)
class Options:
    """All options of a run. Each part of the trainer takes its own record.

    Example:
        >>> options = Options(map=MapOptions(rank=8))
        >>> options.map.rank, options.by_flag()["rank"]
        (8, 8)
    """

    model: ModelOptions = field(default_factory=ModelOptions)
    data: DataOptions = field(default_factory=DataOptions)
    preparation: PreparationOptions = field(default_factory=PreparationOptions)
    teacher: TeacherOptions = field(default_factory=TeacherOptions)
    loss: LossOptions = field(default_factory=LossOptions)
    map: MapOptions = field(default_factory=MapOptions)
    optimizer: OptimizerOptions = field(default_factory=OptimizerOptions)
    schedule: ScheduleOptions = field(default_factory=ScheduleOptions)
    updates: UpdateOptions = field(default_factory=UpdateOptions)
    machine: MachineOptions = field(default_factory=MachineOptions)
    checkpoints: CheckpointOptions = field(default_factory=CheckpointOptions)
    logging: LoggingOptions = field(default_factory=LoggingOptions)
    validation: ValidationOptions = field(default_factory=ValidationOptions)
    output: OutputOptions = field(default_factory=OutputOptions)

    @property
    def trajectory_draws(self) -> TrajectoryDraws:
        """What is drawn of each row, where trajectories are."""
        from ..data.trajectories import TrajectoryDraws

        return TrajectoryDraws(self.preparation.num_trajectories, self.loss.pure_noise_share)

    @property
    def learns_from_samples(self) -> bool:
        """Whether the clean latents are samples that the teacher draws."""
        return self.preparation.teacher_samples or self.data.prompts_file is not None

    def values(self) -> Iterator[tuple[Option, Any]]:
        """Every option with its value."""
        for part in fields(self):
            record = getattr(self, part.name)
            for described in options_of(type(record)):
                yield described, getattr(record, described.name)

    def by_flag(self) -> dict[str, Any]:
        """The values by their names on the command line."""
        return {described.flag: value for described, value in self.values()}


RECORDS: dict[str, type] = {part.name: part.default_factory for part in fields(Options)}  # type: ignore[misc]
"""The record of each part."""

"""The base class of model families."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from copy import copy
from os import PathLike
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from ..core.levels import GaussianPath, Level, as_level
from ..core.model import Conditions
from ..core.tensors import to_unit_range, where_rows
from ..transitions.base import Transition
from .compat import adapters_disabled, alone_with, compute_dtype, execution_device
from .differentiation import EvaluatedParts, decoded
from .loop_tensors import LoopTensors
from .lora_files import read_lora
from .posterior_map import PosteriorMap
from .schedules import is_variance_exploding, samples_few_steps, stock_levels, stock_transition


class Family(LoopTensors, EvaluatedParts):
    """A model family: the adapter that makes stock diffusers pipelines of one class models of this package.

    A family is one file, whose class derives from `FlowMatchingFamily` or `DiscreteTimeFamily` (or from this class) and
    is registered with `register_family`.

    Args:
        pipeline: the stock pipeline; read, never changed.

    Attributes:
        name: name of the family, in a saved model's configuration.
        pipeline_class: class of its pipelines if that is no class of diffusers, so that they are loaded by name; else
            None.
        network_name: the component of the pipeline that predicts.
        refused_arguments: keywords of the stock `__call__` that the family does not support, with the reason.
        arguments_with_none: keywords of the stock `__call__` for which None is not the default but a value of its own.
        few_step_checkpoints: names of published few-step checkpoints whose configuration does not show it.
        latents_dtype: dtype of the initial latents; None for that of the prompt's features.
        few_step: whether the checkpoint is a few-step model, or the names of the LoRA adapters that make it one. None
            decides by its configuration, by how its scheduler samples, and by its name, in this order.
        preview_vae: a smaller decoder of the same latents (`AutoencoderTiny`) for look-aheads.
        score_model: another model of the same latents that gives the posterior mean in place of this one.
        posterior_map: the Diamond Map around this model's network.
    """

    name: str
    pipeline_class: ClassVar[type[Any] | None] = None
    network_name: ClassVar[str] = "transformer"
    refused_arguments: ClassVar[dict[str, str]] = {}
    arguments_with_none: ClassVar[tuple[str, ...]] = ()
    few_step_checkpoints: ClassVar[tuple[str, ...]] = ()
    latents_dtype: ClassVar[torch.dtype | None] = None

    def __init__(self, pipeline: Any) -> None:
        self.pipeline = pipeline
        self.few_step: bool | tuple[str, ...] | None = None
        self.preview_vae: Any = None
        self.score_model: Family | None = None
        self.posterior_map: PosteriorMap | None = None
        self._device: torch.device | None = None
        self._is_few_step: bool | None = None
        self._evaluated_parts = {}

    @property
    @abstractmethod
    def path(self) -> GaussianPath:
        """The Gaussian path that the network was trained on."""

    @property
    def network_module(self) -> Any:
        """The network."""
        return getattr(self.pipeline, self.network_name)

    @property
    def is_few_step(self) -> bool:
        """Whether the loaded model is a few-step one: a flow map, not a denoiser."""
        if self._is_few_step is not None:
            return self._is_few_step
        if self.few_step is not None:
            return bool(self.few_step)
        configured = self.is_configured_few_step
        if configured or samples_few_steps(self.pipeline.scheduler):
            return True
        return configured is None and not self.checkpoint_names.isdisjoint(self.few_step_checkpoints)

    @property
    def is_configured_few_step(self) -> bool | None:
        """Whether the checkpoint is a few-step one by its configuration, not its name; None if that does not tell."""
        return self.pipeline.config.get("is_distilled")

    @property
    def checkpoint_names(self) -> set[str]:
        """Possible names of the checkpoint: the folders that it was loaded from, those of the Hub's cache included."""
        folders = str(self.pipeline.config.get("_name_or_path", "")).lower().replace("\\", "/").split("/")
        return {folder.rsplit("--", 1)[-1] for folder in folders}

    @property
    def device(self) -> torch.device:
        """The device on which the pipeline computes, also while its components are offloaded."""
        return self._device or execution_device(self.pipeline)

    @property
    def has_flow_map(self) -> bool:
        return self.is_few_step

    @property
    def predicts_mean(self) -> bool:
        return not self.is_few_step

    @property
    def has_denoiser(self) -> bool:
        return not self.is_few_step or isinstance(self.few_step, tuple) or self.score_model is not None

    @property
    def has_diamond_map(self) -> bool:
        return self.posterior_map is not None

    def diamond_map(
        self, xbar: Tensor, s: Level, r: Level, x: Tensor, noise_to_signal: Level, conditions: Conditions
    ) -> Tensor:
        if self.posterior_map is None:
            return super().diamond_map(xbar, s, r, x, noise_to_signal, conditions)
        return self.posterior_map(xbar, s, r, x, noise_to_signal, conditions)

    def load_lora_weights(self, source: str | PathLike[str] | dict[str, Tensor], **options: Any) -> None:
        """Loads a LoRA into the stock pipeline as its own method does.

        Raises:
            AttributeError: stock diffusers has no LoRA loader for the pipeline.
            ValueError: the LoRA is for modules that the network does not have, which stock diffusers would ignore; or
                as in `read_lora`.
        """
        if not hasattr(self.pipeline, "load_lora_weights"):
            raise AttributeError(
                f"stock diffusers has no LoRA loader for {type(self.pipeline).__name__}; add an adapter with "
                f"peft.inject_adapter_in_model(config, pipe.{self.network_name})"
            )
        modules = dict(self.network_module.named_modules())
        prefix = f"{self.network_name}."
        for key in self.lora_keys(source, options):
            module, _, rest = key.removeprefix(prefix).partition(".lora_")
            if key.startswith(prefix) and rest.startswith(("A.", "B.")) and module not in modules:
                raise ValueError(
                    f"the LoRA holds weights for {module!r}, which this "
                    f"{type(self.network_module).__name__} does not have; it was made for another model"
                )
        self.pipeline.load_lora_weights(source, **options)

    def unload_lora_weights(self, **options: Any) -> None:
        """Removes every LoRA, but not a Diamond Map; the base is then, bit for bit, as before they were loaded."""
        with self.posterior_map.away() if self.posterior_map is not None else nullcontext():
            self.pipeline.unload_lora_weights(**options)
        if isinstance(self.few_step, tuple):
            self.few_step = None

    def lora_keys(self, source: str | PathLike[str] | dict[str, Tensor], options: Mapping[str, Any]) -> list[str]:
        """The names of a LoRA's weights; errors as in `read_lora`."""
        reading = {name: value for name, value in options.items() if name != "adapter_name"}
        return list(read_lora(self.pipeline, dict(source) if isinstance(source, dict) else source, **reading))

    def for_call(self, arguments: Mapping[str, Any]) -> Self:
        """This model with a state of its own for one call; the components are shared.

        Whatever the stock `__call__` keeps in its pipeline or its scheduler is then kept in copies of them, so that
        calls which overlap, in threads or in turns, do not see each other's.

        Args:
            arguments: as of `encode`; those that decide how the model samples are read here.

        Raises:
            ValueError: the scheduler is not one that the model can be sampled with.
        """
        own = copy(self)
        # Stock pipelines look through all of their modules to find the device, and steps ask for both many times.
        own._device, own._is_few_step = self.device, self.is_few_step
        own._evaluated_parts = {}
        for module in (self.network_module, self.decoder(False), self.decoder(True)):
            # What torch.compile wraps around a module has no truth value.
            if module is not None:
                compute_dtype(module, looks_again=True)
        own.pipeline = copy(self.pipeline)
        own.pipeline.scheduler = copy(self.pipeline.scheduler)
        return own

    @contextmanager
    def calling(self) -> Iterator[None]:
        """Surrounds a call: what it changes in components belongs here, and has to bear calls that overlap."""
        yield

    def check_alignable(self) -> None:
        """Raises a `ValueError` where the stock pipeline samples in a way that cannot be aligned."""

    @abstractmethod
    def encode(self, arguments: Mapping[str, Any]) -> Conditions:
        """Checks the arguments of the stock `__call__` as the stock pipeline does, and encodes its prompts.

        Args:
            arguments: every keyword of the stock `__call__`, with defaults filled in.

        Returns:
            Conditions with a row for each image: `num_images_per_prompt` consecutive ones of each prompt.
        """

    def remember(self, arguments: Mapping[str, Any], *names: str) -> None:
        """Keeps arguments where the stock `__call__` does, since methods and properties of its pipeline read them."""
        for name in names:
            setattr(self.pipeline, f"_{name}", arguments[name])

    def image_size(self, arguments: Mapping[str, Any]) -> tuple[int, int]:
        """Height and width in pixels, as given or the stock pipeline's own."""
        default = self.pipeline.default_sample_size * self.pipeline.vae_scale_factor
        return arguments["height"] or default, arguments["width"] or default

    def size_multiple(self, arguments: Mapping[str, Any]) -> int:
        """What height and width have to be multiples of in the stock pipeline; 1 where it takes any, or rounds them."""
        return 1

    def check_size(self, arguments: Mapping[str, Any]) -> None:
        """Raises a `ValueError` for a height or a width that the stock pipeline cannot sample."""
        multiple, name = self.size_multiple(arguments), type(self.pipeline).__name__
        for side in ("height", "width"):
            size = arguments.get(side)
            if size is not None and size % multiple:
                below, above = size - size % multiple, size - size % multiple + multiple
                nearest = f"{below} or {above}" if below else str(above)
                raise ValueError(f"{side} is {size}; give a multiple of {multiple} to {name}, such as {nearest}")

    def fitting_defaults(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Defaults of the stock `__call__` in place of those that it refuses beside the arguments that are given."""
        return {}

    @property
    def num_latent_channels(self) -> int:
        """Channels of the latents before they are packed."""
        return self.network_module.config.in_channels

    def prepare_latents(
        self,
        arguments: Mapping[str, Any],
        conditions: Conditions,
        num_rows: int,
        generator: torch.Generator | list[torch.Generator] | None,
        latents: Tensor | None = None,
    ) -> Tensor:
        """The stock pipeline's initial latents `[num_rows, ...]` in its own scale, drawn or made of given noise."""
        features = conditions.features["encoder_hidden_states"]
        prepared = self.pipeline.prepare_latents(
            num_rows,
            self.num_latent_channels,
            conditions.shared["height"],
            conditions.shared["width"],
            self.latents_dtype or features.dtype,
            features.device,
            generator,
            latents,
        )
        # Some return the positions of their tokens too.
        return prepared[0] if isinstance(prepared, tuple) else prepared

    @abstractmethod
    def set_timesteps(self, arguments: Mapping[str, Any], conditions: Conditions) -> None:
        """Sets the stock scheduler's timesteps as the stock pipeline does."""

    def levels(self, arguments: Mapping[str, Any], conditions: Conditions) -> list[float]:
        """Falling noise-to-signal ratios of a run, first to last, from the stock scheduler."""
        self.set_timesteps(arguments, conditions)
        return stock_levels(self.pipeline.scheduler)

    @abstractmethod
    def timestep(self, noise_to_signal: Level) -> Tensor:
        """The stock timestep of a level, `[]` or `[B]`, float64."""

    def from_stock(self, latents: Tensor, noise_to_signal: float) -> Tensor:
        """Latents of the stock loop, converted to the bounded coordinate."""
        if is_variance_exploding(self.pipeline.scheduler):
            return latents / (1 + noise_to_signal**2) ** 0.5
        return self.path.to_bounded(latents, self.path.time(noise_to_signal))

    def to_stock(self, x: Tensor, noise_to_signal: float) -> Tensor:
        """Observations in the bounded coordinate, converted to latents of the stock loop."""
        if is_variance_exploding(self.pipeline.scheduler):
            return x * (1 + noise_to_signal**2) ** 0.5
        return self.path.from_bounded(x, self.path.time(noise_to_signal))

    @abstractmethod
    def network(
        self, latents: Tensor, noise_to_signal: Tensor, features: Mapping[str, Tensor], shared: Mapping[str, Any]
    ) -> Tensor:
        """The prediction of the network.

        Args:
            latents: `[N, ...]` in the scale of `path` and the dtype of the network.
            noise_to_signal: `[N]` float64, on the CPU.
            features: features of the prompts, or of the negative prompts, `N` rows.
            shared: the conditions' values that all rows share.

            Returns:
                The prediction `[N, ...]`, of the kind that belongs to `path`.
        """

    def guide(self, positive: Tensor, negative: Tensor, noise_to_signal: Tensor, conditions: Conditions) -> Tensor:
        """Classifier-free guidance (arXiv 2207.12598) of predictions `[N, ...]`; some families have their own rule."""
        return negative + conditions.classifier_free_guidance_scale * (positive - negative)

    def is_guided(self, noise_to_signal: Level, conditions: Conditions) -> Tensor:
        """Whether there is classifier-free guidance at levels `[]` or `[N]`; some families truncate it."""
        return torch.ones_like(as_level(noise_to_signal), dtype=torch.bool)

    def evaluations_per_row(self, noise_to_signal: Level, conditions: Conditions) -> int:
        is_guided = conditions.negative_features is not None and self.is_guided(noise_to_signal, conditions).any()
        return 2 if is_guided else 1

    def guided_prediction(self, latents: Tensor, noise_to_signal: Tensor, conditions: Conditions) -> Tensor:
        """The network's prediction under the family's guidance rule; arguments as in `network`."""
        if self.evaluations_per_row(noise_to_signal, conditions) == 1:
            return self.network(latents, noise_to_signal, conditions.features, conditions.shared)
        positive, negative = self.both_predictions(latents, noise_to_signal, conditions)
        guided = self.guide(positive, negative, noise_to_signal, conditions)
        is_guided = self.is_guided(noise_to_signal, conditions)
        return guided if is_guided.all() else where_rows(is_guided, guided, positive)

    def both_predictions(
        self, latents: Tensor, noise_to_signal: Tensor, conditions: Conditions
    ) -> tuple[Tensor, Tensor]:
        """The network's predictions for the prompts and for the negative prompts; arguments as in `network`.

        Raises:
            ValueError: the conditions have no negative prompts.
        """
        shared, positive, negative = conditions.shared, conditions.features, conditions.negative_features
        if negative is None:
            raise ValueError("negative_features is None; encode the prompts with classifier-free guidance")
        if all(positive[name].shape == negative[name].shape for name in positive):
            both = {name: torch.cat([feature, negative[name]]) for name, feature in positive.items()}
            predictions = self.network(
                latents.repeat(2, *[1] * (latents.ndim - 1)), noise_to_signal.repeat(2), both, shared
            )
            of_prompts, of_negative = predictions.chunk(2)
        else:
            of_prompts = self.network(latents, noise_to_signal, positive, shared)
            of_negative = self.network(latents, noise_to_signal, negative, shared)
        return of_prompts, of_negative

    def predict(self, x: Tensor, noise_to_signal: Level, conditions: Conditions) -> Tensor:
        time = self.path.time(noise_to_signal)
        latents = self.path.from_bounded(x, time)
        row_levels = as_level(noise_to_signal).expand(len(x))
        with alone_with(self.network_module):
            prediction = self.guided_prediction(latents.to(compute_dtype(self.network_module)), row_levels, conditions)
        return self.path.denoised(latents, prediction.to(x.dtype), time)

    def denoise(self, x: Tensor, noise_to_signal: Level, conditions: Conditions) -> Tensor:
        if self.predicts_mean:
            return self.predict(x, noise_to_signal, conditions)
        # Any other few-step model has no denoiser of its own.
        assert isinstance(self.few_step, tuple)
        with alone_with(self.network_module), adapters_disabled(self.network_module, self.few_step):
            return self.predict(x, noise_to_signal, conditions)

    def decoder(self, preview: bool) -> Any:
        """The autoencoder that decodes."""
        return self.preview_vae if preview and self.preview_vae is not None else self.pipeline.vae

    def parts(self, preview: bool = False) -> tuple[nn.Module, nn.Module]:
        return self.network_module, self.decoder(preview)

    def decode_latents(self, latents: Tensor, preview: bool = False) -> Tensor:
        """Decodes unpacked latents `[N, C, h, w]` to images of about [-1, 1], in the autoencoder's dtype."""
        vae = self.decoder(preview)
        latents = latents / vae.config.scaling_factor + (vae.config.get("shift_factor") or 0.0)
        return decoded(vae, latents)

    def decode(self, z: Tensor, conditions: Conditions, preview: bool = False) -> Tensor:
        return to_unit_range(self.decode_latents(z, preview))

    @torch.no_grad()
    def encode_images(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Means and deviations of the latents of images; `decode` is the inverse.

        Args:
            images: `[N, 3, H, W]` in [-1, 1].

        Returns:
            Two tensors `[N, ...]`, in the family's form; deviations are 0 where the autoencoder has none.
        """
        vae = self.pipeline.vae
        encoded = vae.encode(images.to(self.device, vae.dtype))
        law = getattr(encoded, "latent_dist", None)
        mean, deviation = (encoded.latent, torch.zeros_like(encoded.latent)) if law is None else (law.mean, law.std)
        shift, scale = vae.config.get("shift_factor") or 0.0, vae.config.scaling_factor
        channel_mean, channel_std = vae.config.get("latents_mean"), vae.config.get("latents_std")
        if channel_mean is not None and channel_std is not None:
            shift = mean.new_tensor(channel_mean).reshape(1, -1, 1, 1)
            scale = scale / mean.new_tensor(channel_std).reshape(1, -1, 1, 1)
        return self.packed((mean - shift) * scale), self.packed(deviation * scale)

    def packed(self, latents: Tensor) -> Tensor:
        """The autoencoder's latents `[N, C, h, w]` in the family's form."""
        return latents

    def finish(self, images: Tensor) -> tuple[Tensor, list[bool] | None]:
        """Treats decoded images `[N, 3, H, W]` in [0, 1] as the stock pipeline does before it returns them.

        Returns:
            The images, and for each whether a safety checker blacked it out; None where there is no checker.
        """
        return images, None

    def stock_transition(self) -> Transition:
        return stock_transition(self.pipeline.scheduler)

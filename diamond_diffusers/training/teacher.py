"""The frozen base as a teacher: its prompts under guidance, its latents, and samples of it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from accelerate import cpu_offload_with_hook
from accelerate.hooks import UserCpuOffloadHook
from accelerate.utils import release_memory
from torch import Tensor, nn

from ..core.model import Conditions
from ..families.base import Family
from ..families.compat import progress_bar
from ..pipelines.call import prepare
from .errors import TrainingError


class Teacher:
    """A base model with classifier-free guidance.

    Args:
        family: an ordinary model with text encoders and an autoencoder.
        defaults: the model's own values for arguments of a call.
        resolution: side of its square images, in pixels.
        guidance_scale: guidance scale of the teacher.
        max_sequence_length: largest number of tokens of a prompt; None for the model's own.

    Raises:
        TrainingError: the model is a few-step one, or has no images of that size.
    """

    def __init__(
        self,
        family: Family,
        defaults: Mapping[str, Any],
        resolution: int | None = None,
        guidance_scale: float = 3.0,
        max_sequence_length: int | None = None,
    ) -> None:
        if family.is_few_step:
            raise TrainingError(
                f"this {family.name} model is a few-step one, which has no posterior mean to learn from; "
                "name its base model"
            )
        self.family, self.defaults = family, dict(defaults)
        self.resolution = resolution or self._own_resolution()
        self._check_resolution()
        own_length = self.defaults.get("max_sequence_length")
        self.call = self._known(
            height=self.resolution,
            width=self.resolution,
            use_resolution_binning=False,
            max_sequence_length=max_sequence_length or own_length,
        )
        self.guidance = self._guidance(guidance_scale)
        if "negative_prompt" not in self.guidance:
            self.defaults.pop("negative_prompt", None)
        self._unconditional = self._encode([""], self.guidance)
        self._encodes = True
        self._kept_features: dict[str, dict[str, Tensor]] = {}
        self._autoencoder: UserCpuOffloadHook | None = None

    def _own_resolution(self) -> int:
        size = self.defaults.get("height")
        if size is None:
            size = (
                getattr(self.family.pipeline, "default_sample_size", None)
                or self.family.network_module.config.sample_size
            )
            size *= self.family.pipeline.vae_scale_factor
        return int(size)

    def _check_resolution(self) -> None:
        pipeline, network = self.family.pipeline, self.family.network_module
        # Latents are packed, or cut into patches.
        patch = 2 if hasattr(pipeline, "_pack_latents") else network.config.get("patch_size") or 1
        multiple = pipeline.vae_scale_factor * patch
        if self.resolution % multiple:
            raise TrainingError(
                f"--resolution is {self.resolution}; the {self.family.name} model takes multiples of {multiple}"
            )

    def _known(self, **arguments: Any) -> dict[str, Any]:
        """The arguments among these that the stock call takes."""
        taken = inspect.signature(type(self.family.pipeline).__call__).parameters
        return {name: value for name, value in arguments.items() if name in taken and value is not None}

    def _guidance(self, scale: float) -> dict[str, Any]:
        """The stock call's arguments of guidance: an embedded scale, or those of classifier-free guidance."""
        known = self._known(true_cfg_scale=scale, guidance_scale=scale, negative_prompt="")
        if "true_cfg_scale" not in known:
            # The stock pipeline encodes its own unconditional: SDXL has zeros, which an empty text is not.
            known.pop("negative_prompt", None)
            return known
        if self.family.network_module.config.get("guidance_embeds"):
            return {"guidance_scale": scale}
        known.pop("guidance_scale", None)
        return known

    @property
    def call_defaults(self) -> dict[str, Any]:
        """The model's defaults, with the size and the guidance of this teacher."""
        sizes = {name: value for name, value in self.call.items() if name != "use_resolution_binning"}
        return {**self.defaults, **sizes, **self.guidance}

    def _encode(self, captions: Sequence[str], guidance: Mapping[str, Any]) -> Conditions:
        given = {**self.call, **guidance, "prompt": list(captions)}
        if given.get("negative_prompt") is not None:
            given["negative_prompt"] = [given["negative_prompt"]] * len(captions)
        return prepare(self.family, given, self.defaults).conditions

    def park_autoencoder(self) -> None:
        """Moves the autoencoder to the CPU; while it encodes or decodes, and until this is called again, it is back."""
        if self._autoencoder is None:
            device = self.family.device
            self._autoencoder = cpu_offload_with_hook(self.family.pipeline.vae, device)[1]
        self._autoencoder.offload()
        release_memory()

    def drop_text_encoders(self, captions: Sequence[str] = ()) -> None:
        """Frees the memory of all models but the network and the autoencoder, once captions are encoded.

        Args:
            captions: those whose features are kept, since they are asked for later.
        """
        if not self._encodes:
            return
        self._kept_features = {caption: self.features([caption]) for caption in captions}
        pipeline, kept = self.family.pipeline, set(self.family.parts())
        unused = {
            name for name, part in pipeline.components.items() if isinstance(part, nn.Module) and part not in kept
        }
        pipeline.register_modules(**dict.fromkeys(unused))
        self._encodes = False
        release_memory()

    def features(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """The features of captions for the network, one row for each caption.

        Raises:
            TrainingError: the text encoders have been dropped, and have not encoded one of these captions before.
        """
        if not self._encodes:
            return self._features_of_kept(captions)
        unguided = {name: 1.0 for name in self.guidance if name.endswith("_scale")}
        return self._encode(captions, unguided).features

    def _features_of_kept(self, captions: Sequence[str]) -> dict[str, Tensor]:
        for caption in captions:
            if caption not in self._kept_features:
                raise TrainingError(f"the text encoders were dropped before {caption!r} was encoded")
        rows = [self._kept_features[caption] for caption in captions]
        return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}

    def conditions(self, features: Mapping[str, Tensor]) -> Conditions:
        """Conditions of the teacher for rows of features."""
        rows = len(next(iter(features.values())))
        negative = self._unconditional.negative_features
        return Conditions(
            dict(features),
            negative and {name: feature.expand(rows, *feature.shape[1:]) for name, feature in negative.items()},
            self._unconditional.classifier_free_guidance_scale,
            self._unconditional.shared,
        )

    @torch.no_grad()
    def sample(
        self, captions: Sequence[str], num_inference_steps: int, generator: torch.Generator | list[torch.Generator]
    ) -> Tensor:
        """Clean latents `[N, ...]` of captions, drawn by the stock pipeline with the teacher's guidance.

        Args:
            generator: of all samples together, or one of each.
        """
        pipeline = self.family.pipeline
        call = {**self.call, **self.guidance, "prompt": list(captions)}
        if "negative_prompt" in call:
            call["negative_prompt"] = [call["negative_prompt"]] * len(captions)
        with progress_bar(pipeline, disable=True):
            latents = pipeline(
                **call, num_inference_steps=num_inference_steps, generator=generator, output_type="latent"
            ).images
        return latents.float()

"""Loads CLIP and SigLIP checkpoints of transformers and of open_clip."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from typing import Any

import torch
from PIL.Image import Resampling
from torch import Tensor, nn

from ..checkpointing import checkpoint_layers
from ..hub import check_hub_options, options_of_others
from ..preprocessing import ImagePreprocessing
from ..weight_files import counted_weights
from .tower import CLIPTower, files_of, shared_tower

OPEN_CLIP_PREFIX = "open_clip:"
OPEN_CLIP_SCHEMAS = ("hf-hub:", "local-dir:")
TRANSFORMERS_ARCHITECTURES = ("clip", "siglip")


class TransformersTower(CLIPTower):
    """A transformers CLIP or SigLIP with its tokenizer."""

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """See `CLIPTower`."""
        return self.model.get_image_features(pixel_values=pixels).pooler_output

    def encode_texts(self, texts: list[str]) -> Tensor:
        """See `CLIPTower`."""
        tokens = self.tokenizer(
            texts,
            padding="max_length",
            truncation=True,
            max_length=self.max_tokens,
            # SigLIP was trained to read the padding.
            return_attention_mask=self.model.config.model_type != "siglip",
            return_tensors="pt",
        )
        return self.model.get_text_features(**tokens.to(self.device)).pooler_output

    def count_tokens(self, texts: list[str]) -> list[int]:
        """See `CLIPTower`."""
        return [len(ids) for ids in self.tokenizer(texts, verbose=False).input_ids]

    @property
    def image_module(self) -> nn.Module:
        """See `CLIPTower`."""
        return self.model.vision_model

    def checkpoint_layers(self) -> None:
        """See `CLIPTower`."""
        checkpoint_layers(self.model)


class OpenCLIPTower(CLIPTower):
    """An open_clip model with its tokenizer, which cleans texts with ftfy."""

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """See `CLIPTower`."""
        return self.model.encode_image(pixels)

    def encode_texts(self, texts: list[str]) -> Tensor:
        """See `CLIPTower`."""
        return self.model.encode_text(self.tokenizer(texts).to(self.device))

    def count_tokens(self, texts: list[str]) -> list[int]:
        """See `CLIPTower`."""
        # A character has at most four bytes, and a token at least one: so the last token is padding.
        length = self.max_tokens + 4 * max(map(len, texts))
        ids = self.tokenizer(texts, context_length=length)
        return (ids != ids[:, -1:]).sum(1).tolist()

    @property
    def image_module(self) -> nn.Module:
        """See `CLIPTower`."""
        return self.model.visual

    def checkpoint_layers(self) -> None:
        """See `CLIPTower`."""
        self.model.set_grad_checkpointing()


def load_clip(
    name: str,
    checkpoint: str | PathLike[str],
    processor: str | PathLike[str] | None,
    device: torch.device | str,
    dtype: torch.dtype,
    hub_options: dict[str, Any],
) -> CLIPTower:
    """The tower of a checkpoint, shared with all rewards that use it on the same device and in the same dtype.

    Args:
        name: name of the reward, for messages.
        checkpoint: as in `CLIPReward`.
        processor: name or folder of the image processor and the tokenizer; None for the checkpoint itself.
        device: device of the model.
        dtype: dtype of the model.
        hub_options: some of `hub.HUB_OPTIONS`, forwarded to `from_pretrained`. If the processor is not the
            checkpoint's own, it is loaded without `revision` and `subfolder`.

    Raises:
        OSError: the checkpoint cannot be found or read.
        TypeError: an option is unknown.
        ValueError: the checkpoint is of another architecture, or lacks weights.
    """
    check_hub_options(name, hub_options)
    text = str(checkpoint)
    uses_open_clip = text.startswith((OPEN_CLIP_PREFIX, *OPEN_CLIP_SCHEMAS))
    path = text.partition("/" if text.startswith(OPEN_CLIP_PREFIX) else ":")[2] if uses_open_clip else text
    source = (text, files_of(path), str(processor), *sorted((key, str(value)) for key, value in hub_options.items()))

    def load() -> CLIPTower:
        if uses_open_clip:
            return _load_open_clip(name, text, hub_options)
        return _load_transformers(name, text, str(processor or checkpoint), hub_options)

    return shared_tower(source, load, device, dtype)


def _load_transformers(name: str, checkpoint: str, processor: str, hub_options: dict[str, Any]) -> CLIPTower:
    from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoTokenizer

    with _explaining(name, checkpoint):
        config = AutoConfig.from_pretrained(checkpoint, **hub_options)
    if config.model_type not in TRANSFORMERS_ARCHITECTURES:
        raise ValueError(
            f"Reward '{name}' got checkpoint='{checkpoint}' of the architecture '{config.model_type}'; "
            f"give a checkpoint of {' or '.join(TRANSFORMERS_ARCHITECTURES)}, or one of open_clip."
        )
    with _explaining(name, checkpoint):
        model, report = AutoModel.from_pretrained(
            checkpoint,
            dtype=torch.float32,
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **hub_options,
        )
    _check_report(name, checkpoint, report)
    options = hub_options if processor == checkpoint else options_of_others(hub_options)
    with _explaining(name, processor):
        preprocessing = ImagePreprocessing.from_processor(AutoImageProcessor.from_pretrained(processor, **options))
        tokenizer = AutoTokenizer.from_pretrained(processor, **options)
    max_tokens = min(tokenizer.model_max_length, config.text_config.max_position_embeddings)
    return TransformersTower(model, preprocessing, tokenizer, max_tokens, checkpoint)


def _check_report(name: str, checkpoint: str, report: dict[str, Any]) -> None:
    mismatched = [key if isinstance(key, str) else key[0] for key in report["mismatched_keys"]]
    for verb, keys in [
        ("lacks", report["missing_keys"]),
        ("has the unknown", report["unexpected_keys"]),
        ("has another shape of", mismatched),
    ]:
        if keys:
            raise ValueError(
                f"Reward '{name}' got checkpoint='{checkpoint}', which {verb} {counted_weights(keys)}; "
                "give a checkpoint of the architecture in its config.json."
            )


def _load_open_clip(name: str, checkpoint: str, hub_options: dict[str, Any]) -> CLIPTower:
    # It takes seconds to import, and few rewards need it.
    import open_clip

    unknown = sorted(hub_options.keys() - {"cache_dir"})
    if unknown:
        raise ValueError(
            f"Reward '{name}' got {unknown[0]}={hub_options[unknown[0]]!r}, which open_clip does not take; "
            "only cache_dir goes with an open_clip checkpoint."
        )
    weights: str | None
    architecture, _, weights = checkpoint.removeprefix(OPEN_CLIP_PREFIX).partition("/")
    if checkpoint.startswith(OPEN_CLIP_SCHEMAS):
        architecture, weights = checkpoint, None
    if weights == "":
        raise ValueError(
            f"Reward '{name}' got checkpoint='{checkpoint}', which names no weights; give "
            f"{OPEN_CLIP_PREFIX}<architecture>/<pretrained tag or file>."
        )
    is_quick = weights is not None and open_clip.get_pretrained_cfg(architecture, weights).get("quick_gelu", False)
    with _explaining(name, checkpoint):
        model = open_clip.create_model(
            architecture, weights, force_quick_gelu=is_quick, require_pretrained=True, **hub_options
        )
        tokenizer = open_clip.get_tokenizer(architecture, **hub_options)
    preprocessing = _read_open_clip_preprocessing(name, open_clip.get_model_preprocess_cfg(model))
    return OpenCLIPTower(model, preprocessing, tokenizer, tokenizer.context_length, checkpoint)


def _read_open_clip_preprocessing(name: str, config: dict[str, Any]) -> ImagePreprocessing:
    size = config["size"]
    height, width = (size, size) if isinstance(size, int) else size
    interpolation = {"bicubic": Resampling.BICUBIC, "bilinear": Resampling.BILINEAR}.get(config["interpolation"])
    mode = config["resize_mode"]
    if interpolation is None or mode not in ("shortest", "squash") or (mode == "shortest" and height != width):
        raise ValueError(
            f"Reward '{name}' got an open_clip checkpoint with the preprocessing {config}; only bicubic or bilinear "
            "resizing of the shortest side to a square crop, or of both sides, is supported."
        )
    squash = mode == "squash"
    return ImagePreprocessing(
        size=[height, width] if squash else [height],
        crop_size=None if squash else [height, width],
        mean=config["mean"],
        std=config["std"],
        interpolation=interpolation,
    )


@contextmanager
def _explaining(name: str, checkpoint: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        message = " ".join(str(error).split())
        raise OSError(
            f"Reward '{name}' cannot load checkpoint='{checkpoint}' ({message[:300]}); give a name on the Hub, a "
            "folder with the model in safetensors, its image processor and its tokenizer, or an open_clip checkpoint."
        ) from error

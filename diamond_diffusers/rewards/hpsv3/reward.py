"""HPSv3: human preference over a wide range of images, by a vision-language model with a head."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from typing import Any, Literal, Self

import torch
from torch import Tensor

from ...core.tensors import at_least_float32
from ..base import Reward
from ..checkpointing import checkpoint_layers
from ..errors import first_line
from ..hub import check_hub_options, options_of_others
from ..preprocessing import resize_like_pil
from ..registry import register_reward
from ..weight_files import find_weights, read_weights
from .instruction import PLACEHOLDER, published_instruction

REPOSITORY, FILE_NAMES = "MizzenAI/HPSv3", ("model.safetensors", "HPSv3.safetensors")
BASE = "Qwen/Qwen2-VL-7B-Instruct"
REWARD_TOKEN = "<|Reward|>"
PIXELS = 256 * 28 * 28
"""The number of pixels to which every image is resized, about."""
STEP = 28
"""Height and width are multiples of this."""


@register_reward("hpsv3")
class HPSv3Reward(Reward):
    """Human preference for the image given the prompt, by a Qwen2-VL 7B that reads both; of no fixed range.

    It was trained on images of many models, old and new, and on photographs, where `hpsv2` saw early models alone. The
    network predicts a mean and a spread for each image; the score is the mean. Images are preprocessed on tensors as
    the official code does on PIL images, and scores are differentiable to the pixels.

    Args:
        checkpoint: a repository on the Hub that holds `HPSv3.safetensors`, or a local `.safetensors` or `.pth` file in
            the published layout, or a folder with `model.safetensors` or `HPSv3.safetensors`.
        base: name or folder of the Qwen2-VL whose configuration, tokenizer and image processor are used; its weights
            are not loaded.
        instruction: the text that the model is given with the image, with `{text_prompt}` and `<|Reward|>` once each;
            None for the one that it was trained with, which is read from the package `hpsv3` (`pip install --no-deps
            hpsv3`; nothing of it is run).
        output: `"mean"`, or `"spread"` for the logarithm of the standard deviation, as the network gives it.
        name: name under which the scores are reported.
        gradient_checkpointing: whether the backward pass recomputes each layer instead of storing its activations.
        max_batch_size: the largest number of images in one call of the model; None for all at once.
        device: device of the model; images are moved to it.
        dtype: dtype of the Qwen2-VL; None for that of the checkpoint, which is bfloat16. The head is in float32.
        hub_options: forwarded to the Hub, see `CLIPReward`; what belongs to `base` gets all but `revision` and
            `subfolder`.

    Raises:
        ImportError: the published instruction is wanted, and the package `hpsv3` is not installed.
        OSError: the checkpoint or the base cannot be found or read.
        TypeError: an option is unknown.
        ValueError: the checkpoint is of another architecture, or `instruction` or `output` is malformed.

    Source: Ma et al. 2025, "HPSv3: Towards Wide-Spectrum Human Preference Score".
    """

    licence = "MIT"
    source = "Ma et al. 2025, arXiv:2508.03789"
    size = "16.6 GB"
    default_reward_scale = 1.0
    hub_files = ((REPOSITORY, FILE_NAMES[-1]), (BASE, "tokenizer.json"))
    requires = ("hpsv3",)

    def __init__(
        self,
        checkpoint: str | PathLike[str] = REPOSITORY,
        *,
        base: str | PathLike[str] = BASE,
        instruction: str | None = None,
        output: Literal["mean", "spread"] = "mean",
        name: str = "hpsv3",
        gradient_checkpointing: bool = False,
        max_batch_size: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **hub_options: Any,
    ) -> None:
        # It loads transformers' Qwen2-VL.
        from .network import build_network

        if output not in ("mean", "spread"):
            raise ValueError(f"Reward '{name}' got output={output!r}; give 'mean' or 'spread'.")
        check_hub_options(name, hub_options)
        self.name = name
        self.max_batch_size = max_batch_size
        self.instruction = _checked_instruction(name, instruction)
        self.output = output
        config, self.processor = _load_base(name, base, hub_options)
        self.reward_token_id = self.processor.tokenizer.convert_tokens_to_ids(REWARD_TOKEN)
        path = find_weights(name, checkpoint, FILE_NAMES, hub_options)
        try:
            self.model = build_network(read_weights(path, entry="model"), config, dtype)
        except ValueError as error:
            raise ValueError(
                f"Reward '{name}' got checkpoint='{checkpoint}', but {error}; give one in its published layout."
            ) from error
        if gradient_checkpointing:
            checkpoint_layers(self.model)
        self.to(device)

    @staticmethod
    def import_package(name: str) -> str:
        """Reads the instruction from the package in `requires`, which does not import beside transformers 5."""
        return published_instruction()

    def check_prompts(self, prompts: Sequence[str]) -> None:
        """See `Reward.check_prompts`: a prompt must not hold a token that has a meaning of its own to the model."""
        for prompt in prompts:
            self._conversation(prompt)

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores `[B]` of images `[B, 3, H, W]` in [0, 1] and `B` prompts."""
        images = at_least_float32(images.to(self.model.model.device))
        outputs = self.model(self._inputs(images, prompts), self.reward_token_id)
        return outputs[:, 0 if self.output == "mean" else 1]

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """Moves and casts the model, in place; returns the reward. The head is in float32 at least."""
        self.model.to(device=device)
        if dtype is not None:
            self.model.model.to(dtype)
            self.model.head.to(torch.promote_types(dtype, torch.float32))
        return self

    def _inputs(self, images: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        pixels = resize_like_pil(images, _resized(*images.shape[-2:]))
        batch = self.processor(
            text=[self._conversation(prompt) for prompt in prompts],
            images=[[image] for image in pixels],
            padding=True,
            do_resize=False,
            do_rescale=False,
            return_tensors="pt",
        )
        return dict(batch.to(images.device))

    def _conversation(self, prompt: str) -> str:
        for token in (self.processor.image_token, self.processor.video_token, REWARD_TOKEN):
            if token in prompt:
                raise ValueError(
                    f"Reward '{self.name}' got the prompt {prompt!r}, in which {token!r} has a meaning of its own to "
                    "the model; leave it out."
                )
        content = [{"type": "image"}, {"type": "text", "text": self.instruction.replace(PLACEHOLDER, prompt)}]
        return self.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)


def _resized(height: int, width: int) -> tuple[int, int]:
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    resize: Callable[..., tuple[int, int]] = smart_resize
    return resize(height, width, factor=STEP, min_pixels=PIXELS, max_pixels=PIXELS)


def _checked_instruction(name: str, instruction: str | None) -> str:
    if instruction is None:
        try:
            return published_instruction()
        except ImportError as error:
            raise ImportError(
                f"Reward '{name}' needs the instruction that its model was trained with, from the package 'hpsv3' "
                f"({first_line(error)}): run `pip install --no-deps hpsv3==1.0.0`, or give instruction=... ."
            ) from error
    for part in (PLACEHOLDER, REWARD_TOKEN):
        if instruction.count(part) != 1:
            raise ValueError(f"Reward '{name}' got instruction={instruction!r}; write {part} in it once.")
    return instruction


def _load_base(name: str, base: str | PathLike[str], hub_options: Mapping[str, Any]) -> tuple[Any, Any]:
    from transformers import AutoProcessor, Qwen2VLConfig

    options = options_of_others(hub_options)
    try:
        config = Qwen2VLConfig.from_pretrained(base, **options)
        processor = AutoProcessor.from_pretrained(base, **options)
    except (OSError, ValueError) as error:
        raise OSError(
            f"Reward '{name}' cannot load base='{base}' ({first_line(error)}); give the name or the folder of a "
            "Qwen2-VL with its processor."
        ) from error
    processor.tokenizer.padding_side = "right"
    processor.tokenizer.add_tokens([REWARD_TOKEN], special_tokens=True)
    return config, processor

"""VQAScore: the probability with which a vision-language model affirms that the image shows its prompt."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from os import PathLike
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from ..core.tensors import at_least_float32
from .base import Reward, random_image
from .checkpointing import checkpoint_layers
from .errors import first_line
from .hub import check_hub_options
from .preprocessing import images_to_pil
from .registry import register_reward

QUESTION = 'Does this figure show "{}"? Please answer yes or no.'


@register_reward("vqascore")
class VQAScoreReward(Reward):
    """Probability that a vision-language model's answer to "Does this figure show the prompt?" starts with "Yes".

    The model may be any transformers image-text-to-text model that answers at once (an "instruct", not a "thinking"
    model). Scores are differentiable to the pixels if the model's image processor works on tensors, as those of
    Qwen2.5-VL, Qwen3-VL and most others do; the attribute `differentiable` tells. The scores are those of 8-bit images
    in the stock processor, and the gradient passes its rounding as if it were not there.

    Args:
        checkpoint: a name on the Hub or a local folder, with weights in safetensors and a chat template.
        name: name under which the scores are reported.
        question: a text with `{}` in the prompt's place.
        answer: one token of the model's vocabulary.
        gradient_checkpointing: whether the backward pass recomputes each layer instead of storing its activations.
        max_batch_size: the largest number of images in one call of the model; None for all at once.
        device: device of the model; images are moved to it.
        dtype: dtype of the model; by default the checkpoint's own. Probabilities are in float32.
        hub_options: forwarded to `from_pretrained`, see `CLIPReward`.

    Raises:
        OSError: the checkpoint cannot be found or read.
        TypeError: an option is unknown.
        ValueError: the checkpoint is no such model, or `question` or `answer` is malformed.

    Source: Lin et al. 2024, "Evaluating Text-to-Visual Generation with Image-to-Text Generation", equation 1.
    """

    licence = "that of the checkpoint (Qwen2.5-VL-7B: Apache-2.0)"
    source = "Lin et al. 2024, arXiv:2404.01291"
    size = "16.6 GB"
    default_reward_scale = 10.0
    hub_files = (("Qwen/Qwen2.5-VL-7B-Instruct", "config.json"),)

    def __init__(
        self,
        checkpoint: str | PathLike[str] = "Qwen/Qwen2.5-VL-7B-Instruct",
        *,
        name: str = "vqascore",
        question: str = QUESTION,
        answer: str = "Yes",
        gradient_checkpointing: bool = False,
        max_batch_size: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **hub_options: Any,
    ) -> None:
        if "{}" not in question:
            raise ValueError(f"Reward '{name}' got question={question!r}; put {{}} in the prompt's place.")
        check_hub_options(name, hub_options)
        self.name = name
        self.max_batch_size = max_batch_size
        self.question = question
        self.model, self.processor = _load(name, checkpoint, dtype, hub_options)
        self.answer_id = _single_token(name, self.processor.tokenizer, answer)
        self._keeps_logits = "logits_to_keep" in inspect.signature(self.model.forward).parameters
        self.differentiable = self._passes_gradients()
        if gradient_checkpointing:
            checkpoint_layers(self.model)
        self.to(device)

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Probabilities `[B]` of images `[B, 3, H, W]` in [0, 1] and `B` prompts."""
        inputs = self._inputs(at_least_float32(images.to(self.model.device)), prompts)
        kept = {"logits_to_keep": 1} if self._keeps_logits else {}
        logits = self.model(**inputs, **kept, use_cache=False).logits[:, -1].float()
        return (logits[:, self.answer_id] - logits.logsumexp(-1)).exp()

    def _inputs(self, images: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        texts = [self._conversation(prompt) for prompt in prompts]
        if not self.differentiable:
            return self._process(images_to_pil(images), texts)
        levels = images * 255
        inputs = self._process(levels.detach().round().byte(), texts)
        if images.requires_grad:
            smooth = self._process(levels, texts)
            for key, value in smooth.items():
                if value.requires_grad:
                    inputs[key] = value + (inputs[key] - value).detach()
        return inputs

    def _process(self, images: Tensor | Sequence[Image], texts: Sequence[str]) -> dict[str, Tensor]:
        batch = self.processor(
            text=list(texts), images=[[image] for image in images], padding=True, return_tensors="pt"
        )
        return dict(batch.to(self.model.device))

    def _conversation(self, prompt: str) -> str:
        content = [{"type": "image"}, {"type": "text", "text": self.question.replace("{}", prompt)}]
        return self.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)

    def _passes_gradients(self) -> bool:
        """Whether the image processor keeps the graph of a tensor."""
        with torch.inference_mode(False), torch.enable_grad():
            levels = 255 * random_image("cpu", (64, 64)).requires_grad_()
            try:
                outputs = self.processor.image_processor(list(levels), return_tensors="pt")
            except (RuntimeError, TypeError, ValueError):
                # Processors on PIL and numpy refuse tensors that require gradients.
                return False
        return any(isinstance(value, Tensor) and value.requires_grad for value in outputs.values())


def _load(
    name: str, checkpoint: str | PathLike[str], dtype: torch.dtype | None, hub_options: dict[str, Any]
) -> tuple[Any, Any]:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    try:
        model, report = AutoModelForImageTextToText.from_pretrained(
            checkpoint, dtype=dtype or "auto", use_safetensors=True, output_loading_info=True, **hub_options
        )
        processor = AutoProcessor.from_pretrained(checkpoint, **hub_options)
    except (OSError, ValueError) as error:
        raise OSError(
            f"Reward '{name}' cannot load checkpoint='{checkpoint}' ({first_line(error)}); give a name on the Hub, or "
            "a folder with an image-text-to-text model in safetensors and its processor."
        ) from error
    lacks = None
    if report["missing_keys"]:
        lacks = f"{sorted(report['missing_keys'])[0]} and {len(report['missing_keys']) - 1} other weights"
    elif getattr(processor, "chat_template", None) is None:
        lacks = "a chat template"
    elif model.config.is_encoder_decoder:
        lacks = "a decoder-only language model"
    if lacks:
        raise ValueError(
            f"Reward '{name}' got checkpoint='{checkpoint}', which lacks {lacks}; "
            "give a complete instruction-tuned image-text-to-text model."
        )
    # The answer follows the last token of every row.
    processor.tokenizer.padding_side = "left"
    return model.eval().requires_grad_(False), processor


def _single_token(name: str, tokenizer: Any, answer: str) -> int:
    ids = tokenizer.encode(answer, add_special_tokens=False)
    if len(ids) != 1 or ids[0] == tokenizer.unk_token_id:
        raise ValueError(
            f"Reward '{name}' got answer={answer!r}, which is {len(ids)} tokens or an unknown one of this model; "
            "give a word that is one token, such as 'Yes'."
        )
    return ids[0]

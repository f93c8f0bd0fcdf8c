"""BLIP's answers to questions about images, as T2I-CompBench takes them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from os import PathLike
from typing import Any

import torch
from PIL.Image import Image

from ...files.foreign_models import UNLOADABLE, why_unloadable

BLIP_VQA = "Salesforce/blip-vqa-capfilt-large"
"""The checkpoint by which T2I-CompBench scores attributes, in transformers."""
ENCODE = 30_523
"""BLIP's token that begins a question; that of answers is in the configuration."""
MAX_TOKENS = 35
MAX_WORDS = 50


class BLIPAnswerer:
    """Answers with a BLIP that was trained on questions about images; an answer's probability is its first token's.

    Questions are prepared as BLIP's own program prepares them: in small letters, without some marks, cut to 35 tokens,
    and begun with BLIP's token for the encoder, which `BlipForQuestionAnswering` itself leaves out.

    Args:
        checkpoint: a `BlipForQuestionAnswering` of transformers, with its processor.
        batch_size: number of questions in one call of the model.
        device: device of the model.
        dtype: dtype of the model.
        hub_options: forwarded to `from_pretrained`.

    Raises:
        OSError: the checkpoint cannot be found or read.
    """

    def __init__(
        self,
        checkpoint: str | PathLike[str] = BLIP_VQA,
        *,
        batch_size: int = 32,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **hub_options: Any,
    ) -> None:
        from transformers import AutoTokenizer, BlipForQuestionAnswering, BlipImageProcessor

        try:
            model = BlipForQuestionAnswering.from_pretrained(
                checkpoint, dtype=dtype or torch.float32, use_safetensors=True, **hub_options
            )
            self.tokenizer: Any = AutoTokenizer.from_pretrained(checkpoint, **hub_options)
            self.image_processor: Any = BlipImageProcessor.from_pretrained(checkpoint, **hub_options)
        except UNLOADABLE as error:
            raise OSError(
                f"vlm is '{checkpoint}', which cannot be loaded ({why_unloadable(error)}); give a "
                f"BlipForQuestionAnswering in safetensors such as {BLIP_VQA}"
            ) from error
        self.model: Any = model.eval().requires_grad_(False).to(device)
        self.batch_size = batch_size

    @torch.no_grad()
    def probabilities(
        self, images: Sequence[Image], questions: Sequence[str], answers: Sequence[Sequence[str]]
    ) -> list[list[float]]:
        asked = [self._tokens(question) for question in questions]
        rows_by_length: dict[int, list[int]] = {}
        for row, tokens in enumerate(asked):
            rows_by_length.setdefault(len(tokens), []).append(row)
        found: dict[int, list[float]] = {}
        # Of one length each, since the decoder in transformers attends to padding too.
        for rows in rows_by_length.values():
            for start in range(0, len(rows), self.batch_size):
                batch = rows[start : start + self.batch_size]
                first = self._first_tokens([images[row] for row in batch], [asked[row] for row in batch])
                for row, law in zip(batch, first, strict=True):
                    found[row] = [law[self._first_token(answer)].item() for answer in answers[row]]
        return [found[row] for row in range(len(questions))]

    def _tokens(self, question: str) -> list[int]:
        ids: list[int] = self.tokenizer(prepared_question(question), truncation=True, max_length=MAX_TOKENS).input_ids
        return [ENCODE, *ids[1:]]

    def _first_token(self, answer: str) -> int:
        ids: list[int] = self.tokenizer.encode(answer, add_special_tokens=False)
        return ids[0]

    def _first_tokens(self, images: Sequence[Image], questions: Sequence[list[int]]) -> torch.Tensor:
        """The law `[B, vocabulary]` of the first token of each answer to questions of one length."""
        device = self.model.device
        pixels = self.image_processor(list(images), return_tensors="pt").pixel_values.to(device, self.model.dtype)
        seen = self.model.vision_model(pixels)[0]
        read = self.model.text_encoder(input_ids=torch.tensor(questions, device=device), encoder_hidden_states=seen)[0]
        begin = torch.full((len(questions), 1), self.model.decoder_start_token_id, device=device)
        logits = self.model.text_decoder(input_ids=begin, encoder_hidden_states=read, use_cache=False).logits[:, 0]
        return logits.float().softmax(-1)


def prepared_question(question: str) -> str:
    """A question as BLIP reads it.

    Example:
        >>> prepared_question("A Green Bench?")
        'a green bench?'
    """
    return " ".join(re.sub(r"[.!\"()*#:;~]", "", question.lower()).rstrip(" ").split(" ")[:MAX_WORDS])

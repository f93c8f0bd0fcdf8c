"""BLIP's answers to questions about images, as T2I-CompBench takes them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from os import PathLike
from typing import Any

import torch
from torch import Tensor

from ...files.foreign_models import UNLOADABLE, why_unloadable
from ...rewards.preprocessing import ImagePreprocessing
from ...rewards.vision_language.answers import Answer

BLIP_VQA = "Salesforce/blip-vqa-capfilt-large"
"""The checkpoint by which T2I-CompBench scores attributes, in transformers."""
ENCODE = 30_523
"""BLIP's token that begins a question; that of answers is in the configuration."""
MAX_TOKENS = 35
MAX_WORDS = 50


class BLIPJudge:
    """A judge: a BLIP that was trained on questions about images. An answer is as likely as its first token.

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
            stock = BlipImageProcessor.from_pretrained(checkpoint, **hub_options)
        except UNLOADABLE as error:
            raise OSError(
                f"vlm is '{checkpoint}', which cannot be loaded ({why_unloadable(error)}); give a "
                f"BlipForQuestionAnswering in safetensors such as {BLIP_VQA}"
            ) from error
        # Resized as Pillow does, which the processor of transformers does not.
        size = [stock.size["height"], stock.size["width"]]
        self.preprocess = ImagePreprocessing(size, None, tuple(stock.image_mean), tuple(stock.image_std))
        self.model: Any = model.eval().requires_grad_(False).to(device)
        self.batch_size = batch_size

    @property
    def differentiable(self) -> bool:
        """It is asked without a graph."""
        return False

    @torch.no_grad()
    def probabilities(
        self, images: Tensor, questions: Sequence[str], answers: Sequence[Answer], rows: Sequence[int] | None = None
    ) -> Tensor:
        """How likely each question is to be answered so, `[P]`; see `Judge.probabilities`."""
        places = range(len(questions)) if rows is None else rows
        asked = list(dict.fromkeys(zip(places, questions, strict=True)))
        laws = self._laws(images, [place for place, _ in asked], [self._tokens(question) for _, question in asked])
        of_pair = dict(zip(asked, laws, strict=True))
        found = [
            of_pair[pair][self._first_tokens(answer)].sum()
            for pair, answer in zip(zip(places, questions, strict=True), answers, strict=True)
        ]
        return torch.stack(found)

    def _laws(self, images: Tensor, places: Sequence[int], asked: Sequence[list[int]]) -> list[Tensor]:
        """The law `[vocabulary]` of the first token of each answer, to a question about the image in its place."""
        pixels = self.preprocess(images.float()).to(self.model.device, self.model.dtype)
        seen = torch.cat([self.model.vision_model(part)[0] for part in pixels.split(self.batch_size)])
        rows_by_length: dict[int, list[int]] = {}
        for row, tokens in enumerate(asked):
            rows_by_length.setdefault(len(tokens), []).append(row)
        found: dict[int, Tensor] = {}
        # Of one length each, since the decoder in transformers attends to padding too.
        for rows in rows_by_length.values():
            for start in range(0, len(rows), self.batch_size):
                batch = rows[start : start + self.batch_size]
                laws = self._laws_of_batch(seen[[places[row] for row in batch]], [asked[row] for row in batch])
                found |= zip(batch, laws, strict=True)
        return [found[row] for row in range(len(asked))]

    def _tokens(self, question: str) -> list[int]:
        ids: list[int] = self.tokenizer(prepared_question(question), truncation=True, max_length=MAX_TOKENS).input_ids
        return [ENCODE, *ids[1:]]

    def _first_tokens(self, answer: Answer) -> list[int]:
        """The distinct tokens with which an answer begins; letters are all small ones here."""
        forms = [answer] if isinstance(answer, str) else answer
        return sorted({self.tokenizer.encode(form, add_special_tokens=False)[0] for form in forms})

    def _laws_of_batch(self, seen: Tensor, questions: Sequence[list[int]]) -> Tensor:
        """The law `[B, vocabulary]` of the first token of each answer to questions of one length."""
        asked = torch.tensor(questions, device=seen.device)
        read = self.model.text_encoder(input_ids=asked, encoder_hidden_states=seen)[0]
        begin = torch.full((len(questions), 1), self.model.decoder_start_token_id, device=seen.device)
        logits = self.model.text_decoder(input_ids=begin, encoder_hidden_states=read, use_cache=False).logits[:, 0]
        return logits.float().softmax(-1)


def prepared_question(question: str) -> str:
    """A question as BLIP reads it.

    Example:
        >>> prepared_question("A Green Bench?")
        'a green bench?'
    """
    return " ".join(re.sub(r"[.!\"()*#:;~]", "", question.lower()).rstrip(" ").split(" ")[:MAX_WORDS])

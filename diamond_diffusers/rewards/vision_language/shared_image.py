"""Several questions about one image, which is read once: what the model keeps of it serves them all."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .model import Asked, Logits, Tokens, VisionLanguageModel

SHARING_MODELS = (
    "gemma3",
    "idefics3",
    "internvl",
    "llava_onevision",
    "qwen2_5_vl",
    "qwen2_vl",
    "qwen3_vl",
    "smolvlm",
)
"""Models whose keys and values can be kept and continued by several tokens; tests hold each to its whole rows."""


def shares_images(model: Any, asked: Sequence[Asked]) -> bool:
    """Whether rows are to share what the model has read of their images."""
    if model.config.model_type not in SHARING_MODELS or len({row.image for row in asked}) == len(asked):
        return False
    # A layer that is computed again in the backward pass keeps nothing.
    again = any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
    return not (again and torch.is_grad_enabled())


def shared_logits(language_model: VisionLanguageModel, images: Tensor, asked: Sequence[Asked]) -> Logits | None:
    """What the model says next in rows of which several are about the same image.

    All images have one size, so that they are as many tokens, and rows begin alike until their questions differ.

    Returns:
        None where the questions stand before the image.
    """
    model, device = language_model.model, language_model.device
    shown = list(dict.fromkeys(row.image for row in asked))
    inputs = language_model.inputs(images[shown], [language_model.conversation(asked[0].question)] * len(shown))
    ids = _token_ids(language_model, images, asked)
    beginning = _common_length(list(ids.values()))
    if (inputs["input_ids"][:, beginning:] == model.config.image_token_id).any():
        return None
    rests = [(*ids[row.question][beginning:], *row.continuation) for row in asked]
    cache, positions = _read_beginning(language_model, inputs, beginning)
    # On the CPU, whence layers on any device take them.
    cache.select(torch.tensor([shown.index(row.image) for row in asked]))
    longest = max(map(len, rests))
    # Nothing that is read stands behind the padding, so that it may be any token and need not be masked.
    rest = torch.tensor([[*tokens, *[0] * (longest - len(tokens))] for tokens in rests], device=device)
    positions = (positions + torch.arange(longest, device=device)).expand(*positions.shape[:-2], len(rests), -1)
    last = [
        range(len(tokens) - 1 - len(row.continuation), len(tokens)) for tokens, row in zip(rests, asked, strict=True)
    ]
    read = sorted({place for places in last for place in places})
    kept = {"logits_to_keep": torch.tensor(read, device=device)} if language_model.keeps_logits else {}
    logits = model(input_ids=rest, position_ids=positions, **cache.argument, use_cache=True, **kept).logits
    # Of all places where some row ends, each row needs its own: a vocabulary is long.
    most = max(map(len, last))
    own = [[*places, *[places[0]] * (most - len(places))] for places in last]
    where = torch.tensor([[read.index(place) if kept else place for place in places] for places in own], device=device)
    values = logits[torch.arange(len(asked), device=device)[:, None], where]
    return Logits(values.float(), [range(len(places)) for places in last])


class _Cache:
    """An empty cache, and the argument as which the model takes it."""

    def __init__(self, model: Any) -> None:
        from transformers import DynamicCache

        named = "cache" in inspect.signature(model.forward).parameters
        self._kept = DynamicCache(config=model.config.get_text_config())
        self.argument = {"cache" if named else "past_key_values": self._kept}

    def select(self, rows: Tensor) -> None:
        """Keeps these of its rows, of which some may be the same."""
        self._kept.batch_select_indices(rows)


def _read_beginning(
    language_model: VisionLanguageModel, inputs: dict[str, Tensor], beginning: int
) -> tuple[_Cache, Tensor]:
    """Has the model read the first tokens of some rows, with their images.

    Returns:
        What it keeps of them, and the position of the next token, `[1, 1]`, or `[3, 1, 1]` where images have places in
        the plane.
    """
    shape = inputs["input_ids"].shape
    begun = {key: value[:, :beginning] if value.shape == shape else value for key, value in inputs.items()}
    cache, placed = _Cache(language_model.model), language_model.positions(begun)
    kept = {"logits_to_keep": 1} if language_model.keeps_logits else {}
    language_model.model(**begun, **placed, **cache.argument, use_cache=True, **kept)
    if not placed:
        return cache, inputs["input_ids"].new_full((1, 1), beginning)
    return cache, placed["position_ids"].amax((-3, -2, -1)).add(1).expand(3, 1, 1)


def _token_ids(language_model: VisionLanguageModel, images: Tensor, asked: Sequence[Asked]) -> dict[str, Tokens]:
    """The tokens of each question's conversation, those of the image included."""
    questions = list(dict.fromkeys(row.question for row in asked))
    texts = [language_model.conversation(question) for question in questions]
    inputs = language_model.inputs(images[:1].detach().expand(len(texts), -1, -1, -1), texts)
    rows = zip(questions, inputs["input_ids"], inputs["attention_mask"].bool(), strict=True)
    return {question: tuple(ids[mask].tolist()) for question, ids, mask in rows}


def _common_length(rows: Sequence[Tokens]) -> int:
    """How many first tokens are the same in all rows, with one at least left over in each."""
    shortest = min(map(len, rows)) - 1
    return next((index for index in range(shortest) if len({row[index] for row in rows}) > 1), shortest)

"""A vision-language model that is asked about images: its chat template, its processing with gradients, its forward."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from PIL.Image import Image
from torch import Tensor

from ...core.tensors import at_least_float32
from ..stock_processing import keeps_graph, processed

Tokens: TypeAlias = tuple[int, ...]

_GENERATING = threading.Lock()
"""While they generate, models of transformers hold the positions of their images as an attribute of their own."""


@dataclass(frozen=True)
class Asked:
    """One row of a forward: a question about an image, and the first tokens of an answer.

    Attributes:
        image: row of the images.
        question: as it is put to the model, in a user's turn.
        continuation: tokens of an answer that the model is taken to have begun with.
    """

    image: int
    question: str
    continuation: Tokens = ()


@dataclass(frozen=True)
class Logits:
    """What the model says next, at several places of each row.

    Attributes:
        values: `[N, K, vocabulary]`, in float32.
        places: for each row, the index into K of what follows its question, then of what follows each token of its
            continuation.
    """

    values: Tensor
    places: Sequence[Sequence[int]]


class VisionLanguageModel:
    """A frozen image-text-to-text model of transformers with its processor.

    It holds no state of a call, so that several threads may use it. The scores are those of 8-bit images in the stock
    processor, and the gradient passes its rounding as if it were not there.

    Args:
        name: of the reward, for errors.
        model: a decoder-only image-text-to-text model.
        processor: its processor, with a chat template and padding on the left.

    Raises:
        ValueError: the chat template shows the model no image or no question, or has it think before it answers.

    Attributes:
        differentiable: whether the image processor works on tensors, so that gradients reach the pixels.
        keeps_logits: whether the model can be asked for the logits of some places alone.
    """

    def __init__(self, name: str, model: Any, processor: Any) -> None:
        self.name, self.model, self.processor = name, model, processor
        # Of models that can do both, the template knows how to ask for an answer at once.
        thinks_or_not = "enable_thinking" in str(processor.chat_template)
        self._template_options = {"enable_thinking": False} if thinks_or_not else {}
        self.keeps_logits = "logits_to_keep" in inspect.signature(model.forward).parameters
        self._check_template()
        # A fast tokeniser keeps how it pads, and only one thread may set it.
        processor.tokenizer(["a"], padding=True)
        self.differentiable = keeps_graph(self.processor.image_processor)

    @property
    def device(self) -> torch.device:
        """Where the model takes its inputs."""
        device: torch.device = self.model.device
        return device

    def conversation(self, question: str) -> str:
        """The text of a conversation in which a user shows an image and asks a question, and the model is to answer.

        Raises:
            ValueError: the question holds a token that stands for an image.
        """
        for kind in ("image_token", "boi_token", "video_token"):
            token = getattr(self.processor, kind, None)
            if isinstance(token, str) and token in question:
                raise ValueError(
                    f"Reward '{self.name}' is to ask {question!r}, where {token!r} stands for an image; leave it out."
                )
        return self._render([{"type": "image"}, {"type": "text", "text": question}])

    def inputs(self, images: Tensor, texts: Sequence[str]) -> dict[str, Tensor]:
        """What the model takes, with the graph of the images where they have one and the processor keeps it.

        Args:
            images: `[B, 3, H, W]` in [0, 1].
            texts: `B` conversations, which are padded on the left.
        """
        images = at_least_float32(images.to(self.device))
        inputs = processed(lambda images: self._process(images, texts), images, self.differentiable)
        # Not every model casts its images.
        dtype = self.model.dtype
        return {key: value.to(dtype) if value.is_floating_point() else value for key, value in inputs.items()}

    def logits(self, images: Tensor, asked: Sequence[Asked]) -> Logits:
        """What the model says next in each of several rows, all of which are one batch.

        Args:
            images: `[B, 3, H, W]` in [0, 1].
            asked: at least one row about these images.
        """
        texts = [self.conversation(row.question) for row in asked]
        shown = [row.image for row in asked]
        inputs = self.inputs(images if shown == list(range(len(images))) else images[shown], texts)
        longest = max(len(row.continuation) for row in asked)
        if longest:
            inputs = extended(inputs, [row.continuation for row in asked])
        kept = {"logits_to_keep": longest + 1} if self.keeps_logits else {}
        outputs = self.model(**inputs, **self.positions(inputs), **kept, use_cache=False)
        places = [range(longest - len(row.continuation), longest + 1) for row in asked]
        return Logits(outputs.logits[:, -longest - 1 :].float(), places)

    def positions(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """`position_ids` of models that give images places in the plane; others find their own."""
        find = getattr(getattr(self.model, "model", None), "get_rope_index", None)
        if find is None:
            return {}
        # Left to itself, the model also keeps them as an attribute, which another thread may need.
        taken = {key: value for key, value in inputs.items() if key in inspect.signature(find).parameters}
        return {"position_ids": find(**taken)[0]}

    @torch.no_grad()
    def generate(self, images: Tensor, questions: Sequence[str], max_new_tokens: int = 64) -> list[str]:
        """The likeliest answer to each question, token by token, as text without special tokens.

        Args:
            images: `[B, 3, H, W]` in [0, 1].
            questions: `B` of them.
            max_new_tokens: after which an answer ends, finished or not.
        """
        inputs = self.inputs(images, [self.conversation(question) for question in questions])
        with _GENERATING:
            drawn = self.model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
        answers = self.processor.tokenizer.batch_decode(
            drawn[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
        )
        return [answer.strip() for answer in answers]

    def _process(self, images: Tensor | Sequence[Image], texts: Sequence[str]) -> dict[str, Tensor]:
        # Most templates write the token that begins a text, which the tokeniser would then add once more.
        begin = self.processor.tokenizer.bos_token
        begun = {"add_special_tokens": False} if begin is not None and texts[0].startswith(begin) else {}
        batch = self.processor(
            text=list(texts), images=[[image] for image in images], padding=True, return_tensors="pt", **begun
        )
        return dict(batch.to(self.device))

    def _render(self, content: list[dict[str, str]]) -> str:
        text: str = self.processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, **self._template_options
        )
        return text

    def _check_template(self) -> None:
        words = {"type": "text", "text": "Is it so?"}
        text = self._render([{"type": "image"}, words])
        if words["text"] not in text or text == self._render([words]):
            lacks = "no image" if words["text"] in text else "no question"
            raise ValueError(
                f"Reward '{self.name}' has a model whose chat template shows {lacks} to it ({text[:200]!r}); give an "
                "instruction-tuned image-text-to-text model, whose template takes content of images and texts."
            )
        if text.count("<think>") > text.count("</think>"):
            raise ValueError(
                f"Reward '{self.name}' has a model that thinks before it answers (its turn begins {text[-20:]!r}), so "
                "that its next token is no answer; give its instruct variant, or a template with `enable_thinking`."
            )


def extended(inputs: dict[str, Tensor], continuations: Sequence[Tokens]) -> dict[str, Tensor]:
    """Inputs with further tokens at the end of each row; those which get fewer are padded on the left."""
    longest, ids = max(map(len, continuations)), inputs["input_ids"]
    added = ids.new_tensor([[0] * (longest - len(tokens)) + list(tokens) for tokens in continuations])
    widened = dict(inputs)
    for key, value in inputs.items():
        if value.shape != ids.shape:
            continue
        # A row of `attention_mask` is 1 at its tokens; those of an answer are of no other kind than text, which is 0.
        new = added if key == "input_ids" else torch.full_like(added, key == "attention_mask")
        joined = torch.cat([value, new], 1)
        rows = []
        for row, tokens in zip(joined, continuations, strict=True):
            spare = longest - len(tokens)
            kept = torch.cat([row[: value.shape[1]], row[value.shape[1] + spare :]])
            rows.append(torch.cat([row.new_zeros(spare), kept]))
        widened[key] = torch.stack(rows)
    return widened

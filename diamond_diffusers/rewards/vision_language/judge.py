"""Judges: whatever tells how likely answers to questions about images are, and vision-language models as such."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from os import PathLike
from typing import Any, Protocol, Self, TypedDict

import torch
from torch import Tensor

from ...core.checks import check_counts
from ..checkpointing import checkpoint_layers
from ..hub import check_hub_options
from .answers import Answer, AnswerRows, answer_tokens
from .loading import check_placement, load
from .model import Asked, Logits, VisionLanguageModel
from .shared_image import shared_logits, shares_images

CHECKPOINT = "Qwen/Qwen2.5-VL-7B-Instruct"


class JudgeOptions(TypedDict, total=False):
    """The options of a `VisionLanguageJudge` beside its checkpoint, which rewards hand on to it."""

    name: str
    gradient_checkpointing: bool
    max_batch_size: int | None
    device: torch.device | str | None
    device_map: Any
    dtype: torch.dtype | None
    quantization: str | None
    cache_dir: str
    force_download: bool
    local_files_only: bool
    revision: str
    subfolder: str
    token: str | bool


class Judge(Protocol):
    """What rubrics and question lists ask. A `VisionLanguageJudge` is one, and so may an object of your own be."""

    @property
    def differentiable(self) -> bool:
        """Whether the probabilities carry gradients to the pixels."""

    def probabilities(
        self,
        images: Tensor,
        questions: Sequence[str],
        answers: Sequence[Answer],
        rows: Sequence[int] | None = None,
    ) -> Tensor:
        """How likely each question is to be answered so.

        Args:
            images: `[B, 3, H, W]` in [0, 1].
            questions: `P` of them.
            answers: the answer to each question: a text, or several that mean the same.
            rows: the row of `images` that each question is about; by default there is one question for each image.

        Returns:
            `[P]` probabilities.
        """


class VisionLanguageJudge:
    """A vision-language model of transformers that tells how likely answers to questions about images are.

    The probability of an answer is that of its tokens at the beginning of the model's reply, of all its forms together.
    Questions of one batch do not change each other's answers, but for rounding. Where the model allows it, the image is
    read once for all questions about it.

    Args:
        checkpoint: a name on the Hub or a local folder, with weights in safetensors and a chat template.
        name: name by which errors call it.
        gradient_checkpointing: whether the backward pass recomputes each layer instead of storing its activations.
        max_batch_size: the largest number of questions in one call of the model; None for all at once.
        device: device of the model; images are moved to it.
        device_map: where the parts of a model too large for one device are, as transformers takes it, such as "auto".
        dtype: dtype of the model; by default the checkpoint's own. Probabilities are in float32.
        quantization: "nf4" for 4 bits a weight (bitsandbytes, on CUDA devices) or "int8" for 8 (torchao); None for
            none.
        hub_options: forwarded to `from_pretrained`, see `CLIPReward`.

    Raises:
        ImportError: the package that quantises is not installed.
        OSError: the checkpoint cannot be found or read.
        TypeError: an option is unknown.
        ValueError: the checkpoint is no such model or thinks before it answers, or an option is malformed.

    Example:
        >>> judge = VisionLanguageJudge("Qwen/Qwen2.5-VL-7B-Instruct", device="cuda")  # doctest: +SKIP
        >>> judge.probabilities(images, ["Is there a dog?"] * len(images), ["Yes"] * len(images))  # doctest: +SKIP
        tensor([0.9871, 0.0312])

    Source: the scores of VQAScore (Lin et al. 2024, arXiv:2404.01291) and Soft-TIFA (Kamath et al. 2025,
    arXiv:2512.16853).
    """

    def __init__(
        self,
        checkpoint: str | PathLike[str] = CHECKPOINT,
        *,
        name: str = "judge",
        gradient_checkpointing: bool = False,
        max_batch_size: int | None = None,
        device: torch.device | str | None = None,
        device_map: Any = None,
        dtype: torch.dtype | None = None,
        quantization: str | None = None,
        **hub_options: Any,
    ) -> None:
        check_hub_options(name, hub_options)
        check_counts(max_batch_size=max_batch_size)
        check_placement(name, quantization, device, device_map)
        # By whoever maps a model it is placed for good, and what bitsandbytes has packed cannot be moved.
        self._stays = device_map is not None or quantization == "nf4"
        if quantization is not None and device is not None:
            # Each weight is quantised where it belongs, so that the whole model need not fit anywhere else.
            device_map = {"": device}
        self.name, self.max_batch_size, self.quantization = name, max_batch_size, quantization
        model, processor = load(name, checkpoint, dtype, hub_options, device_map, quantization)
        self.language_model = VisionLanguageModel(name, model, processor)
        if gradient_checkpointing:
            checkpoint_layers(model)
        self.to(device)

    @property
    def model(self) -> Any:
        """The model of transformers."""
        return self.language_model.model

    @property
    def processor(self) -> Any:
        """Its processor."""
        return self.language_model.processor

    @property
    def differentiable(self) -> bool:
        """Whether the image processor works on tensors, so that gradients reach the pixels."""
        return self.language_model.differentiable

    def probabilities(
        self,
        images: Tensor,
        questions: Sequence[str],
        answers: Sequence[Answer],
        rows: Sequence[int] | None = None,
    ) -> Tensor:
        """How likely each question is to be answered so, `[P]`; see `Judge.probabilities`.

        Raises:
            ValueError: the numbers of questions, answers and rows are not equal, or the model cannot write an answer.
        """
        return self.log_probabilities(images, questions, answers, rows).exp()

    def log_probabilities(
        self,
        images: Tensor,
        questions: Sequence[str],
        answers: Sequence[Answer],
        rows: Sequence[int] | None = None,
    ) -> Tensor:
        """Logarithms of `probabilities`, which are told apart where those are all 0 in float32."""
        shown = self._shown(images, questions, rows)
        if len(questions) != len(answers):
            raise ValueError(
                f"Reward '{self.name}' got {len(questions)} questions with {len(answers)} answers; give as many."
            )
        written = [answer if isinstance(answer, str) else tuple(answer) for answer in answers]
        tokens = {answer: answer_tokens(self.name, self.processor.tokenizer, answer) for answer in set(written)}
        reading = AnswerRows(shown, questions, [tokens[answer] for answer in written])
        return reading.log_probabilities(self._read(images, reading.asked))

    def next_token_probabilities(
        self, images: Tensor, questions: Sequence[str], rows: Sequence[int] | None = None
    ) -> Tensor:
        """The distribution of the first token of the reply to each question, `[P, vocabulary]`; see `probabilities`."""
        asked = list(map(Asked, self._shown(images, questions, rows), questions))
        laws = [
            torch.stack([values[places[0]] for values, places in zip(logits.values, logits.places, strict=True)])
            for _, logits in self._read(images, asked)
        ]
        return torch.cat(laws).softmax(-1)

    def check_exclusive(self, answers: Sequence[Answer]) -> None:
        """Checks that no reply begins with two of these answers, so that their probabilities add up.

        Raises:
            ValueError: one answer is the beginning of another in this model's tokens.
        """
        tokens = [answer_tokens(self.name, self.processor.tokenizer, answer) for answer in answers]
        for answer, forms in zip(answers, tokens, strict=True):
            for other, others in zip(answers, tokens, strict=True):
                if answer is not other and any(far[: len(near)] == near for near in forms for far in others):
                    raise ValueError(
                        f"Reward '{self.name}' has the answers {answer!r} and {other!r}, of which the first begins the "
                        "second in this model's tokens; give answers that begin apart, such as letters."
                    )

    def check_questions(self, questions: Sequence[str]) -> None:
        """Checks that these can be asked, before there are images to ask them about.

        Raises:
            ValueError: one holds a token that stands for an image.
        """
        for question in dict.fromkeys(questions):
            self.language_model.conversation(question)

    def generate(self, images: Tensor, questions: Sequence[str], max_new_tokens: int = 64) -> list[str]:
        """The likeliest reply to each of `B` questions about images `[B, 3, H, W]`, token by token."""
        size = self.max_batch_size or len(questions)
        parts = [slice(start, start + size) for start in range(0, len(questions), size)]
        return [
            reply
            for part in parts
            for reply in self.language_model.generate(images[part], questions[part], max_new_tokens)
        ]

    def _shown(self, images: Tensor, questions: Sequence[str], rows: Sequence[int] | None) -> list[int]:
        """The row of each question's image."""
        shown = list(range(len(images)) if rows is None else rows)
        if len(shown) != len(questions) or not all(0 <= row < len(images) for row in shown):
            raise ValueError(
                f"Reward '{self.name}' got {len(questions)} questions about {len(images)} images, rows={rows}; give "
                "a question for each image, or the row of each question's image as `rows`."
            )
        return shown

    def _read(self, images: Tensor, asked: Sequence[Asked]) -> Iterator[tuple[range, Logits]]:
        size = self.max_batch_size or len(asked)
        for start in range(0, len(asked), size):
            part = asked[start : start + size]
            shared = shares_images(self.model, part) and shared_logits(self.language_model, images, part)
            yield range(start, start + len(part)), shared or self.language_model.logits(images, part)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """Moves and casts the model, in place; one of 4 bits or with a device map stays where it is.

        Raises:
            ValueError: a model that is quantised or stays is to have another dtype.
        """
        if dtype is not None and dtype != self.model.dtype and (self._stays or self.quantization is not None):
            raise ValueError(
                f"Reward '{self.name}' is to have dtype={dtype}, but its model was placed or quantised as it was "
                "loaded; give dtype where you make it."
            )
        if not self._stays:
            self.model.to(device=device, dtype=dtype if self.quantization is None else None)
        return self

    def compile(self, **options: Any) -> Self:
        """Compiles the model, in place, by `torch.compile(**options)`."""
        self.model.compile(**options)
        return self

"""Open-vocabulary detectors of transformers: boxes of whatever is named."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from ...core.tensors import at_least_float32
from ..checkpointing import checkpoint_layers
from ..errors import first_line
from ..hub import check_hub_options
from ..stock_processing import keeps_graph, processed
from ..weight_files import counted_weights

CHECKPOINT = "google/owlv2-base-patch16-ensemble"


@dataclass(frozen=True)
class Detections:
    """What a detector has found in one image, of each phrase; with their graph.

    Attributes:
        scores: `[Q, P]`, the confidence from 0 to 1 that a box shows a phrase.
        boxes: `[Q, 4]`, left, top, right and bottom in pixels of the image; they may reach out of it.
    """

    scores: Tensor
    boxes: Tensor


class Detector(ABC):
    """Finds phrases in images. Subclasses run the models of one architecture.

    Scores are those of 8-bit images in the stock processor. Gradients pass its rounding as if it were not there, if the
    processor works on tensors, as those of transformers do by default.

    Args:
        model: a detector of transformers.
        processor: its processor.

    Attributes:
        architecture: the model's, as in its `config.json`.
        threshold: above which a score counts, if nothing else is asked for.
        template: a text with `{}` in a phrase's place, as the model was trained on.
        differentiable: whether gradients pass from scores and boxes to the pixels.
    """

    architecture: ClassVar[str]
    threshold: ClassVar[float]
    template: ClassVar[str]

    def __init__(self, model: Any, processor: Any) -> None:
        self.model: Any = model.eval().requires_grad_(False)
        self.processor = processor
        self.differentiable = keeps_graph(self.processor.image_processor)

    @abstractmethod
    def detect(self, images: Tensor, phrases: Sequence[str]) -> list[Detections]:
        """The boxes in each image.

        Args:
            images: `[B, 3, H, W]` in [0, 1].
            phrases: `P` texts, the same for all images.
        """

    def check_phrases(self, phrases: Sequence[str]) -> None:  # noqa: B027 - a detector may read any
        """Raises a `ValueError` where the model cannot read phrases; asked before a run samples any image."""

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """Moves and casts the model, in place; returns the detector."""
        self.model.to(device=device, dtype=dtype)
        return self

    def pixels(self, images: Tensor) -> dict[str, Tensor]:
        """What the stock processor makes of images `[B, 3, H, W]` in [0, 1], with their graph."""
        images = at_least_float32(images.to(self.model.device))
        return processed(lambda images: self._processed(list(images)), images, self.differentiable)

    def _processed(self, images: Sequence[Any]) -> dict[str, Tensor]:
        layout = {"input_data_format": "channels_first"} if isinstance(images[0], Tensor) else {}
        inputs = dict(self.processor.image_processor(images, return_tensors="pt", **layout).to(self.model.device))
        inputs["pixel_values"] = inputs["pixel_values"].to(self.model.dtype)
        return inputs


class OWLv2(Detector):
    """OWLv2, which scores each phrase on its own.

    Source: Minderer et al. 2023, "Scaling Open-Vocabulary Object Detection", arXiv:2306.09683.
    """

    architecture = "owlv2"
    threshold = 0.2
    template = "a photo of a {}"

    def detect(self, images: Tensor, phrases: Sequence[str]) -> list[Detections]:
        """See `Detector`.

        Raises:
            ValueError: a phrase is longer than the model reads.
        """
        self.check_phrases(phrases)
        length = self._max_tokens
        texts = self.processor.tokenizer(list(phrases), padding="max_length", max_length=length, return_tensors="pt")
        repeated = {
            key: texts[key].to(self.model.device).repeat(len(images), 1) for key in ("input_ids", "attention_mask")
        }
        outputs = self.model(**self.pixels(images), **repeated)
        # The processor pads images to squares.
        edge = max(images.shape[-2:])
        return _of_each_image(outputs.logits.float().sigmoid(), outputs.pred_boxes.float(), (edge, edge))

    def check_phrases(self, phrases: Sequence[str]) -> None:
        """See `Detector`: none may be longer than the model reads."""
        tokenized = self.processor.tokenizer(list(phrases), verbose=False).input_ids
        for phrase, tokens in zip(phrases, tokenized, strict=True):
            if len(tokens) > self._max_tokens:
                raise _too_long(phrase, len(tokens), self._max_tokens)

    @property
    def _max_tokens(self) -> int:
        limit: int = self.model.config.text_config.max_position_embeddings
        return limit


class GroundingDINO(Detector):
    """Grounding DINO, which reads all phrases as one text. A phrase's score is the largest one of its tokens.

    Source: Liu et al. 2023, "Grounding DINO: Marrying DINO with Grounded Pre-Training for Open-Set Object Detection",
    arXiv:2303.05499.
    """

    architecture = "grounding-dino"
    threshold = 0.3
    template = "{}"

    def detect(self, images: Tensor, phrases: Sequence[str]) -> list[Detections]:
        """See `Detector`.

        Raises:
            ValueError: the phrases are longer than the model reads.
        """
        self.check_phrases(phrases)
        text, spans = _joined(phrases)
        encoding = self.processor.tokenizer([text], return_tensors="pt", return_token_type_ids=True)
        repeated = {key: value.to(self.model.device).expand(len(images), -1) for key, value in encoding.items()}
        outputs = self.model(**self.pixels(images), **repeated)
        tokens = outputs.logits.float().sigmoid()
        scores = []
        for start, end in spans:
            of_phrase = {encoding.char_to_token(0, place) for place in range(start, end)} - {None}
            scores.append(tokens[..., sorted(of_phrase)].amax(-1))
        height, width = images.shape[-2:]
        return _of_each_image(torch.stack(scores, -1), outputs.pred_boxes.float(), (width, height))

    def check_phrases(self, phrases: Sequence[str]) -> None:
        """See `Detector`: together they may not be longer than the model reads."""
        text, _ = _joined(phrases)
        length, limit = len(self.processor.tokenizer(text, verbose=False).input_ids), self.model.config.max_text_len
        if length > limit:
            raise _too_long(text, length, limit)


def load_detector(
    name: str,
    checkpoint: str | PathLike[str] = CHECKPOINT,
    *,
    gradient_checkpointing: bool = False,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    **hub_options: Any,
) -> Detector:
    """The detector of a checkpoint.

    Args:
        name: of the reward, for messages.
        checkpoint: an OWLv2 or a Grounding DINO of transformers, by name on the Hub or as a local folder, with weights
            in safetensors.
        gradient_checkpointing: whether the backward pass recomputes each layer instead of storing its activations.
        device: device of the model.
        dtype: dtype of the model; by default the checkpoint's own. Scores and boxes are in float32.
        hub_options: forwarded to `from_pretrained`, see `CLIPReward`.

    Raises:
        OSError: the checkpoint cannot be found or read.
        TypeError: an option is unknown.
        ValueError: the checkpoint is of another architecture, or lacks weights.
    """
    from transformers import AutoConfig, AutoModelForZeroShotObjectDetection, AutoProcessor

    check_hub_options(name, hub_options)
    try:
        architecture = AutoConfig.from_pretrained(checkpoint, **hub_options).model_type
        if architecture in _DETECTORS:
            model, report = AutoModelForZeroShotObjectDetection.from_pretrained(
                checkpoint, dtype=dtype or "auto", use_safetensors=True, output_loading_info=True, **hub_options
            )
            processor = AutoProcessor.from_pretrained(checkpoint, **hub_options)
    except (OSError, ValueError) as error:
        raise OSError(
            f"Reward '{name}' cannot load detector='{checkpoint}' ({first_line(error)}); give a name on the Hub, or a "
            "folder with an OWLv2 or a Grounding DINO in safetensors and its processor."
        ) from error
    if architecture not in _DETECTORS:
        raise ValueError(
            f"Reward '{name}' got detector='{checkpoint}' of the architecture '{architecture}'; "
            f"give one of {' or '.join(_DETECTORS)}."
        )
    if report["missing_keys"]:
        raise ValueError(
            f"Reward '{name}' got detector='{checkpoint}', which lacks {counted_weights(report['missing_keys'])}; "
            "give a complete checkpoint."
        )
    if gradient_checkpointing:
        checkpoint_layers(model)
    return _DETECTORS[architecture](model, processor).to(device)


_DETECTORS: dict[str, type[Detector]] = {each.architecture: each for each in (OWLv2, GroundingDINO)}


def _joined(phrases: Sequence[str]) -> tuple[str, list[tuple[int, int]]]:
    """The phrases as one text, in lower case and with full stops, and the characters of each."""
    text, spans = "", []
    for phrase in phrases:
        start = len(text)
        text += phrase.lower()
        spans.append((start, len(text)))
        text += ". "
    return text.rstrip(), spans


def _too_long(text: str, length: int, limit: int) -> ValueError:
    return ValueError(
        f"{text!r:.200} has {length} tokens, of which the detector reads {limit}; name fewer things, or in fewer words."
    )


def _of_each_image(scores: Tensor, boxes: Tensor, size: tuple[int, int]) -> list[Detections]:
    """Detections from scores `[B, Q, P]`, boxes `[B, Q, 4]` of centres and lengths in units of width and height."""
    centres, lengths = boxes[..., :2], boxes[..., 2:]
    corners = torch.cat([centres - lengths / 2, centres + lengths / 2], -1) * boxes.new_tensor([*size, *size])
    return [Detections(*of_image) for of_image in zip(scores, corners, strict=True)]

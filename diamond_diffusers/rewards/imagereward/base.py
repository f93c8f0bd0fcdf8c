"""The base class of rewards that score by a BLIP which reads the prompt and sees the image."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor, nn

from ...core.tensors import at_least_float32
from ..base import Reward
from ..checkpointing import checkpoint_layers
from ..errors import first_line
from ..hub import check_hub_options, options_of_others
from ..preprocessing import ImagePreprocessing
from ..truncation import TruncationWarning
from ..weight_files import find_weights, read_weights

if TYPE_CHECKING:
    from transformers import BlipTextConfig, BlipVisionConfig

    from .network import BLIPRewardNetwork

BERT = "google-bert/bert-base-uncased"
"""The tokenizer of all BLIPs."""


class BLIPReward(Reward):
    """A reward by a BLIP with a head; subclasses define the network, and list in `file_names` its files.

    It runs the published checkpoint on transformers' BLIP modules. Images of any size are preprocessed on tensors as
    the official code does on PIL images, and scores are differentiable to the pixels. The text tower sees the image
    from its first layer on, so that no features of prompts can be cached.

    Args:
        checkpoint: a repository on the Hub, or a local file or folder.
        name: name under which the scores are reported.
        tokenizer: name or folder of the uncased BERT tokenizer.
        vision_config: configuration of the checkpoint's image tower, if it is not the published one.
        text_config: configuration of the checkpoint's text tower, if it is not the published one.
        gradient_checkpointing: whether the backward pass recomputes each layer instead of storing its activations.
        max_batch_size: the largest number of images in one call of the model; None for all at once.
        device: device of the model; images are moved to it.
        dtype: dtype of the two towers; the head stays in float32.
        hub_options: forwarded to the Hub, see `CLIPReward`; the tokenizer gets all but `revision` and `subfolder`.

    Attributes:
        max_tokens: of a prompt; longer ones are cut.
        file_names: what the checkpoint's file may be called in a folder; in a repository it has the last name.

    Raises:
        OSError: the checkpoint or the tokenizer cannot be found or read.
        TypeError: an option is unknown.
        ValueError: the checkpoint is of another architecture; the first tensor at fault is named.
    """

    max_tokens: ClassVar[int]
    file_names: ClassVar[tuple[str, ...]]

    def __init__(
        self,
        checkpoint: str | PathLike[str],
        *,
        name: str,
        tokenizer: str | PathLike[str] = BERT,
        vision_config: BlipVisionConfig | None = None,
        text_config: BlipTextConfig | None = None,
        gradient_checkpointing: bool = False,
        max_batch_size: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
        **hub_options: Any,
    ) -> None:
        # It loads transformers' BLIP.
        from .network import TEXT_CONFIG, VISION_CONFIG

        vision_config, text_config = vision_config or VISION_CONFIG, text_config or TEXT_CONFIG
        self.name = name
        self.max_batch_size = max_batch_size
        check_hub_options(name, hub_options)
        self.model = self._load(
            checkpoint, hub_options, lambda weights: self.build_network(weights, vision_config, text_config)
        )
        self._prepare(tokenizer, vision_config.image_size, hub_options)
        if gradient_checkpointing:
            checkpoint_layers(self.model)
        self.to(device, dtype)

    @abstractmethod
    def build_network(
        self, weights: Mapping[str, Tensor], vision_config: BlipVisionConfig, text_config: BlipTextConfig
    ) -> BLIPRewardNetwork:
        """The network with published weights, in float32, for inference.

        Raises:
            ValueError: a tensor is missing, unexpected or of another shape; the first such one is named.
        """

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores `[B]` of images `[B, 3, H, W]` in [0, 1] and `B` prompts."""
        weight = next(self.model.parameters())
        pixels = self.preprocessing(at_least_float32(images.to(weight.device)))
        tokens = self._tokenize(prompts)
        ids, mask = tokens.input_ids.to(weight.device), tokens.attention_mask.to(weight.device)
        return self.model(pixels.to(weight.dtype), ids, mask)

    def compile(self, **options: Any) -> Self:
        """Compiles the model with `torch.compile(**options)`, in place; returns the reward."""
        self.model.compile(**options)
        return self

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """Moves and casts the model, in place; returns the reward. The head is in float32 at least."""
        self.model.to(device=device)
        if dtype is not None:
            self.model.vision.to(dtype)
            self.model.text.to(dtype)
            self.model.head.to(torch.promote_types(dtype, torch.float32))
        return self

    def _load(
        self,
        checkpoint: str | PathLike[str],
        hub_options: dict[str, Any],
        build: Callable[[Mapping[str, Tensor]], nn.Module],
    ) -> nn.Module:
        path = find_weights(self.name, checkpoint, self.file_names, hub_options)
        try:
            return build(read_weights(path))
        except ValueError as error:
            raise ValueError(
                f"Reward '{self.name}' got checkpoint='{checkpoint}', but {error}; give one in its published layout."
            ) from error

    def _prepare(self, tokenizer: str | PathLike[str], image_size: int, hub_options: dict[str, Any]) -> None:
        self.preprocessing = ImagePreprocessing(size=[image_size], crop_size=[image_size, image_size])
        self.tokenizer = load_bert_tokenizer(self.name, tokenizer, hub_options)
        # BLIP's two tokens of its own, which follow BERT's vocabulary.
        self.tokenizer.add_special_tokens({"bos_token": "[DEC]", "additional_special_tokens": ["[ENC]"]})
        self._warn_of_truncation = TruncationWarning(self.name, self.max_tokens)

    def _tokenize(self, prompts: Sequence[str]) -> Any:
        self._warn_of_truncation(
            prompts, lambda texts: [len(ids) for ids in self.tokenizer(texts, verbose=False).input_ids]
        )
        return self.tokenizer(
            list(prompts), padding="max_length", truncation=True, max_length=self.max_tokens, return_tensors="pt"
        )


def load_bert_tokenizer(name: str, tokenizer: str | PathLike[str], hub_options: Mapping[str, Any]) -> Any:
    """The uncased BERT tokenizer of the reward `name`, to which further tokens may be added.

    Args:
        name: name of the reward, for messages.
        tokenizer: a name on the Hub or a folder.
        hub_options: those of the checkpoint, of which `revision` and `subfolder` are its own.

    Raises:
        OSError: the tokenizer cannot be found or read.
    """
    from transformers import BertTokenizer

    try:
        return BertTokenizer.from_pretrained(tokenizer, **options_of_others(hub_options))
    except (OSError, ValueError) as error:
        raise OSError(
            f"Reward '{name}' cannot load tokenizer='{tokenizer}' ({first_line(error)}); give the "
            "name or the folder of an uncased BERT tokenizer."
        ) from error

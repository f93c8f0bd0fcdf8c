"""Imports the network of the `image-reward` package beside a newer transformers than it was written for."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    import transformers

ROOT = f"{__name__}.ImageReward"
# `modeling_utils` of earlier releases has them. The second is gone for good; only the pruning of heads calls it.
MOVED_NAMES = ("apply_chunking_to_forward", "find_pruneable_heads_and_indices", "prune_linear_layer")


def import_official() -> ModuleType:
    """The package's module with its network, whose class `ImageReward` takes a `med_config` file.

    Only the files of the network are run, under a name inside this module. So the package's trainer and its other
    scores need not be importable, and `import ImageReward` does what it would do anyway. The network comes without a
    tokenizer, which the package would always request from the Hub.

    Raises:
        ImportError: the package or `fairscale` is not installed, or something else is not as the package expects.
    """
    spec = find_spec("ImageReward")
    folders = None if spec is None else spec.submodule_search_locations
    if folders is None:
        raise ModuleNotFoundError("No module named 'ImageReward'")
    _add_package(ROOT, folders)
    _add_package(f"{ROOT}.models", [f"{folder}/models" for folder in folders])
    with earlier_transformers():
        network = importlib.import_module(f"{ROOT}.ImageReward")
    pretraining: Any = importlib.import_module(f"{ROOT}.models.BLIP.blip_pretrain")
    pretraining.init_tokenizer = lambda: None
    _complete(importlib.import_module(f"{ROOT}.models.BLIP.med").BertPreTrainedModel)
    return network


def _add_package(name: str, folders: Iterable[str]) -> None:
    """Registers an empty package in place of one whose `__init__.py` would import everything."""
    package = sys.modules.setdefault(name, ModuleType(name))
    package.__path__ = list(folders)


@contextmanager
def earlier_transformers() -> Iterator[None]:
    """Context with the names that transformers has moved; its end undoes this and the package's changes of logging."""
    import transformers
    from transformers import modeling_utils, pytorch_utils

    absent = [name for name in MOVED_NAMES if not hasattr(modeling_utils, name)]
    verbosity = transformers.logging.get_verbosity()
    with warnings.catch_warnings():
        for name in absent:
            setattr(modeling_utils, name, getattr(pytorch_utils, name, None))
        try:
            yield
        finally:
            transformers.logging.set_verbosity(verbosity)
            for name in absent:
                delattr(modeling_utils, name)


def _complete(model_class: Any) -> None:
    """Adds the members that the package's models inherited from transformers 4, as far as the network uses them."""
    model_class.all_tied_weights_keys = {}
    model_class.get_head_mask = lambda self, head_mask, num_layers: [None] * num_layers
    model_class.invert_attention_mask = _invert_attention_mask


def _invert_attention_mask(model: transformers.PreTrainedModel, mask: Tensor) -> Tensor:
    return (1.0 - mask[:, None, None, :].to(model.dtype)) * torch.finfo(model.dtype).min

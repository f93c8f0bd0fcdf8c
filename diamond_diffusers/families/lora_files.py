"""Reads LoRA files as stock diffusers does; the files are not trusted."""

from __future__ import annotations

from collections.abc import Mapping
from json import JSONDecodeError
from os import PathLike
from typing import Any

from diffusers import DiffusionPipeline
from torch import Tensor

_DOWN = (".lora_A.", ".lora.down.", ".lora_down.")
"""In the names of weights whose first dimension is the rank."""
_REMEDY = "take the file from its author"


def read_lora(
    pipeline: DiffusionPipeline, source: str | PathLike[str] | dict[str, Tensor], **options: Any
) -> dict[str, Tensor]:
    """The weights of a LoRA.

    Args:
        source, **options: arguments of the stock `lora_state_dict`.

        Raises:
            ValueError: the file's declaration is no JSON, or declares a rank that the weights do not have, for which
                the stock pipeline would take memory.
    """
    name = "given" if isinstance(source, dict) else str(source)
    try:
        read = pipeline.lora_state_dict(source, return_lora_metadata=True, **options)
    except (JSONDecodeError, RecursionError) as error:
        raise ValueError(f"the metadata of the LoRA {name} are no JSON; {_REMEDY}") from error
    weights, *_, metadata = read if isinstance(read, tuple) else (read, None)
    if metadata is None:
        return weights
    if not isinstance(metadata, Mapping):
        raise ValueError(f"the metadata of the LoRA {name} are no object of JSON; {_REMEDY}")
    if any("lokr_" in key for key in weights):
        # These are not of the shape of a rank.
        return weights
    largest = max((w.shape[0] for key, w in weights.items() if any(part in key for part in _DOWN)), default=0)
    for rank in _declared_ranks(metadata):
        if not isinstance(rank, int) or not 1 <= rank <= largest:
            raise ValueError(
                f"the LoRA {name} declares the rank {str(rank)[:20]}, but its weights have at most {largest}; {_REMEDY}"
            )
    return weights


def _declared_ranks(metadata: Mapping[str, Any]) -> list[Any]:
    """The declared ranks of all components, and of layers that have a rank of their own."""
    ranks = []
    for key, value in metadata.items():
        kind = key.rpartition(".")[2]
        if kind == "r":
            ranks.append(value)
        elif kind == "rank_pattern" and value:
            ranks += value.values() if isinstance(value, Mapping) else [value]
    return ranks

"""What fused attention kernels hold for the backward pass, on tensors of any device."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn import functional


def fused_attention() -> AbstractContextManager[Any]:
    """Context in which `scaled_dot_product_attention` computes nothing, and holds what the fused kernels would.

    The flash and the memory-efficient kernels of CUDA hold queries, keys, values, the result and the logarithm of the
    softmax's sum, and compute the scores again. On the meta device torch knows the plain rule alone, which holds the
    scores. The function is replaced for the whole process, since recomputation of what is checkpointed has to find it.

    Example:
        >>> with fused_attention():
        ...     functional.scaled_dot_product_attention(query, key, value)
    """
    return patch.object(functional, "scaled_dot_product_attention", _attend)


def _attend(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *_: Any, **options: Any
) -> Tensor:
    result: Tensor = _Attention.apply(query, key, value, attn_mask)
    return result


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        *batch, heads, length, _ = query.shape
        # In the order of memory in which the kernels write: the heads of a token lie together.
        result = query.new_empty(*batch, length, heads, value.shape[-1]).transpose(-3, -2)
        log_sums = query.new_empty(*batch, heads, length, dtype=torch.float32)
        # A mask is added to the scores, in their dtype.
        added = None if mask is None else mask.to(query.dtype)
        ctx.save_for_backward(query, key, value, result, log_sums, added)
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, *_ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value), None

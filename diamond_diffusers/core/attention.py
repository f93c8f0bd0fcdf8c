"""Attention kernels whose backward pass can be relied on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType

from torch.backends import cuda

from .held import HeldChange


@contextmanager
def differentiable_attention() -> Iterator[None]:
    """Excludes cuDNN's attention, for everything that is differentiated: forward, backward and recomputation.

    On H100 and H200 torch may choose that kernel by default, and in half precision its backward pass has given NaN
    (pytorch/pytorch#196678, huggingface/trl#7181). The flash, memory-efficient and plain kernels remain.

    The switch belongs to the process, not to the thread: the first of all users turns the kernel off and the last turns
    it on again, if it was on. Calls in other threads that differentiate nothing may meanwhile be given another kernel,
    which is right too, and rounds differently on such a GPU.

    Example:
        >>> with differentiable_attention():
        ...     model(x).sum().backward()
    """
    with _EXCLUDED.of(cuda):
        yield


def _exclude_cudnn(kernels: ModuleType) -> Callable[[], object]:
    was_enabled = kernels.cudnn_sdp_enabled()
    kernels.enable_cudnn_sdp(False)
    return lambda: kernels.enable_cudnn_sdp(was_enabled)


_EXCLUDED = HeldChange(_exclude_cudnn)

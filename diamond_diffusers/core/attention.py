"""Attention kernels whose backward pass can be relied on."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from torch.backends import cuda

_lock = threading.Lock()
_num_users = 0
_was_enabled = True


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
    global _num_users, _was_enabled
    with _lock:
        if _num_users == 0:
            _was_enabled = cuda.cudnn_sdp_enabled()
            cuda.enable_cudnn_sdp(False)
        _num_users += 1
    try:
        yield
    finally:
        with _lock:
            _num_users -= 1
            if _num_users == 0:
                cuda.enable_cudnn_sdp(_was_enabled)

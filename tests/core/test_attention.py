"""Which attention kernels may be chosen while something is differentiated."""

from __future__ import annotations

import threading

import pytest
import torch
from torch.backends import cuda

from diamond_diffusers.core.attention import differentiable_attention

pytestmark = pytest.mark.usefixtures("cudnn_attention")


def test_only_cudnn_is_excluded():
    others = (cuda.flash_sdp_enabled, cuda.mem_efficient_sdp_enabled, cuda.math_sdp_enabled)
    before = [is_enabled() for is_enabled in others]
    with differentiable_attention():
        assert not cuda.cudnn_sdp_enabled()
        assert [is_enabled() for is_enabled in others] == before
    assert cuda.cudnn_sdp_enabled()


def test_an_error_within_ends_the_exclusion():
    with pytest.raises(RuntimeError, match="within"), differentiable_attention():
        raise RuntimeError("within")
    assert cuda.cudnn_sdp_enabled()


def test_nested_users_keep_it_until_the_last_leaves():
    with differentiable_attention():
        with differentiable_attention():
            pass
        assert not cuda.cudnn_sdp_enabled()
    assert cuda.cudnn_sdp_enabled()


def test_what_the_caller_has_turned_off_stays_off():
    cuda.enable_cudnn_sdp(False)
    with differentiable_attention():
        pass
    assert not cuda.cudnn_sdp_enabled()


def test_threads_that_overlap_see_it_excluded_throughout():
    """The first to enter leaves first, while the other is still within."""
    entered, left, seen = threading.Event(), threading.Event(), []

    def second():
        with differentiable_attention():
            entered.set()
            left.wait(10)
            seen.append(cuda.cudnn_sdp_enabled())

    thread = threading.Thread(target=second)
    with differentiable_attention():
        thread.start()
        assert entered.wait(10)
    left.set()
    thread.join(10)
    assert seen == [False]
    assert cuda.cudnn_sdp_enabled()


def test_many_threads_leave_it_as_it_was():
    seen = []

    def enter_often():
        for _ in range(200):
            with differentiable_attention():
                seen.append(cuda.cudnn_sdp_enabled())

    threads = [threading.Thread(target=enter_often) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(seen) == 800 and not any(seen)
    assert cuda.cudnn_sdp_enabled()


def test_recomputed_activations_too():
    seen = []

    def function(x):
        seen.append(cuda.cudnn_sdp_enabled())
        return x.sin()

    x = torch.ones(2, requires_grad=True)
    with differentiable_attention():
        torch.utils.checkpoint.checkpoint(function, x, use_reentrant=False).sum().backward()
    assert seen == [False, False]

"""What evaluations take is counted as they take it, and nothing is held for that."""

import gc
import weakref

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from diamond_diffusers.core.memory_use import MemoryUse, memory_use, peak_bytes

KIB = 1024


def numbers(count: int = 256) -> torch.Tensor:
    """Of a kibibyte, whose gradient is wanted."""
    return torch.ones(count, requires_grad=True)


def test_each_storage_counts_once_and_arguments_never():
    # The product keeps both factors, of which one is the argument; exp keeps its result, which the square keeps again.
    assert memory_use(lambda x: (x * x.sin()).exp().square(), numbers()).graph == 2 * KIB
    assert memory_use(lambda x: x.sin(), numbers()).graph == 0


def test_weights_are_there_anyway():
    layer = nn.Linear(256, 256, bias=False).requires_grad_(False)
    assert memory_use(lambda x: layer(x).exp(), numbers()).graph == KIB


def test_what_is_worked_with_is_let_go():
    # Of ten results two live at a time, whatever a graph would hold.
    def repeated(x: torch.Tensor) -> torch.Tensor:
        for _ in range(10):
            x = x.exp()
        return x

    assert memory_use(repeated, numbers()) == MemoryUse(graph=10 * KIB, working=2 * KIB)
    with torch.no_grad():
        assert memory_use(repeated, numbers()) == MemoryUse(graph=0, working=2 * KIB)


def test_nothing_outlives_the_count():
    made = []

    def remembered(x: torch.Tensor) -> torch.Tensor:
        y = x.exp()
        made.append(weakref.ref(y.untyped_storage()))
        return y.exp()

    memory_use(remembered, numbers())
    gc.collect()
    assert made[0]() is None


def test_a_checkpointed_part_holds_what_it_is_given():
    def part(x: torch.Tensor) -> torch.Tensor:
        return checkpoint(lambda y: y.exp().exp().exp(), x.sin(), use_reentrant=False)

    assert memory_use(part, numbers()).graph == KIB


def test_the_meta_device_counts_the_same():
    layers = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.SiLU(), nn.Conv2d(8, 3, 3)).requires_grad_(False)
    images = torch.ones(2, 3, 16, 16, requires_grad=True)
    expected = memory_use(layers, images)
    assert expected.graph > 0
    assert memory_use(layers.to("meta"), images.detach().to("meta").requires_grad_()) == expected


def test_the_peak_is_that_of_both_passes():
    def differentiate(x: torch.Tensor) -> None:
        torch.autograd.grad(x.exp().exp().exp(), x, torch.ones_like(x))

    # Three results, the gradient given, and those that go into the last step back and come out of it.
    assert peak_bytes(differentiate, numbers()) == 6 * KIB


def test_a_result_cannot_be_differentiated():
    kept = []
    memory_use(lambda x: kept.append(x.exp()), x := numbers())
    with pytest.raises(RuntimeError, match="memory_use holds no graph"):
        torch.autograd.grad(kept[0].sum(), x)

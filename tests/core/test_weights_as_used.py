"""Graphs keep frozen weights as they were used, and nothing else of an operation changes."""

import pytest
import torch
from torch import nn

from diamond_diffusers.core.weights_as_used import WeightsAsUsed

LAYERS = {
    "convolution": lambda: nn.Conv2d(2, 2, 3, padding=1),
    "transposed convolution": lambda: nn.ConvTranspose2d(2, 2, 3, padding=1),
    "linear": lambda: nn.Linear(4, 4),
    "group norm": lambda: nn.GroupNorm(2, 2),
    "batch norm": lambda: nn.BatchNorm2d(2),
    "factor": lambda: Factor(),
}


class Factor(nn.Module):
    """A weight that no layer of torch holds, as the modulations of transformers do, and a buffer."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.full((4,), 3.0))
        self.register_buffer("other", torch.full((4,), 2.0))

    def forward(self, x):
        return x * self.weight[None] * self.other


def gradient(layer, change):
    x = torch.linspace(-1, 1, 32).reshape(1, 2, 4, 4).requires_grad_()
    y = layer(x)
    if change:
        for tensor in (*layer.parameters(), *layer.buffers()):
            tensor.data = torch.full_like(tensor.data, torch.nan if tensor.is_floating_point() else -1)
    (found,) = torch.autograd.grad(y.square().sum(), x)
    return found


@pytest.mark.parametrize("name", LAYERS)
def test_weights_that_change_before_the_backward_pass(name):
    torch.manual_seed(0)
    layer = LAYERS[name]().eval().requires_grad_(False)
    expected = gradient(layer, change=False)
    with WeightsAsUsed():
        torch.testing.assert_close(gradient(layer, change=True), expected, atol=0, rtol=0)


def test_operations_that_write_reach_what_they_write_to():
    x, kept, out = torch.ones(2, requires_grad=True), torch.zeros(4), torch.zeros(2)
    with WeightsAsUsed(torch.float32):
        kept[:2] = 3 * x
        kept += torch.cat([2 * x, x])
        out.copy_(x)
        (found,) = torch.autograd.grad(kept.sum() + out.sum(), x)
    assert found.tolist() == [7, 7]


def test_float16_weights_are_used_in_float32():
    """The sum of these products exceeds the largest float16."""
    layer = nn.Linear(4, 1, bias=False).half().requires_grad_(False)
    layer.weight.fill_(30000)
    x = torch.ones(1, 4, requires_grad=True)
    with WeightsAsUsed(torch.float32):
        y = layer(x)
        # So are activations that come in float16.
        assert layer(x.half()).item() == 120000
    assert y.item() == 120000
    assert torch.autograd.grad(y, x)[0].tolist() == [[30000.0] * 4]
    with WeightsAsUsed(torch.float32), torch.no_grad():
        assert layer(x.half()).item() == 120000
        # What is asked of a weight alone is said of itself.
        assert layer.weight.dtype == layer.weight.t().dtype == torch.float16

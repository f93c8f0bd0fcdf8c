"""Forward-mode differentiation of networks in half precision."""

import pytest
import torch
from torch import nn

from diamond_diffusers.training.losses.forward_mode import tangents_like_outputs

NORMS = {"layer": lambda: nn.LayerNorm(8), "group": lambda: nn.GroupNorm(2, 8)}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("norm", NORMS)
def test_a_norm_with_float32_statistics_is_followed_by_a_product(norm, dtype):
    """A norm with weights in float32 has float32 statistics on a CPU too, as every norm has on a GPU."""
    torch.manual_seed(0)
    network = nn.Sequential(NORMS[norm](), nn.Linear(8, 4, dtype=dtype))
    x, tangent = torch.randn(2, 3, 8).to(dtype).unbind(0)
    with pytest.raises(RuntimeError, match="dtype"):
        torch.func.jvp(network, (x,), (tangent,))
    plain = network(x)
    with tangents_like_outputs(network):
        output, derivative = torch.func.jvp(network, (x,), (tangent,))
    assert torch.equal(output, plain)
    assert derivative.dtype == dtype

    exact = torch.func.jvp(network.float(), (x.float(),), (tangent.float(),))[1]
    assert (derivative - exact).abs().max() < 16 * torch.finfo(dtype).eps * exact.abs().max()
    assert not any(module._forward_hooks for module in network)

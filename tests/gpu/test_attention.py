"""Attention kernels whose gradients are relied on are finite in half precision."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from diamond_diffusers.core.attention import differentiable_attention

pytestmark = pytest.mark.gpu

KERNELS = {
    "chosen by torch": None,
    "flash": SDPBackend.FLASH_ATTENTION,
    "memory-efficient": SDPBackend.EFFICIENT_ATTENTION,
    "plain": SDPBackend.MATH,
}
# Tokens, channels of a head, heads: of tiny networks, and of FLUX.1 at 512 pixels.
SHAPES = [(28, 32, 5), (28, 16, 2), (28, 128, 2), (64, 32, 5), (1536, 128, 24)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kernel", KERNELS)
def test_gradients_are_finite_and_right(
    kernel: str, shape: tuple[int, int, int], dtype: torch.dtype, gpu: torch.device
) -> None:
    tokens, channels, heads = shape
    rows = 1 if gpu.type == "cpu" else 4
    generator = torch.Generator().manual_seed(0)
    queries = [torch.randn(rows, tokens, heads, channels, generator=generator).to(gpu, dtype) for _ in range(3)]
    backend = KERNELS[kernel]

    def gradients(inputs: list[torch.Tensor]) -> list[torch.Tensor]:
        inputs = [tensor.requires_grad_() for tensor in inputs]
        # In the layout of FLUX: heads after tokens.
        attended = scaled_dot_product_attention(*(tensor.transpose(1, 2) for tensor in inputs)).transpose(1, 2)
        return list(torch.autograd.grad(attended.float().square().sum(), inputs))

    try:
        with differentiable_attention(), nullcontext() if backend is None else sdpa_kernel(backend):
            found = gradients(queries)
    except RuntimeError as error:
        if "No available kernel" in str(error) or "No viable backend" in str(error):
            pytest.skip(f"the {kernel} kernel does not take these shapes on this device")
        raise
    with sdpa_kernel(SDPBackend.MATH):
        expected = gradients([tensor.detach().float() for tensor in queries])
    for gradient, right in zip(found, expected, strict=True):
        assert gradient.isfinite().all()
        assert (gradient.float() - right).norm() < 10 * torch.finfo(dtype).eps * right.norm()

"""Muon: momentum whose update is orthogonalised, for the hidden matrices of a network."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn

# Quintic Newton-Schulz coefficients that drive singular values into about [0.7, 1.2] in five steps.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def product_dtype() -> torch.dtype:
    """In which a CPU multiplies matrices fastest: bfloat16 where it has instructions for that, else float32."""
    return torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() else torch.float32


def orthogonalised(matrices: Tensor, num_steps: int = 5) -> Tensor:
    """The nearest semi-orthogonal matrices, roughly, of `[N, rows, columns]` matrices."""
    a, b, c = COEFFICIENTS
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = (x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)).to(product_dtype())
    for _ in range(num_steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrices.dtype)


class BatchedMuon(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024) that orthogonalises all matrices of one shape together.

    `torch.optim.Muon` takes them one by one, which costs more than the gradients do where matrices are small.

    Args:
        params: matrices.
        lr: size of an update as a root mean square, relative to AdamW's learning rate of the same size
            (arXiv 2502.16982).
        momentum: of the gradient, Nesterov's.
        weight_decay: decoupled.
    """

    def __init__(
        self, params: Iterable[nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape[parameter.shape].append(parameter)
            for shape, parameters in by_shape.items():
                updates = orthogonalised(torch.stack([self._direction(p, group["momentum"]) for p in parameters]))
                scale = 0.2 * max(shape) ** 0.5 * group["lr"]
                torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(parameters, list(updates.unbind()), alpha=-scale)

    def _direction(self, parameter: nn.Parameter, momentum: float) -> Tensor:
        state = self.state[parameter]
        if not state:
            state["average"] = torch.zeros_like(parameter)
        state["average"].lerp_(parameter.grad, 1 - momentum)
        return parameter.grad.lerp(state["average"], momentum)

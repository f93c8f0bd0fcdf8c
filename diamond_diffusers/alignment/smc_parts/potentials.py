"""Potentials of sequential Monte Carlo, each registered under its name: what weighs particles on their way.

The potential `G_k` multiplies the weights at the k-th valuation, and may depend on the values `V_0 ... V_k` that a
particle and its ancestors had, of which `V_0`, that of the start, counts as 0. Here it is given by the logarithm of the
product so far, `log(G_0 ... G_k)`. Whatever the potential, the factor of the end is `exp(r(z)) / (G_0 ... G_(K-1))`,
which brings the product to `exp(r(z))`: the final law and the evidence are the same for all of them, and only the
variance differs. See FK steering (arXiv 2501.06848).
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ...core.registry import Registry

Potential = Callable[[Tensor], Tensor]
"""Maps the values `[..., k + 1]` along paths, first to last, to `log(G_0 ... G_k)`, `[...]`."""
POTENTIALS: Registry[Potential] = Registry("potential", "potentials")


@POTENTIALS.register("value")
def value(values: Tensor) -> Tensor:
    """`G_k = exp(V_k - V_(k-1))`: the target at a valuation is `p_kappa(y) exp(V_k)`. FK steering's `difference`."""
    return values[..., -1]


@POTENTIALS.register("max")
def maximum(values: Tensor) -> Tensor:
    """`G_k = exp(max(V_0 ... V_k))`: favours paths that were promising once; since `V_0 = 0`, none falls below 1."""
    return values.cummax(-1).values.sum(-1)


@POTENTIALS.register("sum")
def accumulated(values: Tensor) -> Tensor:
    """`G_k = exp(V_0 + ... + V_k)`: favours paths that were promising throughout."""
    return values.cumsum(-1).sum(-1)

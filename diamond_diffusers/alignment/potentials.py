"""Potentials of sequential Monte Carlo, each registered under its name: what weighs particles on their way.

The potential `G_k` multiplies the weights at level `k`, and may depend on the values `V_0 ... V_k` that a particle and
its ancestors had. Here it is given by the logarithm of the product so far, `log(G_0 ... G_k)`. Whatever the potential,
the factor of the last level is `exp(r(z)) / (G_0 ... G_(K-1))`, which brings the product to `exp(r(z))`: the final law
and the evidence are right for all of them, and only the variance differs. See FK steering (arXiv 2501.06848).
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

Potential = Callable[[Tensor], Tensor]
"""Maps the values `[..., k + 1]` along paths, first to last, to `log(G_0 ... G_k)`, `[...]`."""
POTENTIALS: dict[str, Potential] = {}


def register_potential(name: str) -> Callable[[Potential], Potential]:
    """Adds a potential to `POTENTIALS` under a name."""

    def register(potential: Potential) -> Potential:
        POTENTIALS[name] = potential
        return potential

    return register


@register_potential("value")
def value(values: Tensor) -> Tensor:
    """`G_k = exp(V_k - V_(k-1))`, `G_0 = exp(V_0)`: the target at level `k` is `p_kappa(y) exp(V_k)`."""
    return values[..., -1]


@register_potential("difference")
def difference(values: Tensor) -> Tensor:
    """`G_k = exp(V_k - V_(k-1))`, `G_0 = 1`: a particle is measured against where its path began.

    FK steering's `difference`. It is `value` where all paths begin with the same value, as those of point look-aheads
    at pure noise do; else the first value stays in the weights until the last factor takes it out. A first value of
    `-inf` counts as 0.
    """
    return values[..., -1] - values[..., 0].nan_to_num(neginf=0.0)


@register_potential("max")
def maximum(values: Tensor) -> Tensor:
    """`G_k = exp(max(V_0 ... V_k))`: favours paths that were promising once."""
    return values.cummax(-1).values.sum(-1)


@register_potential("sum")
def accumulated(values: Tensor) -> Tensor:
    """`G_k = exp(V_0 + ... + V_k)`: favours paths that were promising throughout."""
    return values.cumsum(-1).sum(-1)

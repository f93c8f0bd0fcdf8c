"""How far a tilted law is from the plain one."""

from __future__ import annotations

from torch import Tensor


def divergence_from_plain(
    reward_scale: float | Tensor, rewards: Tensor, log_weights: Tensor, log_evidence: Tensor
) -> Tensor:
    """The Kullback-Leibler divergence `KL(q || p)` of the tilted law `q` from the plain one `p`, `[B]` in nats.

    With `q(z) = p(z) exp(scale * r(z)) / Z` it is `E_q[log q - log p] = scale * E_q[r] - log Z`. Weighted particles of
    SMC estimate the mean, and the evidence of their run is `Z`. Of P particles that were never resampled the estimate
    is `sum_i w_i log(P w_i)`, at most `log P`: it says too little of a law that is further away.

    Args:
        reward_scale: of the law, a number or `[B]`.
        rewards: unscaled ones of the particles, `[B, P]`.
        log_weights: normalised within each image, `[B, P]`.
        log_evidence: `[B]`.

    Example:
        >>> import torch
        >>> rewards, log_weights = torch.tensor([[0.0, 1.0]]), torch.tensor([[0.2, 0.8]]).log()
        >>> divergence_from_plain(1.386, rewards, log_weights, torch.tensor([0.916]))
        tensor([0.1928])
    """
    return reward_scale * (log_weights.exp() * rewards.to(log_weights)).sum(1) - log_evidence

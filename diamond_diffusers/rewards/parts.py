"""What a reward is made of."""

from __future__ import annotations

from .base import Reward
from .names import distinct


def terms_of(reward: Reward) -> dict[str, tuple[float, Reward]]:
    """The weight and the reward of each term of a sum, by name; a reward that is no sum is its own only term.

    Of equal names, the second gets the suffix `_2`, and so on.
    """
    terms = reward._weighted_terms()
    return dict(zip(distinct([term.name for _, term in terms]), terms, strict=True))


def measured_terms(reward: Reward) -> dict[str, tuple[float, Reward]]:
    """As `terms_of`, without constraints, which add nothing to the sum."""
    return {name: term for name, term in terms_of(reward).items() if not term[1].is_constraint}


def names_within(reward: Reward) -> set[str]:
    """The names of a reward and of all rewards that it is made of."""
    return {reward.name}.union(*(names_within(part) for part in getattr(reward, "rewards", ())))

"""Options that end an image before its search does: `--watch` and `--share-budget-at`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from .options import MAX_COUNT

if TYPE_CHECKING:
    from ..alignment.base import Method
    from ..pipelines.shared_budget import SharedBudget
    from ..pipelines.watch import Watch

WatchReward = Annotated[
    str | None,
    typer.Option(
        "--watch",
        metavar="REWARD",
        help="A reward that is not followed: a search in rounds ends where it falls, and each image is taken where it "
        "was the highest.",
    ),
]
WatchPatience = Annotated[
    int | None, typer.Option(min=1, max=MAX_COUNT, help="Checks in a row below its best at which --watch ends; 3.")
]
WatchEvery = Annotated[
    int | None, typer.Option(min=1, max=MAX_COUNT, help="Rounds from one check of --watch to the next; 1.")
]
ShareBudgetAt = Annotated[
    float | None,
    typer.Option(
        metavar="SCORE",
        help="An image of this score is good enough: a search in rounds ends it, and spends the rest of its budget on "
        "the images that are not.",
    ),
]
ShareBudgetVerifier = Annotated[
    str | None,
    typer.Option(
        metavar="REWARD",
        help="Gives that score in place of --reward; with a constraint, such as 'nsfw < 0.2', it decides without a "
        "score, too.",
    ),
]


def watch_of(expression: str | None, patience: int | None, every: int | None, method: Method | None) -> Watch | None:
    """The watch of a run; refused where the method makes no use of it, or where nothing is watched."""
    counts = {"patience": patience, "every": every}
    given = {name: count for name, count in counts.items() if count is not None}
    if expression is None:
        for name, count in given.items():
            raise ValueError(f"--watch-{name} is {count}, but nothing is watched; name a reward with --watch")
        return None
    from ..pipelines.watch import Watch, check_watchable
    from ..rewards import as_reward

    if method is not None:
        check_watchable(method)
    return Watch(as_reward(expression), **given)


def shared_budget_of(threshold: float | None, verifier: str | None, method: Method | None) -> SharedBudget | None:
    """When the images of a run are good enough; refused where a method that is known makes no use of it."""
    if threshold is None and verifier is None:
        return None
    from ..pipelines.shared_budget import SharedBudget, check_shareable
    from ..rewards import as_reward

    if method is not None:
        check_shareable(
            method, "a budget is to be shared" if threshold is None else f"--share-budget-at is {threshold}"
        )
    return SharedBudget(threshold, None if verifier is None else as_reward(verifier))

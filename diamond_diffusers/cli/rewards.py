"""The command `diamond-diffusers rewards`."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape

from .options import first_sentence, text_table

WIDTH_FOR_SENTENCES = 120


def rewards() -> None:
    """Lists the rewards that expressions can name, and whether each can be used here."""
    from ..rewards import available_rewards, registered_reward
    from ..rewards.availability import availability

    rows = []
    for name in available_rewards():
        try:
            reward = registered_reward(name)
        except ImportError as error:
            rows.append((name, "–", "–", "–", "–", f"no: {error}", "–"))
            continue
        differentiable: bool | None = getattr(reward, "differentiable", None)
        gradient = "found on use" if differentiable is None else "yes" if differentiable else "no"
        licence, size = getattr(reward, "licence", "–"), getattr(reward, "size", "–")
        scale = getattr(reward, "default_reward_scale", None) or 1.0
        rows.append((name, gradient, f"{scale:g}", licence, size, availability(reward), first_sentence(reward)))
    console = Console()
    headers = ["name", "gradient", "scale", "licence", "download", "usable here", "what"]
    if console.width < WIDTH_FOR_SENTENCES:
        headers.remove("what")
    table = text_table(*headers)
    # Names are there to be copied.
    table.columns[0].no_wrap = True
    for row in rows:
        table.add_row(*map(escape, row[: len(headers)]))
    console.print(table)

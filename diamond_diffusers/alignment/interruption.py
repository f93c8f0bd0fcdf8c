"""How a run is ended in the middle of a step."""

from __future__ import annotations


class Interrupted(Exception):
    """Raised between two evaluations of a run that has been told to end; whoever started the run catches it."""


def never() -> bool:
    """What tells a run that nobody can end to go on."""
    return False

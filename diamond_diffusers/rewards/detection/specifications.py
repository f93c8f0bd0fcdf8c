"""Requirements as users write them down."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .requirements import Requirement


def specified(
    name: str, kind: type[Requirement], first: Any, *arguments: Any
) -> tuple[Requirement, ...] | dict[str, tuple[Requirement, ...]]:
    """The requirement that the arguments of the reward `name` describe, or those of each prompt.

    Args:
        name: of the reward, for messages.
        kind: class of the requirement.
        first: its first argument; or a mapping from prompts to requirements, or to arguments of one.
        arguments: its further ones, without those at the end that are None; none with a mapping.

    Raises:
        TypeError: an argument is missing, or is given beside a mapping.
        ValueError: an argument is malformed, or the mapping is empty.
    """
    given = [argument for argument in arguments if argument is not None]
    if not isinstance(first, Mapping):
        return (_made(name, kind, (first, *arguments)),)
    if given:
        raise TypeError(
            f"Reward '{name}' got {', '.join(map(repr, given))} beside a mapping; "
            "put all arguments of a prompt into the mapping."
        )
    if not first:
        raise ValueError(f"Reward '{name}' got an empty mapping; give what each prompt requires.")
    return {prompt: (_made(name, kind, value),) for prompt, value in first.items()}


def _made(name: str, kind: type[Requirement], value: Any) -> Requirement:
    if isinstance(value, kind):
        return value
    arguments = list(value) if isinstance(value, list | tuple) else [value]
    while arguments and arguments[-1] is None:
        arguments.pop()
    try:
        return kind(*arguments)
    except TypeError as error:
        raise TypeError(f"Reward '{name}' got {tuple(arguments)!r}, which is no {kind.__name__} ({error}).") from error
    except ValueError as error:
        raise ValueError(f"Reward '{name}' got {tuple(arguments)!r}: {error}") from error


def example_of(specification: tuple[Requirement, ...] | Mapping[str, tuple[Requirement, ...]]) -> str:
    """A prompt that the reward of a specification understands."""
    return next(iter(specification)) if isinstance(specification, Mapping) else "a photo"

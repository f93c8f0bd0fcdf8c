"""Rewards by name, from this package or from others, and the small expressions that combine them."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from typing import TypeVar

from .base import Reward, WeightedSum
from .callable_reward import CallableReward, ScoreFunction

ENTRY_POINT_GROUP = "diamond_diffusers.rewards"
EXAMPLE = "imagereward + 5*hpsv2 - 0.01*clip"

RewardLike = Reward | ScoreFunction | str
Registered = type[Reward] | Reward | ScoreFunction
T = TypeVar("T", bound=Registered)

_registered: dict[str, Registered] = {}
_aliases: dict[str, str] = {}


def register_reward(name: str, aliases: Sequence[str] = ()) -> Callable[[T], T]:
    """Registers the decorated object as the reward `name`, and returns it unchanged.

    A class is instantiated without arguments when the name is used; a function `(images, prompts) -> scores` is the
    reward itself. Other packages need no call: they name such an object as an entry point of the group
    `diamond_diffusers.rewards`.

    Args:
        name: an identifier.
        aliases: other spellings of the whole name, which may hold dashes and dots, such as "hps-v2.1".

    Raises:
        ValueError: `name` is not an identifier, an alias could not be told from a number or an operator, or one of
            them belongs to another reward.
    """
    if not name.isidentifier():
        raise ValueError(f"The reward name {name!r} is not an identifier; use letters, digits and underscores.")
    for alias in aliases:
        if not _ALIAS.fullmatch(alias):
            raise ValueError(f"The alias {alias!r} is malformed; use letters, digits, '_', and '-' or '.' within.")

    def register(reward: T) -> T:
        for word in (name, *aliases):
            known = _registered.get(_aliases.get(word, word))
            if known is not None and _origin(known) != _origin(reward):
                raise ValueError(f"The reward name '{word}' belongs to {_origin(known)}; choose another name.")
        _registered[name] = reward
        _aliases.update(dict.fromkeys(aliases, name))
        return reward

    return register


def available_rewards() -> list[str]:
    """The sorted names of all rewards, of this package and of installed plug-ins; loads none of them."""
    return sorted({*_registered, *(point.name for point in metadata.entry_points(group=ENTRY_POINT_GROUP))})


def registered_reward(name: str) -> Registered:
    """The class or function registered as `name`: a class tells its licence and source without being instantiated.

    Args:
        name: or one of its aliases.

    Raises:
        ValueError: no reward has this name.
        ImportError: the plug-in that offers it cannot be imported.
    """
    name = _aliases.get(name, name)
    if name in _registered:
        return _registered[name]
    for point in metadata.entry_points(group=ENTRY_POINT_GROUP, name=name):
        if not name.isidentifier():
            raise ImportError(
                f"The entry point '{name}' is not an identifier, so no expression can name it; rename it."
            )
        try:
            return point.load()
        except Exception as error:
            raise ImportError(
                f"Reward '{name}' is offered by the entry point '{point.value}', which cannot be imported ({error}); "
                "mend or uninstall that package."
            ) from error
    raise ValueError(f"There is no reward named '{name}'; the known ones are {', '.join(available_rewards())}.")


def as_reward(reward: RewardLike) -> Reward:
    """Reads a reward in any of its forms.

    Args:
        reward: a `Reward`, which is returned as it is; a callable `(images, prompts) -> scores`; or an expression of
            registered names such as `"imagereward + 5*hpsv2 - 0.01*clip"`, each of which is instantiated here, after
            the whole expression has been checked.

    Raises:
        TypeError: `reward` is none of these.
        ValueError: the expression cannot be read, or names an unknown reward or one that needs arguments.
    """
    if isinstance(reward, Reward):
        return reward
    if isinstance(reward, str):
        return _build(reward)
    if inspect.isclass(reward) and issubclass(reward, Reward):
        raise TypeError(f"reward={reward.__name__} is a class; give an instance, {reward.__name__}().")
    if callable(reward):
        return CallableReward(reward)
    raise TypeError(
        f"reward={reward!r} is no reward; give a Reward, a callable (images, prompts) -> scores, "
        f"or an expression such as '{EXAMPLE}'."
    )


def _build(expression: str) -> Reward:
    found = [(weight, name, registered_reward(name)) for weight, name in parse_expression(expression)]
    terms = [(weight, _instantiate(name, registered)) for weight, name, registered in found]
    if len(terms) == 1 and terms[0][0] == 1:
        return terms[0][1]
    return WeightedSum(terms)


def required_arguments(registered: Registered) -> list[str]:
    """The arguments without which a registered class cannot be instantiated, so that no expression can name it."""
    if not inspect.isclass(registered):
        return []
    kinds = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD
    parameters = inspect.signature(registered).parameters.values()
    return [p.name for p in parameters if p.default is p.empty and p.kind not in kinds]


def _instantiate(name: str, registered: Registered) -> Reward:
    if inspect.isclass(registered):
        if required := required_arguments(registered):
            raise ValueError(
                f"The reward '{name}' needs {' and '.join(required)}, so its name alone does not make it; "
                f"construct a {registered.__name__} in Python."
            )
        registered = registered()
    return registered if isinstance(registered, Reward) else CallableReward(registered, name)


def parse_expression(expression: str) -> list[tuple[float, str]]:
    """Reads `[sign] [number *] name {sign [number *] name}` into pairs of a weight and a name.

    A known alias with dashes or dots is read as a whole; `a-b` is a difference where it is no alias.

    Raises:
        ValueError: with the place where reading stopped.
    """
    tokens = list(_tokens(expression))
    terms: list[tuple[float, str]] = []
    while not terms or tokens[0][0] != "end":
        sign = 1.0
        if tokens[0][0] == "sign":
            sign = -1.0 if tokens.pop(0)[1] == "-" else 1.0
        elif terms:
            raise _unexpected(expression, "'+' or '-'", tokens[0])
        weight = 1.0
        if tokens[0][0] == "number":
            weight = float(tokens.pop(0)[1])
            _take(expression, tokens, "times", "'*'")
        terms.append((sign * weight, _take(expression, tokens, "name", "a reward name")))
    return terms


Token = tuple[str, str, int]

_ALIAS = re.compile(r"[^\W\d]\w*(?:[-.]\w+)*")
_TOKEN = (
    r"\s*(?:(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)|(?P<name>{aliases}[^\W\d]\w*)|(?P<sign>[+-])|(?P<times>\*)"
    r"|(?P<end>$)|(?P<unknown>.))"
)


def _tokens(expression: str) -> Iterator[Token]:
    longest_first = sorted(_aliases, key=len, reverse=True)
    # An alias ends where no longer word goes on: `a-b` is not the beginning of `a-bc` or `a-b.1`.
    aliases = "".join(rf"{re.escape(alias)}(?![\w]|[.]\d)|" for alias in longest_first)
    for match in re.finditer(_TOKEN.replace("{aliases}", aliases), expression):
        kind, text = match.lastgroup, match[match.lastgroup]
        yield kind, _aliases.get(text, text), match.start(kind)


def _take(expression: str, tokens: list[Token], kind: str, description: str) -> str:
    if tokens[0][0] != kind:
        raise _unexpected(expression, description, tokens[0])
    return tokens.pop(0)[1]


def _unexpected(expression: str, expected: str, token: Token) -> ValueError:
    _, text, position = token
    found = f"{text!r} at position {position}" if text else "the end"
    return ValueError(
        f"The reward expression {expression!r} has {found} where {expected} was expected; write it like '{EXAMPLE}'."
    )


def _origin(reward: Registered) -> str:
    named = reward if hasattr(reward, "__qualname__") else type(reward)
    return f"{named.__module__}.{named.__qualname__}"

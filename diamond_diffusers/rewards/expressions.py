"""Reads rewards in any of their forms, among them expressions that combine rewards by name."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from .base import Reward, WeightedSum
from .callable_reward import CallableReward, ScoreFunction
from .registry import REWARDS, Registered, registered_reward, required_arguments

EXAMPLE = "imagereward + 5*hpsv2 - 0.01*clip"

RewardLike = Reward | ScoreFunction | str


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
    is_class_of_rewards = isinstance(reward, type) and issubclass(reward, Reward)
    if is_class_of_rewards:
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


def _instantiate(name: str, registered: Registered) -> Reward:
    if isinstance(registered, type) and (required := required_arguments(registered)):
        raise ValueError(
            f"The reward '{name}' needs {' and '.join(required)}, so its name alone does not make it; "
            f"construct a {registered.__name__} in Python."
        )
    # A class may make any callable.
    made: Any = registered() if isinstance(registered, type) else registered
    return made if isinstance(made, Reward) else CallableReward(made, name)


def parse_expression(expression: str) -> list[tuple[float, str]]:
    """Reads `[sign] [number *] name {sign [number *] name}` into pairs of a weight and a name.

    A known alias with dashes or dots is read as a whole; `a-b` is a difference unless it is an alias.

    Raises:
        ValueError: the text is no such expression; the error names the place where reading stopped.
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

_TOKEN = (
    r"\s*(?:(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)|(?P<name>{aliases}[^\W\d]\w*)|(?P<sign>[+-])|(?P<times>\*)"
    r"|(?P<end>$)|(?P<unknown>.))"
)


def _tokens(expression: str) -> Iterator[Token]:
    longest_first = sorted(REWARDS.aliases, key=len, reverse=True)
    # An alias ends where no longer word goes on: `a-b` is not the beginning of `a-bc` or `a-b.1`.
    aliases = "".join(rf"{re.escape(alias)}(?![\w]|[.]\d)|" for alias in longest_first)
    for match in re.finditer(_TOKEN.replace("{aliases}", aliases), expression):
        kind = match.lastgroup
        # One of the groups matches anything.
        assert kind is not None
        text = match[kind]
        yield kind, REWARDS.aliases.get(text, text), match.start(kind)


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

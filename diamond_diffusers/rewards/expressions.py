"""Reads rewards in any of their forms, among them expressions that combine rewards by name."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from .base import Constraint, Reward, WeightedSum
from .callable_reward import CallableReward, ScoreFunction
from .registry import REWARDS, Registered, registered_reward, required_arguments

EXAMPLE = "imagereward + 5*hpsv2 - 0.01*clip, nsfw < 0.2"

RewardLike = Reward | ScoreFunction | str


def as_reward(reward: RewardLike, known: dict[str, Reward] | None = None) -> Reward:
    """Reads a reward in any of its forms.

    Args:
        reward: a `Reward`, which is returned as it is; a callable `(images, prompts) -> scores`; or an expression of
            registered names such as `"imagereward + 5*hpsv2 - 0.01*clip"`, perhaps with constraints after commas:
            `"imagereward + 5*hpsv2, nsfw < 0.2, ocr >= 0.9"`. Each name is instantiated here, once, after the whole
            expression has been checked.
        known: rewards by their registered names, which are taken as they are; those that are instantiated are added.
            Several expressions then share their models.

    Raises:
        TypeError: `reward` is none of these.
        ValueError: the expression cannot be read, or names an unknown reward or one that needs arguments.
    """
    if isinstance(reward, Reward):
        return reward
    if isinstance(reward, str):
        return _build(reward, {} if known is None else known)
    is_class_of_rewards = isinstance(reward, type) and issubclass(reward, Reward)
    if is_class_of_rewards:
        raise TypeError(f"reward={reward.__name__} is a class; give an instance, {reward.__name__}().")
    if callable(reward):
        return CallableReward(reward)
    raise TypeError(
        f"reward={reward!r} is no reward; give a Reward, a callable (images, prompts) -> scores, "
        f"or an expression such as '{EXAMPLE}'."
    )


def _build(expression: str, made: dict[str, Reward]) -> Reward:
    clauses = parse_clauses(expression)
    found = {name: registered_reward(name) for clause in clauses for _, name in clause.terms}
    # A reward that is bounded and maximised is one model.
    for name, registered in found.items():
        if name not in made:
            made[name] = _instantiate(name, registered)
    terms: list[tuple[float, Reward]] = []
    for clause in clauses:
        summed = [(weight, made[name]) for weight, name in clause.terms]
        if clause.threshold is None:
            terms += summed
        else:
            terms.append((1.0, Constraint(_sum(summed), *clause.threshold)))
    return _sum(terms)


def _sum(terms: list[tuple[float, Reward]]) -> Reward:
    return terms[0][1] if len(terms) == 1 and terms[0][0] == 1 else WeightedSum(terms)


def _instantiate(name: str, registered: Registered) -> Reward:
    if isinstance(registered, type) and (required := required_arguments(registered)):
        raise ValueError(
            f"The reward '{name}' needs {' and '.join(required)}, so its name alone does not make it; "
            f"construct a {registered.__name__} in Python, or register one under another name in a file of yours "
            "(--import on the command line)."
        )
    # A class may make any callable.
    made: Any = registered() if isinstance(registered, type) else registered
    return made if isinstance(made, Reward) else CallableReward(made, name)


@dataclass(frozen=True)
class Clause:
    """What stands between two commas of an expression.

    Attributes:
        terms: pairs of a weight and a name, which are summed.
        threshold: a comparison and the number that the sum is compared with; None where there is none.
    """

    terms: list[tuple[float, str]]
    threshold: tuple[str, float] | None = None


def parse_expression(expression: str) -> list[tuple[float, str]]:
    """The pairs of a weight and a name of all terms of an expression, those of constraints included.

    Raises:
        ValueError: as of `parse_clauses`.
    """
    return [term for clause in parse_clauses(expression) for term in clause.terms]


def parse_clauses(expression: str) -> list[Clause]:
    """Reads `clause {, clause}`, where a clause is `[sign] [number *] name {sign [number *] name} [comparison number]`.

    Comparisons are `<`, `<=`, `>` and `>=`. One clause at most is without a comparison, the first or another.
    A known alias with dashes or dots is read as a whole; `a-b` is a difference unless it is an alias.

    Raises:
        ValueError: the text is no such expression; the error names the place where reading stopped.
    """
    tokens = list(_tokens(expression))
    clauses: list[Clause] = []
    while not clauses or tokens[0][0] != "end":
        if clauses:
            _take(expression, tokens, "comma", "','")
        terms = _take_sum(expression, tokens)
        if tokens[0][0] == "comparison":
            comparison = tokens.pop(0)[1]
            sign = -1.0 if tokens[0][0] == "sign" and tokens.pop(0)[1] == "-" else 1.0
            bound = sign * _take_number(expression, tokens)
            clauses.append(Clause(terms, (comparison, bound)))
        elif any(clause.threshold is None for clause in clauses):
            raise _unexpected(expression, "a comparison such as '< 0.2' (join what is summed by '+')", tokens[0])
        else:
            clauses.append(Clause(terms))
    return clauses


def _take_sum(expression: str, tokens: list[Token]) -> list[tuple[float, str]]:
    terms: list[tuple[float, str]] = []
    while not terms or tokens[0][0] not in ("end", "comma", "comparison"):
        sign = 1.0
        if tokens[0][0] == "sign":
            sign = -1.0 if tokens.pop(0)[1] == "-" else 1.0
        elif terms:
            raise _unexpected(expression, "'+', '-', ',' or a comparison", tokens[0])
        weight = 1.0
        if tokens[0][0] == "number":
            weight = _take_number(expression, tokens)
            _take(expression, tokens, "times", "'*'")
        terms.append((sign * weight, _take(expression, tokens, "name", "a reward name")))
    return terms


Token = tuple[str, str, int]

_TOKEN = (
    r"\s*(?:(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)|(?P<name>{aliases}[^\W\d]\w*)|(?P<sign>[+-])|(?P<times>\*)"
    r"|(?P<comma>,)|(?P<comparison>[<>]=?)|(?P<end>$)|(?P<unknown>.))"
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


def _take_number(expression: str, tokens: list[Token]) -> float:
    if tokens[0][0] == "number" and not math.isfinite(float(tokens[0][1])):
        raise _unexpected(expression, "a finite number", tokens[0])
    return float(_take(expression, tokens, "number", "a number"))


def _unexpected(expression: str, expected: str, token: Token) -> ValueError:
    _, text, position = token
    found = f"{text!r} at position {position}" if text else "the end"
    return ValueError(
        f"The reward expression {expression!r} has {found} where {expected} was expected; write it like '{EXAMPLE}'."
    )

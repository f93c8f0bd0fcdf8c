"""A call whose signature shows the keywords that it passes on to the stock pipeline."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, cast

from ..families.base import Family
from .arguments import NEGATIVE_PROMPTS

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


class StockCall(Generic[Parameters, Result]):
    """Makes a method of an object show the stock keywords beside its own in `inspect.signature` and `help`.

    Args:
        function: a method that takes the stock keywords as `**kwargs`, of a class with a `family`.
    """

    def __init__(self, function: Callable[Concatenate[Any, Parameters], Result]) -> None:
        self.function = function

    def __get__(self, owner: Any, kind: type | None = None) -> Callable[Parameters, Result]:
        if owner is None:
            return cast(Callable[Parameters, Result], self.function)

        @functools.wraps(self.function)
        def call(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
            return self.function(owner, *args, **kwargs)

        call.__signature__ = merged_signature(self.function, owner.family)  # type: ignore[attr-defined]
        return call


class SignatureOfCall:
    """The `__signature__` of an object, which is that of its `__call__`; a class keeps its own."""

    def __get__(self, owner: Any, kind: type | None = None) -> inspect.Signature:
        if owner is None:
            raise AttributeError("__signature__")
        return inspect.signature(owner.__call__)


def merged_signature(function: Callable[..., Any], family: Family) -> inspect.Signature:
    """The parameters of a call, then those of the stock `__call__` that it takes too, all but the prompt by keyword.

    A parameter of both that is None by default has the stock default.
    """
    signature = inspect.signature(function)
    own = list(signature.parameters.values())[1:-1]
    stock = {
        name: parameter.replace(kind=parameter.KEYWORD_ONLY)
        for name, parameter in inspect.signature(type(family.pipeline).__call__).parameters.items()
        if name != "self" and parameter.kind is not parameter.VAR_KEYWORD and name not in family.refused_arguments
    }
    merged = []
    for parameter in own:
        inherited = stock.pop(parameter.name, None)
        if inherited is not None and parameter.default is None:
            parameter = inherited.replace(kind=parameter.kind)
        if inherited is not None or parameter.name not in NEGATIVE_PROMPTS:
            merged.append(parameter)
    return signature.replace(parameters=[*merged, *stock.values()])

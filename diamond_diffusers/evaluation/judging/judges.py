"""What judges images: suites and rewards behind one interface, each with a hash of all that its verdicts depend on."""

from __future__ import annotations

import hashlib
import inspect
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...rewards import Reward, as_reward
from ...rewards.preprocessing import images_to_pil
from ..benchmark.prompts import Prompt
from ..benchmark.records import fingerprint
from ..files import plain
from ..suites import SUITES
from ..suites.base import SuiteJudge, Verdict

MAX_DEPTH = 4
"""How deep the weights of a judge may lie in the objects that it holds."""


class ImageJudge(ABC):
    """Judges images of any prompts.

    Attributes:
        name: under which its verdicts are kept and reported, such as "suite geneval" or "reward clip".
        is_share: whether its scores are from 0 to 1, so that they are reported in percent.
        overall: see `SuiteJudge`.
        identity: a hash of its settings and weights.
    """

    name: str
    identity: str
    is_share: bool
    overall: str = "prompts"

    @abstractmethod
    def judge(self, images: Tensor, prompts: Sequence[Prompt]) -> list[Verdict]:
        """A verdict on each of the images `[B, 3, H, W]` in [0, 1]."""

    def check(self, prompts: Sequence[Prompt]) -> None:  # noqa: B027 - of suites it is asked before they are loaded
        """Raises a `ValueError` for a prompt whose images cannot be judged."""

    def parts(self, prompt: Prompt, verdict: Verdict) -> Mapping[str, Sequence[float]]:
        """See `SuiteJudge.parts`."""
        return {}

    @abstractmethod
    def release(self) -> None:
        """Lets the models go, so that the next judge has the memory; the rest of it stays."""


class JudgeOfSuite(ImageJudge):
    """A suite as a judge."""

    is_share = True

    def __init__(self, suite: SuiteJudge) -> None:
        self.name, self.overall, self.identity = f"suite {suite.name}", suite.overall, _identity(suite)
        self._kind, self._suite = type(suite), [suite]

    def judge(self, images: Tensor, prompts: Sequence[Prompt]) -> list[Verdict]:
        return self._suite[0].judge(images_to_pil(images), prompts)

    def parts(self, prompt: Prompt, verdict: Verdict) -> Mapping[str, Sequence[float]]:
        return self._kind.parts(prompt, verdict)

    def release(self) -> None:
        self._suite.clear()


class JudgeOfReward(ImageJudge):
    """A reward as a judge: its terms are the details of a verdict."""

    is_share = False

    def __init__(self, reward: Reward, device: torch.device | str) -> None:
        reward.probe(device)
        self.name, self.identity = f"reward {reward.name}", _identity(reward)
        self._reward, self._device = [reward], device

    def check(self, prompts: Sequence[Prompt]) -> None:
        self._reward[0].check_prompts([prompt.text for prompt in prompts])

    def release(self) -> None:
        self._reward.clear()

    @torch.no_grad()
    def judge(self, images: Tensor, prompts: Sequence[Prompt]) -> list[Verdict]:
        output = self._reward[0].evaluate(images.to(self._device), [prompt.text for prompt in prompts])
        terms = {name: term.tolist() for name, term in output.terms.items()}
        return [
            Verdict(score, "", {name: values[row] for name, values in terms.items()})
            for row, score in enumerate(output.total.tolist())
        ]


def check_judges(suites: Sequence[str], rewards: Sequence[str], options: Mapping[str, Any]) -> None:
    """Checks what a user names before anything is loaded.

    Args:
        suites: names of suites.
        rewards: expressions.
        options: those of the constructors of suites that the user gives: `vlm`, `detector`, `clip`; None for those not
            given.

    Raises:
        ValueError: there is no judge, one comes twice or is unknown, or no suite takes an option.
    """
    from ...rewards import registered_reward
    from ...rewards.expressions import parse_clauses

    if not suites and not rewards:
        raise ValueError("--suite and --reward are not given; name a suite, a reward or several of them")
    for flag, names in (("--suite", suites), ("--reward", rewards)):
        for position, name in enumerate(names):
            if name in names[:position]:
                raise ValueError(f"{flag} is {name!r} twice; name each once")
    classes = [SUITES.get(name, "--suite") for name in suites]
    read = [parse_clauses(expression) for expression in rewards]
    for position, clauses in enumerate(read):
        if clauses in read[:position]:
            raise ValueError(
                f"--reward is {rewards[position]!r}, which is {rewards[read.index(clauses)]!r} again; name each once"
            )
        for clause in clauses:
            for _, name in clause.terms:
                registered_reward(name)
    for option, value in options.items():
        if value is not None and not any(option in inspect.signature(each).parameters for each in classes):
            raise ValueError(f"--{option} is {value!r}, but no --suite takes it; leave it out")


def load_suite(name: str, options: Mapping[str, Any], device: str, dtype: torch.dtype | None) -> JudgeOfSuite:
    """A suite with those of the options that it takes.

    Raises:
        OSError, ValueError: as its constructor.
    """
    kind = SUITES.get(name, "--suite")
    taken = inspect.signature(kind).parameters
    given = {**options, "device": device, "dtype": dtype}
    return JudgeOfSuite(kind(**{key: value for key, value in given.items() if value is not None and key in taken}))


def load_reward(expression: str, device: str, dtype: torch.dtype | None) -> JudgeOfReward:
    """The reward of an expression."""
    return JudgeOfReward(as_reward(expression).to(device, dtype), device)


def _identity(judge: object) -> str:
    settings = {
        "class": f"{type(judge).__module__}:{type(judge).__qualname__}",
        "name": getattr(judge, "name", ""),
        "settings": plain({key: value for key, value in sorted(vars(judge).items()) if _is_setting(key, value)}),
        "weights": fingerprint(list(_modules(judge, MAX_DEPTH, set()))),
        "version": version("diamond-diffusers"),
    }
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def _is_setting(key: str, value: Any) -> bool:
    plain_kinds = str | int | float | bool | Path | torch.dtype | None
    return key != "device" and (isinstance(value, plain_kinds) or (is_dataclass(value) and not isinstance(value, type)))


def _modules(holder: object, depth: int, seen: set[int]) -> Iterator[nn.Module]:
    """The networks that an object holds, in its attributes and lists or in the objects that these hold."""
    if id(holder) in seen or depth == 0:
        return
    seen.add(id(holder))
    if isinstance(holder, nn.Module):
        yield holder
    elif isinstance(holder, list | tuple):
        for value in holder:
            yield from _modules(value, depth, seen)
    elif isinstance(holder, Mapping):
        yield from _modules(list(holder.values()), depth, seen)
    elif hasattr(holder, "__dict__") and not isinstance(holder, type):
        for _, value in sorted(vars(holder).items()):
            yield from _modules(value, depth - 1, seen)

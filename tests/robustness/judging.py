"""The judge of what becomes of an odd value: understood, refused in one clear sentence, or a failure."""

from __future__ import annotations

import functools
import re
import reprlib
import resource
import signal
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch

import diamond_diffusers

PACKAGE = Path(diamond_diffusers.__file__).parent
REFUSALS = (ValueError, TypeError, OSError, ImportError)
"""What a call may raise; the sentence has to be one of this package's."""
REMEDY = re.compile(
    r"(?:[;:,.] |\()(?:(?:or|and|so|then|first) )*"
    r"(?:give|choose|take|use|leave|name|let|raise|lower|set|drop|load|pass|look|decode|mend|write|save|put|add|import|wrap"
    r"|construct|decorate|install|upgrade|enlarge|shorten|split|move|call|remove|go on|resume|begin|make|say|number"
    r"|delete|rename|replace)"
    r" (?=\S)"
)
"""Where a sentence begins to say what to do: an imperative at the start of a clause, and what it acts on."""
ANY = object()
"""A value that a sentence need not show: the argument is refused, whatever its value is."""
LONGEST = 1500
SECONDS = 10.0
MEMORY = 2 * 2**30


class Hang(BaseException):
    """A case took longer than `SECONDS`."""


def fault_of_sentence(message: str, names: Sequence[str], value: object) -> str | None:
    """What a refusal lacks of one clear sentence with an argument's name, its value and a remedy; None for nothing.

    Args:
        names: of the argument, of which the sentence has one.
        value: that was given, or several of which one is shown (`OneOf`); the sentence shows it, or the beginning of a
            long one, before the remedy.
    """
    if not message.strip() or message.strip() != message:
        return "no sentence"
    if len(message.splitlines()) > 1 or any(ord(character) < 32 for character in message):
        return "more than one line"
    if message.encode(errors="replace").decode() != message:
        return "text that cannot be written"
    if len(message) > LONGEST:
        return f"{len(message)} letters"
    if not any(name.lower() in message.lower() for name in names):
        return f"no {' or '.join(names)}"
    values = value if isinstance(value, OneOf) else [value]
    texts = [one for one in values if isinstance(one, str) and len(one) > 3]
    # Not within a text that was given.
    remedy = REMEDY.search(functools.reduce(lambda rest, text: rest.replace(text, "_" * len(text)), texts, message))
    if remedy is None:
        return "no remedy"
    told = message[: remedy.start() + 1]
    return None if any(one is ANY or is_shown(one, told) for one in values) else "no value"


class OneOf(tuple[Any, ...]):
    """Values of which a sentence shows one: what is wrong may be a part of what was given."""


def is_shown(value: object, told: str) -> bool:
    """Whether a sentence shows a value, as whole words."""
    return any(re.search(rf"(?<!\w){re.escape(form)}(?!\w)", told) for form in shown_forms(value)) or any(
        beginning in told for beginning in beginnings(value)
    )


def beginnings(value: object) -> list[str]:
    """The first letters of values that are too long to be shown."""
    try:
        texts = [repr(value), reprlib.repr(value), *([value] if isinstance(value, str) else [])]
    except (ValueError, RecursionError):
        texts = [reprlib.repr(value)]
    return [" ".join(text.split())[:12] for text in texts if len(text) > 12]


def shown_forms(value: object) -> list[str]:
    """The ways in which a sentence may show a value."""
    if isinstance(value, type):
        return [f"the class {value.__name__}"]
    if isinstance(value, torch.Tensor | np.ndarray | np.generic):
        return shown_arrays(value)
    forms = [reprlib.repr(value)]
    if isinstance(value, str):
        forms += [value.strip()] if value.strip() else ["empty", "blank"]
    elif isinstance(value, int | float | Decimal | Fraction) and not isinstance(value, bool):
        forms += [str(value), f"{float(value):g}", str(float(value))] if abs(value) < 10**300 else ["huge"]
    elif isinstance(value, list | tuple | dict | set | range):
        forms += [f"holds {len(value)}", *([] if value else ["empty"])]
        # A part of it may be what is wrong.
        parts = [*value.values(), *value] if isinstance(value, dict) else [*value]
        forms += [form for part in parts[:3] if not isinstance(part, list | dict) for form in shown_forms(part)]
        forms += [repr([*value])] if isinstance(value, range) else []
    elif value is None:
        forms += ["not given", "missing"]
    elif callable(value):
        forms += [repr(getattr(value, "__name__", type(value).__name__))]
    return forms


def shown_arrays(value: torch.Tensor | np.ndarray | np.generic) -> list[str]:
    """The ways in which a sentence may show an array or a tensor: what is in it, or what kind it is of."""
    forms = [f"of shape {list(value.shape)}", f"of {value.dtype}"]
    if is_meta(value):
        return [*forms, "on the meta device"]
    if value.ndim == 0:
        forms += ["of no dimensions", repr(value), str(value.item()), repr(value.item())]
    elif value.ndim == 1:
        forms += [repr(value.tolist()), *(str(number) for number in value.tolist()[:3])]
        forms += [f"holds {len(value)}"]
    has_none = isinstance(value, torch.Tensor) and not torch.isfinite(value).all()
    return [*forms, *(["nan or inf"] if has_none else [])]


def is_meta(value: object) -> bool:
    """Whether it is a tensor without numbers."""
    return isinstance(value, torch.Tensor) and value.is_meta


def fault_of_error(error: BaseException, names: Sequence[str], value: object) -> str | None:
    """What a refusal by an error lacks: it has to be ours, of a kind for wrong arguments, and a clear sentence."""
    frames = traceback.extract_tb(error.__traceback__)
    if not isinstance(error, REFUSALS):
        return f"{type(error).__name__} from within ({where(error)})"
    if not frames or not Path(frames[-1].filename).is_relative_to(PACKAGE):
        return f"{type(error).__name__} of others ({where(error)})"
    return fault_of_sentence(str(error), names, value)


def where(error: BaseException) -> str:
    """The innermost place of this package's own from which an error came."""
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).is_relative_to(PACKAGE)]
    return f"{Path(own[-1].filename).relative_to(PACKAGE)}:{own[-1].lineno}" if own else "outside of the package"


@contextmanager
def bounded() -> Iterator[None]:
    """Context in which what hangs or takes all memory is stopped."""

    def stop(_: int, frame: FrameType | None) -> None:
        raise Hang(f"still busy after {SECONDS:.0f} s")

    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc/self/statm").exists() else None
    if pages is not None:
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, before[1]))
    is_main = threading.current_thread() is threading.main_thread()
    previous = signal.signal(signal.SIGALRM, stop) if is_main else None
    if is_main:
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        if is_main:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, previous)
        resource.setrlimit(resource.RLIMIT_AS, before)


@dataclass
class Tally:
    """Counts of what became of cases of one kind, and the failing ones with how to see them again."""

    kind: str
    counts: Counter[str] = field(default_factory=Counter)
    failing: list[str] = field(default_factory=list)

    def judge(
        self,
        act: Callable[[], Any],
        names: str | Sequence[str],
        value: object,
        reproduction: str,
        fault_of_result: Callable[[Any], str | None] = lambda result: None,
    ) -> None:
        """Judges one case.

        Args:
            act: does what the case is about.
            names: of the argument, of which a refusal has to name one.
            value: that it is given.
            reproduction: the case in Python or as a command.
            fault_of_result: what is wrong with what `act` returns; None where it is as asked.
        """
        names = [names] if isinstance(names, str) else names
        try:
            with bounded():
                fault, kind = fault_of_result(act()), "understood"
        except (Exception, Hang) as error:
            fault, kind = fault_of_error(error, names, value), "refused"
            fault = fault and f"{fault}: {type(error).__name__}: {str(error)[:300]!r}"
        self.count(kind, fault, reproduction)

    def count(self, kind: str, fault: str | None, reproduction: str) -> None:
        """Counts a case that is judged already."""
        self.counts[kind if fault is None else "failing"] += 1
        if fault is not None:
            self.failing.append(f"{reproduction}  ->  {fault}")

    def check(self) -> None:
        """Fails where a case has."""
        assert not self.failing, f"{len(self.failing)} of {self.counts.total()} cases fail:\n" + "\n".join(self.failing)

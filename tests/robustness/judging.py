"""The judge of what becomes of an odd value: understood, refused in one clear sentence, or a failure."""

from __future__ import annotations

import math
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
REMEDIES = frozenset(
    """
    give choose take use leave name must may make raise lower set drop load pass mend write save put add import wrap
    construct decorate install upgrade which enlarge shorten split move call remove go resume wait options takes
    """.split()  # noqa: SIM905
)
"""Words of a sentence that says what to do."""
LONGEST = 1500
SECONDS = 10.0
MEMORY = 2 * 2**30


class Hang(BaseException):
    """A case took longer than `SECONDS`."""


def fault_of_sentence(message: str, names: Sequence[str], value: object) -> str | None:
    """What a refusal lacks of one clear sentence with an argument's name, its value and a remedy; None for nothing.

    Args:
        names: of the argument, of which the sentence has one.
        value: that was given; of long ones, the sentence may show the beginning or the type.
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
    if not any(shown in message for shown in shown_forms(value)):
        return "no value"
    words = {word.strip(".,;:()'\"`") for word in message.lower().split()}
    return None if words & REMEDIES else "no remedy"


def shown_forms(value: object) -> list[str]:
    """The ways in which a sentence may show a value."""
    forms = [type(value).__name__, reprlib.repr(value)]
    try:
        text = repr(value)
    except (ValueError, RecursionError):
        # An int of more digits than Python writes.
        return [*forms, "huge", "digits"]
    forms += [text] if len(text) < 200 else [text[:20].strip("'\"")]
    if isinstance(value, str):
        forms += (
            [value, value.strip()[:20], text.strip("'\"")[:20]] if value.strip() else ["''", '""', "empty", "blank"]
        )
    if isinstance(value, int | float) and not isinstance(value, bool):
        forms += ["huge"] if abs(value) > 10**300 else [str(float(value)), f"{value:g}"]
        forms += ["huge"] if abs(value) > 10**18 else []
    if isinstance(value, Decimal | Fraction):
        forms += [str(value), str(float(value))]
    if isinstance(value, range):
        value = list(value)
    if isinstance(value, list | tuple | dict | set):
        forms += ["a list", "a mapping", "an object", f"{len(value)} "] + (["empty"] if not value else [])
        inner = list(value.values()) + list(value) if isinstance(value, dict) else list(value)
        forms += [form for part in inner[:3] if not isinstance(part, list | dict) for form in shown_forms(part)]
    # An argument that is refused whatever its value is.
    forms += ["cannot be used", "is given"]
    # A finite number by which the network overflows.
    forms += ["has made NaN"]
    if isinstance(value, torch.Tensor | np.ndarray | np.generic):
        forms += [f"{len(value)} "] if value.shape else []
        # What is wrong with it may be what kind of tensor it is.
        forms += ["a tensor", "meta device", str(value.dtype)]
        # A number in an array may be shown as one.
        forms += [str(value), *([str(value.item())] if math.prod(value.shape) == 1 and not is_meta(value) else [])]
    if value is None:
        forms += ["not given", "missing"]
    if callable(value):
        forms += [getattr(value, "__name__", type(value).__name__)]
    return [form for form in forms if form]


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

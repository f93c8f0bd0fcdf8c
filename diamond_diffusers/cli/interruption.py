"""Control and C on the command line: the first time it ends the call that is on its way, the second time everything."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

import typer
from rich.console import Console

if TYPE_CHECKING:
    from ..pipelines.pipeline import DiamondMapPipeline

EXIT_CODE = 128 + signal.SIGINT
"""What shells give a command that was ended in this way."""


@contextmanager
def interruptible(pipe: DiamondMapPipeline, written: str = "the best images so far") -> Iterator[Callable[[], bool]]:
    """Context in which control and C ends a call of the pipeline, and what there is by then goes on to be written.

    Args:
        written: what is, for the user.

    Yields:
        A function that tells whether there was an interruption.

    Raises:
        KeyboardInterrupt: it came a second time.
        typer.Exit: at the end of the context, with the exit code of an interruption, where there was one.
    """
    is_interrupted = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal is_interrupted
        if is_interrupted:
            raise KeyboardInterrupt
        is_interrupted = True
        pipe.interrupt()
        message = f"Interrupted: {written} will be written; once more ends without."
        Console(stderr=True).print(message, soft_wrap=True, highlight=False)

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield lambda: is_interrupted
    finally:
        signal.signal(signal.SIGINT, before)
    if is_interrupted:
        raise typer.Exit(EXIT_CODE)

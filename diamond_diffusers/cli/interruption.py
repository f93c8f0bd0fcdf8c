"""Control and C on the command line: the first time it ends the call that is on its way, the second time everything."""

from __future__ import annotations

import signal
from collections.abc import Iterator
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
def interruptible(pipe: DiamondMapPipeline) -> Iterator[None]:
    """Context in which control and C ends a call of the pipeline, whose best images so far go on to be written.

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
        message = "Interrupted: the best images so far will be written; once more ends without them."
        Console(stderr=True).print(message, soft_wrap=True, highlight=False)

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if is_interrupted:
        raise typer.Exit(EXIT_CODE)

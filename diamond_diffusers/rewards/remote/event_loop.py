"""The event loop on which all requests of a process run, in a thread of its own."""

from __future__ import annotations

import asyncio
import os
import threading

# What is collected while a thread holds it closes connections, and asks for the loop again.
_lock = threading.RLock()
_loop: asyncio.AbstractEventLoop | None = None


def event_loop() -> asyncio.AbstractEventLoop:
    """The loop, which runs from the first time that it is asked for to the end of the process."""
    global _loop
    with _lock:
        if _loop is None:
            _loop = asyncio.new_event_loop()
            threading.Thread(target=_loop.run_forever, name="remote-rewards", daemon=True).start()
        return _loop


def _forget() -> None:
    """A forked process has the loop, but not its thread."""
    global _lock, _loop
    _lock, _loop = threading.RLock(), None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)

"""Changes of shared objects that last for as long as anyone holds them."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar
from weakref import WeakKeyDictionary

T = TypeVar("T")


class HeldChange(Generic[T]):
    """A change that callers in several threads, or in turns, may each ask for: the last of them undoes it.

    Args:
        change: makes the change to an object, and returns what undoes it.

    Example:
        >>> def freeze(module):
        ...     module.requires_grad_(False)
        ...     return lambda: module.requires_grad_(True)
        >>> frozen = HeldChange(freeze)
        >>> module = torch.nn.Linear(1, 1)
        >>> with frozen.of(module), frozen.of(module):
        ...     module.weight.requires_grad
        False
    """

    def __init__(self, change: Callable[[T], Callable[[], object]]) -> None:
        self.change = change
        # The garbage collector may leave a forgotten context anywhere, even where this thread holds the lock.
        self._lock = threading.RLock()
        self._is_busy = False
        self._held: WeakKeyDictionary[T, tuple[int, Callable[[], object]]] = WeakKeyDictionary()
        self._left: deque[T] = deque()

    @contextmanager
    def of(self, changed: T) -> Iterator[None]:
        """Context in which an object is changed."""
        with self._lock:
            with self._busy():
                holders, undo = self._held.get(changed) or (0, self.change(changed))
                self._held[changed] = holders + 1, undo
            self._let_go()
        try:
            yield
        finally:
            self._left.append(changed)
            with self._lock:
                self._let_go()

    def _let_go(self) -> None:
        """Takes away the holders that have left, unless this thread is already at it: then it does so afterwards."""
        while self._left and not self._is_busy:
            with self._busy():
                changed = self._left.popleft()
                holders, undo = self._held[changed]
                if holders > 1:
                    self._held[changed] = holders - 1, undo
                else:
                    del self._held[changed]
                    undo()

    @contextmanager
    def _busy(self) -> Iterator[None]:
        self._is_busy = True
        try:
            yield
        finally:
            self._is_busy = False

"""Changes of shared objects that last for as long as anyone holds them."""

from __future__ import annotations

import threading
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
        self._lock = threading.Lock()
        self._held: WeakKeyDictionary[T, tuple[int, Callable[[], object]]] = WeakKeyDictionary()

    @contextmanager
    def of(self, changed: T) -> Iterator[None]:
        """Context in which an object is changed."""
        with self._lock:
            holders, undo = self._held.get(changed) or (0, self.change(changed))
            self._held[changed] = holders + 1, undo
        try:
            yield
        finally:
            with self._lock:
                holders, undo = self._held[changed]
                if holders > 1:
                    self._held[changed] = holders - 1, undo
                else:
                    del self._held[changed]
                    undo()

"""Named extensions: what a user adds in one file, with one decorator, and then uses by name everywhere."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Sequence
from functools import cached_property
from importlib import metadata
from typing import Any, Generic, TypeVar

T = TypeVar("T")
Entry = TypeVar("Entry")

REGISTRIES: list[Registry[Any]] = []
"""All of them whose modules are imported."""


class Registry(Generic[T]):
    """The entries of one kind, such as all transitions, by name.

    A name comes from one of three places, and what it names is imported when it is first asked for:

    - a file of the package's own folder, which is called as its entry;
    - the decorator `register`, in any file of a user's;
    - an entry point of an installed package, in the group `diamond_diffusers.<plural>`.

    Args:
        kind: what an entry is, for error messages and as the argument that names one: "transition".
        plural: of it, for the group of entry points: "transitions".
        folder: package whose files are called as their entries; None where entries are registered by one module.
        helpers: files of that folder which are no entries.
        base: "module:class" of which entries are subclasses, so that the registry of a part is found by its class;
            None where entries are no classes.

    Example:
        >>> SHAPES: Registry[type] = Registry("shape", "shapes")
        >>> @SHAPES.register("circle")
        ... class Circle: ...
        >>> SHAPES.get("circle") is Circle, SHAPES.names(), SHAPES.name_of(Circle)
        (True, ['circle'], 'circle')
    """

    def __init__(
        self,
        kind: str,
        plural: str,
        folder: str | None = None,
        helpers: Sequence[str] = ("base",),
        base: str | None = None,
    ) -> None:
        self.kind, self.plural, self.folder, self.helpers, self.base = kind, plural, folder, tuple(helpers), base
        self._entries: dict[str, T] = {}
        REGISTRIES.append(self)

    @property
    def group(self) -> str:
        """The group of entry points that other packages use."""
        return f"diamond_diffusers.{self.plural}"

    def register(self, name: str) -> Callable[[Entry], Entry]:
        """Makes the decorated object the entry of that name, and returns it unchanged.

        Args:
            name: an identifier; registering the same object again, as reloading a module does, replaces it.

        Raises:
            ValueError: the name is no identifier, or belongs to another entry.
        """
        if not name.isidentifier():
            raise ValueError(f"the {self.kind} name {name!r} is no identifier; use letters, digits and underscores")

        def register(entry: Entry) -> Entry:
            known: Any = self._entries.get(name)
            owner = self._own_module(name)
            if (known is not None and _origin(known) != _origin(entry)) or owner not in (None, _module_of(entry)):
                raise ValueError(
                    f"the {self.kind} name {name!r} belongs to {_origin(known) if known is not None else owner}; "
                    "choose another name"
                )
            self._entries[name] = entry  # type: ignore[assignment]
            return entry

        return register

    def get(self, name: str, argument: str | None = None) -> T:
        """The entry of a name, which is imported if need be.

        Args:
            name: of the entry.
            argument: by which the caller knows the name, for the error; by default the kind.

        Raises:
            ValueError: there is no such entry.
            ImportError: the package that offers it cannot be imported.
        """
        if name not in self._entries and (module := self._own_module(name)) is not None:
            importlib.import_module(module)
        if name not in self._entries and (point := self._entry_points.get(name)) is not None:
            try:
                self._entries[name] = point.load()
            except Exception as error:
                raise ImportError(
                    f"{self.kind} {name!r} is offered by the entry point {point.value!r}, which cannot be imported "
                    f"({error}); mend or uninstall that package"
                ) from error
        if name not in self._entries:
            raise ValueError(f"{argument or self.kind} is {name!r}; choose one of {', '.join(self.names())}")
        return self._entries[name]

    def names(self) -> list[str]:
        """The sorted names of all entries; imports none of them."""
        return sorted({*self._entries, *self._own_names, *self._entry_points})

    def name_of(self, entry: Any) -> str | None:
        """The name under which an object is registered, or offered by an entry point; None where it is neither."""
        registered = (name for name, known in self._entries.items() if known is entry)
        origin = f"{_module_of(entry)}:{getattr(entry, '__qualname__', None)}"
        offered = (name for name, point in self._entry_points.items() if point.value == origin)
        return next(registered, None) or next(offered, None)

    def __contains__(self, name: object) -> bool:
        return name in self.names()

    def _own_module(self, name: str) -> str | None:
        return f"{self.folder}.{name}" if name in self._own_names else None

    @cached_property
    def _own_names(self) -> frozenset[str]:
        if self.folder is None:
            return frozenset()
        files = pkgutil.iter_modules(importlib.import_module(self.folder).__path__)
        return frozenset(file.name for file in files if file.name not in self.helpers)

    @cached_property
    def _entry_points(self) -> dict[str, metadata.EntryPoint]:
        return {point.name: point for point in metadata.entry_points(group=self.group)}


def _module_of(entry: Any) -> str | None:
    return getattr(entry, "__module__", None)


def _origin(entry: Any) -> str:
    named = entry if hasattr(entry, "__qualname__") else type(entry)
    return f"{named.__module__}.{named.__qualname__}"

"""Named extensions: what a user adds in one file, with one decorator, and then uses by name everywhere."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from importlib import metadata
from typing import Any, Generic, TypeVar

T = TypeVar("T")
Entry = TypeVar("Entry")

ALIAS = re.compile(r"[^\W\d]\w*(?:[-.]\w+)*")
REGISTRIES: list[Registry[Any]] = []
"""All of them whose modules are imported."""


class Registry(Generic[T]):
    """The entries of one kind, such as all transitions, by name.

    A name comes from one of three places, and what it names is imported when it is first asked for:

    - a file or a subpackage of the package's own folder, which is called as its entry;
    - the decorator `register`, in any file of a user's;
    - an entry point of an installed package, in the group `diamond_diffusers.<plural>`.

    Args:
        kind: what an entry is, for error messages and as the argument that names one: "transition".
        plural: of it, for the group of entry points: "transitions".
        folder: package whose files are called as their entries; None where entries are registered by one module.
        helpers: files of that folder which are no entries.
        files: the file of each entry, where a folder's files are not called as their entries.
        aliases: other spellings of the names of the folder's entries.
        base: "module:class" of which entries are subclasses, so that the registry of a part is found by its class;
            None where entries are no classes.

    Attributes:
        aliases: other spellings of names, each with its name. `get` and `in` take them, `names` leaves them out.

    Example:
        >>> SHAPES: Registry[type] = Registry("shape", "shapes")
        >>> @SHAPES.register("circle", aliases=["round-shape"])
        ... class Circle: ...
        >>> SHAPES.get("round-shape") is Circle, SHAPES.names(), SHAPES.name_of(Circle)
        (True, ['circle'], 'circle')
    """

    def __init__(
        self,
        kind: str,
        plural: str,
        folder: str | None = None,
        helpers: Sequence[str] = ("base",),
        files: Mapping[str, str] | None = None,
        aliases: Mapping[str, str] | None = None,
        base: str | None = None,
    ) -> None:
        self.kind, self.plural, self.folder, self.helpers, self.base = kind, plural, folder, tuple(helpers), base
        self.files = files
        self.aliases: dict[str, str] = dict(aliases or {})
        self._entries: dict[str, T] = {}
        REGISTRIES.append(self)

    @property
    def group(self) -> str:
        """The group of entry points that other packages use."""
        return f"diamond_diffusers.{self.plural}"

    def register(self, name: str, aliases: Sequence[str] = ()) -> Callable[[Entry], Entry]:
        """Makes the decorated object the entry of that name, and returns it unchanged.

        Args:
            name: an identifier; registering the same object again, as reloading a module does, replaces it.
            aliases: other spellings of the name, which may hold dashes and dots within.

        Raises:
            TypeError: the decorator is used without a name, or on what is no class of the registry's base.
            ValueError: the name is no identifier, an alias is malformed, or one of them belongs to another entry.
        """
        if not isinstance(name, str):
            raise TypeError(f"the {self.kind} name is {name!r}; decorate with the name in parentheses and quotes")
        if not name.isidentifier():
            raise ValueError(f"the {self.kind} name {name!r} is no identifier; use letters, digits and underscores")
        for alias in aliases:
            if not ALIAS.fullmatch(alias):
                raise ValueError(
                    f"the {self.kind} alias {alias!r} is malformed; use letters, digits and underscores, with '-' or "
                    "'.' between them"
                )

        def register(entry: Entry) -> Entry:
            for word in (name, *aliases):
                if (owner := self._owner(word)) is not None and not _is_defined_in(entry, owner):
                    raise ValueError(f"the {self.kind} name {word!r} belongs to {owner}; choose another name")
            if self.base is not None and self.base not in bases_of(entry):
                base = self.base.partition(":")[2]
                raise TypeError(f"the {self.kind} {name!r} is {entry!r}; give a class that derives from {base}")
            self._entries[name] = entry  # type: ignore[assignment]
            self.aliases.update(dict.fromkeys(aliases, name))
            return entry

        return register

    def get(self, name: str, argument: str | None = None) -> T:
        """The entry of a name, which is imported if need be.

        Args:
            name: of the entry, or one of its aliases.
            argument: by which the caller knows the name, for the error; by default the kind.

        Raises:
            ValueError: there is no such entry.
            ImportError: the package that offers it cannot be imported, or its name is no identifier.
        """
        own = self.aliases.get(name, name)
        if own not in self._entries and own in self._own_modules:
            importlib.import_module(self._own_modules[own])
        if own not in self._entries and (point := self._entry_points.get(own)) is not None:
            self._entries[own] = self._load(point)
        if own not in self._entries:
            raise ValueError(
                f"{argument or self.kind} is {name[:80]!r}; choose one of {', '.join(self.names())}, or import the "
                f"file of yours that registers it (--import on the command line){self._nearest(name)}"
            )
        return self._entries[own]

    def names(self) -> list[str]:
        """The sorted names of all entries; imports none of them."""
        return sorted({*self._entries, *self._own_modules, *self._entry_points})

    def added_names(self) -> list[str]:
        """The sorted names that this package does not bring: those of users' files and of other packages."""
        return [name for name in self.names() if name not in self._own_modules]

    def name_of(self, entry: Any) -> str | None:
        """The name under which an object is registered, or offered by an entry point; None where it is neither."""
        registered = (name for name, known in self._entries.items() if known is entry)
        origin = f"{getattr(entry, '__module__', None)}:{getattr(entry, '__qualname__', None)}"
        offered = (name for name, point in self._entry_points.items() if point.value == origin)
        return next(registered, None) or next(offered, None)

    def _nearest(self, name: object) -> str:
        """What an error says of the name that was probably meant, if there is one."""
        spelled = {known.lower(): known for known in (*self.aliases, *self.names())}
        found = difflib.get_close_matches(str(name)[:80].lower(), spelled, n=1)
        return f"; did you mean {spelled[found[0]]!r}?" if found else ""

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __len__(self) -> int:
        return len(self.names())

    def __contains__(self, name: object) -> bool:
        return name in self.aliases or name in self.names()

    def _owner(self, word: str) -> str | None:
        """Where the entry of a name or an alias is defined, so far as that is known without importing it."""
        name = self.aliases.get(word, word)
        known = self._entries.get(name)
        return self._own_modules.get(name) if known is None else _origin(known)

    def _load(self, point: metadata.EntryPoint) -> Any:
        if not point.name.isidentifier():
            raise ImportError(
                f"the {self.kind} name {point.name!r} of an entry point in {self.group} is no identifier, so that no "
                "call can use it; rename it"
            )
        try:
            return point.load()
        except Exception as error:
            raise ImportError(
                f"{self.kind} {point.name!r} is offered by the entry point {point.value!r}, which cannot be imported "
                f"({error}); mend or uninstall that package"
            ) from error

    @cached_property
    def _own_modules(self) -> dict[str, str]:
        """The module of each entry of the folder, by name."""
        if self.folder is None:
            return {}
        if self.files is not None:
            return {name: f"{self.folder}.{file}" for name, file in self.files.items()}
        found = pkgutil.iter_modules(importlib.import_module(self.folder).__path__)
        return {file.name: f"{self.folder}.{file.name}" for file in found if file.name not in self.helpers}

    @cached_property
    def _entry_points(self) -> dict[str, metadata.EntryPoint]:
        return {point.name: point for point in metadata.entry_points(group=self.group)}


def bases_of(entry: Any) -> list[str]:
    """A class and its bases, each as "module:class"; none of what is no class."""
    return [f"{each.__module__}:{each.__qualname__}" for each in getattr(entry, "__mro__", ())]


def _is_defined_in(entry: Any, owner: str) -> bool:
    """Whether `owner` is the origin of an entry, or the module or package that holds it."""
    return f"{_origin(entry)}.".startswith(f"{owner}.")


def _origin(entry: Any) -> str:
    named = entry if hasattr(entry, "__qualname__") else type(entry)
    return f"{named.__module__}.{named.__qualname__}"

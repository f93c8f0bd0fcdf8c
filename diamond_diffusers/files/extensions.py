"""Files and modules of a user's own, whose import registers methods, rewards and parts under names."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path

from .foreign import one_line, writable


def import_extension(name: str) -> None:
    """Imports a file or a module, so that what it registers is known by name.

    Args:
        name: path of a `.py` file, whose folder is added to those in which Python looks for modules; or the dotted name
            of a module.

    Raises:
        ValueError: there is no such file or module, or another module has the file's name.
        ImportError: it raised another exception, which is the cause of this one.
    """
    shown = one_line(writable(name))
    if name.endswith(".py"):
        name = _module_of_file(Path(name), shown)
    elif not _is_module(name):
        raise ValueError(f"--import is '{shown}', which is no module that Python finds; name a .py file or a module")
    try:
        importlib.import_module(name)
    except Exception as error:
        raise ImportError(
            f"--import is '{shown}', which cannot be imported ({type(error).__name__}: {error})"
        ) from error


def _is_module(name: str) -> bool:
    """Whether a module, or the package that it is in, can be found; neither is imported for it."""
    package = name.partition(".")[0]
    try:
        return bool(package) and importlib.util.find_spec(package) is not None
    except ValueError:
        # Python asks a module that is loaded already, and `__main__` does not say where it is from.
        return package in sys.modules


def _module_of_file(path: Path, shown: str) -> str:
    """The name under which a file can be imported from now on."""
    if not path.is_file():
        raise ValueError(f"--import is '{shown}', which is no file; name a .py file or a module")
    if not path.stem.isidentifier():
        raise ValueError(f"--import is '{shown}', whose name is none of a module; use letters, digits and underscores")
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        # Last, so that its files do not hide modules that are installed.
        sys.path.append(folder)
    importlib.invalidate_caches()
    found = importlib.util.find_spec(path.stem)
    if found is None or found.origin is None or Path(found.origin).resolve() != path.resolve():
        raise ValueError(f"--import is '{shown}', but there is another module {path.stem!r}; rename the file")
    return path.stem

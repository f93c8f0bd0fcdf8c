"""Files and modules of a user's own, whose import registers methods, rewards and parts under names."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path


def import_extension(name: str) -> None:
    """Imports a file or a module, so that what it registers is known by name.

    Args:
        name: path of a `.py` file, whose folder is added to those in which Python looks for modules; or the dotted name
            of a module.

    Raises:
        ValueError: there is no such file, or another module has its name.
        ImportError: it cannot be imported.
    """
    module = _module_of_file(Path(name)) if name.endswith(".py") else name
    try:
        importlib.import_module(module)
    except Exception as error:
        raise ImportError(
            f"--import is {name!r}, which cannot be imported ({type(error).__name__}: {error})"
        ) from error


def _module_of_file(path: Path) -> str:
    """The name under which a file can be imported from now on."""
    if not path.is_file():
        raise ValueError(f"--import is '{path}', which is no file; name a .py file or a module")
    if not path.stem.isidentifier():
        raise ValueError(f"--import is '{path}', whose name is none of a module; use letters, digits and underscores")
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        # Last, so that its files do not hide modules that are installed.
        sys.path.append(folder)
    importlib.invalidate_caches()
    found = importlib.util.find_spec(path.stem)
    if found is None or found.origin is None or Path(found.origin).resolve() != path.resolve():
        raise ValueError(f"--import is '{path}', but there is another module {path.stem!r}; rename the file")
    return path.stem

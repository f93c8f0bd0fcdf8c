"""Folders whose files change all at once or not at all, with the permissions that ordinary files have."""

from __future__ import annotations

import errno
import os
import reprlib
import secrets
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from .foreign import one_line
from .output import whole_file

try:
    import fcntl
except ImportError:
    # As on Windows.
    fcntl = None  # type: ignore[assignment]

UNFINISHED = ".unfinished-"
"""How the names of folders begin that hold what is being written; that of a killed process stays until a later save."""


@dataclass
class Stage:
    """What a folder is about to hold.

    Attributes:
        path: an empty folder to write into.
        obsolete: names, relative to the folder, of files that go away unless they are written anew.
    """

    path: Path
    obsolete: set[str] = field(default_factory=set)


@contextmanager
def staged(folder: str | os.PathLike[str]) -> Iterator[Stage]:
    """A stage for a folder, whose files are moved into the folder at the end of the context.

    A folder that does not exist appears whole, by one renaming. One that does keeps its other files; those that are
    replaced are moved aside first, and come back on any error, so that the folder is then as it was. A process that is
    killed during these renamings leaves the former files beside the new ones, in a folder named `.unfinished-*`, which
    is the user's to delete; what one leaves that is killed earlier, a later save deletes.

    Raises:
        NotADirectoryError, ValueError: as of `check_folder`.
        FileExistsError: there is a folder where a file has to go.
        OSError: something cannot be written.
    """
    folder = check_folder(folder)
    # In the folder itself, where there is one: it may be a volume of its own, in a place that cannot be written to.
    holder = folder if folder.is_dir() else folder.parent
    work = holder / f"{UNFINISHED}{secrets.token_hex(4)}"
    new, former = work / "new", work / "former"
    created = _make_parents(work)
    try:
        _delete_left_behind(holder)
        work.mkdir()
        with _claim(work):
            new.mkdir()
            stage = Stage(new)
            yield stage
            _give_ordinary_permissions(new)
            if folder.is_dir():
                _move_into(new, folder, former, stage.obsolete)
            else:
                os.replace(new, folder)
    except BaseException:
        # Where not even putting them back succeeded, these are all that is left of the former files.
        if not _files(former):
            shutil.rmtree(work, ignore_errors=True)
        _remove_empty(created)
        raise
    shutil.rmtree(work, ignore_errors=True)


def _delete_left_behind(holder: Path) -> None:
    """Deletes what processes left in a folder that were killed while they wrote."""
    for work in holder.glob(f"{UNFINISHED}*"):
        # Made once it is claimed.
        if (work / "new").is_dir() and not _files(work / "former"):
            with _claim(work) as is_left:
                if is_left:
                    shutil.rmtree(work, ignore_errors=True)


@contextmanager
def _claim(folder: Path) -> Iterator[bool]:
    """Claims a folder until its process ends at the latest; false where another has, or the system has no claims."""
    with ExitStack() as stack:
        is_ours = False
        with suppress(OSError, AttributeError):
            descriptor = os.open(folder, os.O_RDONLY)
            stack.callback(os.close, descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_ours = True
        yield is_ours


def check_folder(folder: str | os.PathLike[str]) -> Path:
    """A folder to save in, as a path.

    Raises:
        TypeError: it is no path.
        NotADirectoryError: something else has its name.
        ValueError: it has no name, or one that no folder can have.
    """
    if not isinstance(folder, str | os.PathLike):
        raise TypeError(f"save_directory is {reprlib.repr(folder)}; give the path of a folder as a text or a Path")
    if not os.fspath(folder) or "\0" in str(folder):
        raise ValueError(
            f"save_directory is '{one_line(str(folder))}', which can be no folder; name a folder to save in"
        )
    folder = Path(folder)
    try:
        os.lstat(folder)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            shown = reprlib.repr(str(folder))
            raise ValueError(f"save_directory is {shown}, which is too long a name; give a shorter one") from error
    if os.path.lexists(folder) and not folder.is_dir():
        raise NotADirectoryError(f"'{folder}' is a file, or a link to nothing; name a folder to save in")
    return folder


def write_safetensors(file: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Writes tensors whole or not at all, readable for whom the umask lets read; errors as of `whole_file`."""
    with whole_file(file) as partial:
        partial.touch()
        mode = partial.stat().st_mode
        save_file(dict(tensors), partial, None if metadata is None else dict(metadata))
        _set_mode(partial, mode)


def _give_ordinary_permissions(folder: Path) -> None:
    """safetensors keeps its files from all others, whatever the umask says."""
    # What a new file gets here is asked of one: the umask cannot be read without being changed for all threads.
    example = folder.with_name("example")
    example.touch()
    mode = example.stat().st_mode
    for file in _files(folder):
        _set_mode(folder / file, mode)


def _set_mode(file: Path, mode: int) -> None:
    # Some file systems know no permissions.
    with suppress(OSError):
        file.chmod(stat.S_IMODE(mode))


def _files(folder: Path) -> list[Path]:
    """The files in a folder and its folders, relative to it."""
    return sorted(file.relative_to(folder) for file in folder.rglob("*") if not file.is_dir())


def _move_into(new: Path, folder: Path, former: Path, obsolete: set[str]) -> None:
    """Moves files into a folder that exists, and those that they replace to `former`; all of them, or none."""
    arriving = _files(new)
    for name in arriving:
        if (folder / name).is_dir():
            raise FileExistsError(f"'{folder / name}' is a folder, where a file has to go; move it away")
    leaving = [name for name in {*arriving, *map(Path, obsolete)} if os.path.lexists(folder / name)]
    moves = [(folder / name, former / name) for name in leaving if not (folder / name).is_dir()]
    moves += [(new / name, folder / name) for name in arriving]
    done: list[tuple[Path, Path]] = []
    created: list[Path] = []
    try:
        for source, target in moves:
            created += _make_parents(target)
            os.replace(source, target)
            done.append((source, target))
    except BaseException:
        for source, target in reversed(done):
            os.replace(target, source)
        _remove_empty(created)
        raise


def _remove_empty(folders: list[Path]) -> None:
    """Removes folders, the last first, but for those that hold something."""
    for folder in reversed(folders):
        with suppress(OSError):
            folder.rmdir()


def _make_parents(file: Path) -> list[Path]:
    """Makes the folders that a file is to be in; returns those that were not there, outermost first."""
    missing = [parent for parent in file.parents if not parent.is_dir()][::-1]
    for parent in missing:
        parent.mkdir()
    return missing

"""A folder's files change all at once or not at all, and are readable for whom the umask lets read."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from diamond_diffusers.files.staging import staged, write_safetensors


def contents(folder: Path) -> dict[str, str | None]:
    """Of every file, and None for every folder."""
    return {
        path.relative_to(folder).as_posix(): None if path.is_dir() else path.read_text() for path in folder.rglob("*")
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One with files of an earlier save, and others."""
    folder = tmp_path / "model"
    for name in ("a.txt", "part/b.txt", "part/notes.txt", "gone.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"old {name}")
    return folder


def write_new(stage: Path) -> None:
    for name in ("a.txt", "part/b.txt", "other/deep/c.txt"):
        (stage / name).parent.mkdir(parents=True, exist_ok=True)
        (stage / name).write_text(f"new {name}")


def test_files_are_replaced_and_others_stay(folder: Path) -> None:
    before = contents(folder)
    with staged(folder) as stage:
        write_new(stage.path)
        stage.obsolete |= {"gone.txt", "a.txt", "never/there.txt"}
        unfinished = {name: text for name, text in contents(folder).items() if not name.startswith(".unfinished-")}
        assert unfinished == before
    assert contents(folder) == {
        "a.txt": "new a.txt",
        "part": None,
        "part/b.txt": "new part/b.txt",
        "part/notes.txt": "old part/notes.txt",
        "other": None,
        "other/deep": None,
        "other/deep/c.txt": "new other/deep/c.txt",
    }


def test_a_new_folder_appears_whole(tmp_path: Path) -> None:
    with staged(tmp_path / "some" / "model") as stage:
        write_new(stage.path)
        assert not (tmp_path / "some" / "model").exists()
    assert contents(tmp_path / "some" / "model")["a.txt"] == "new a.txt"
    with pytest.raises(OSError, match="disk"), staged(tmp_path / "other") as stage:
        write_new(stage.path)
        raise OSError("the disk is full")
    assert {path.name for path in tmp_path.iterdir()} == {"some"}


@pytest.mark.parametrize("failing", range(6))
def test_an_error_at_any_move_leaves_the_folder_as_it_was(
    folder: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    before, replace, moves = contents(folder), os.replace, []

    def fails_once(source: Path, target: Path) -> None:
        moves.append(source)
        if len(moves) == failing + 1:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", fails_once)
    with pytest.raises(KeyboardInterrupt), staged(folder) as stage:
        write_new(stage.path)
        stage.obsolete.add("gone.txt")
    assert contents(folder) == before


def test_former_files_that_cannot_be_put_back_are_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a user interrupts twice."""
    before, replace, moves = contents(folder), os.replace, []

    def fails(source: Path, target: Path) -> None:
        moves.append(source)
        if len(moves) > 2:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", fails)
    with pytest.raises(KeyboardInterrupt), staged(folder) as stage:
        write_new(stage.path)
    monkeypatch.undo()
    (left,) = folder.glob(".unfinished-*")
    after = contents(folder)
    kept = contents(left / "former")
    assert {**after, **kept}.items() >= before.items() and set(kept) & {"a.txt", "part/b.txt"}
    # It is the user's to decide what becomes of them.
    with staged(folder) as stage:
        write_new(stage.path)
    assert contents(left / "former") == kept


def killed_while_writing(folder: Path) -> None:
    process = os.fork()
    if process == 0:
        with staged(folder) as stage:
            (stage.path / "half").write_text("half of a model")
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(process, 0)


def test_what_a_killed_process_left_is_deleted_and_what_another_writes_is_not(folder: Path, tmp_path: Path) -> None:
    for target in (folder, tmp_path / "new"):
        killed_while_writing(target)
    with staged(folder) as other:
        (other.path / "other.txt").write_text("other")
        for target in (folder, tmp_path / "new"):
            left = [path for path in target.parent.rglob(".unfinished-*/new/half")]
            assert left
            with staged(target) as stage:
                write_new(stage.path)
    assert not list(tmp_path.rglob(".unfinished-*"))
    assert contents(folder)["other.txt"] == "other"


def test_folders_that_are_made_on_the_way_go_with_a_failure(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="disk"), staged(tmp_path / "some" / "deep" / "model"):
        raise OSError("the disk is full")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["", "a\0b"])
def test_what_can_be_no_folder_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="can be no folder; name a folder to save in"), staged(name):
        pytest.fail("there is nothing to write into")


def test_what_stands_in_the_way_is_kept(folder: Path) -> None:
    (folder / "other").write_text("mine")
    before = contents(folder)
    with pytest.raises(OSError), staged(folder) as stage:
        write_new(stage.path)
    assert contents(folder) == before
    with pytest.raises(FileExistsError, match=r"part' is a folder, where a file has to go"), staged(folder) as stage:
        (stage.path / "part").write_text("new")
    with pytest.raises(NotADirectoryError, match=r"a\.txt' is a file, or .*; name a folder"), staged(folder / "a.txt"):
        pytest.fail("there is nothing to write into")
    assert contents(folder) == before
    (folder / "link").symlink_to("nowhere")
    with pytest.raises(NotADirectoryError, match="link to nothing"), staged(folder / "link"):
        pytest.fail("there is nothing to write into")


@pytest.fixture(params=[0o022, 0o027, 0o002], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    former = os.umask(request.param)
    yield request.param
    os.umask(former)


def test_permissions_follow_the_umask(tmp_path: Path, umask: int) -> None:
    for folder in (tmp_path / "new", tmp_path):
        with staged(folder) as stage:
            (stage.path / "part").mkdir()
            save_file({"x": torch.zeros(2)}, stage.path / "part" / "weights.safetensors")
    write_safetensors(tmp_path / "alone.safetensors", {"x": torch.ones(2)}, {"format": "pt"})
    assert torch.equal(load_file(tmp_path / "alone.safetensors")["x"], torch.ones(2))
    for path in tmp_path.rglob("*"):
        assert path.stat().st_mode & 0o777 == (0o777 if path.is_dir() else 0o666) & ~umask, path
    assert {path.name for path in tmp_path.iterdir()} == {"new", "part", "alone.safetensors"}

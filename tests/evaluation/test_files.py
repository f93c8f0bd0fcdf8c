import errno
import json
import math
import os

import pytest
import torch
from PIL import Image

from diamond_diffusers import SMC
from diamond_diffusers.evaluation.files import check_image_path, copy_file, plain, write_bytes, write_image, write_json
from diamond_diffusers.files.output import UnwritableError, prepare_folder, writing


def write_text(folder):
    write_bytes(folder / "new.png", b"new")


def write_picture(folder):
    write_image(folder / "new.png", Image.new("RGB", (2, 2)))


def write_copy(folder):
    copy_file(folder / "source", folder / "new.png")


def test_json_is_strict_and_complete(tmp_path):
    write_json(tmp_path / "a" / "b.json", {"alignment": SMC(), "x": torch.ones(2), "y": [math.nan, -math.inf], 3: None})

    def refuse(constant):
        raise AssertionError(constant)

    read = json.loads((tmp_path / "a" / "b.json").read_text(), parse_constant=refuse)
    assert read["alignment"]["posterior"] == {"name": "denoiser"}
    assert read["alignment"]["max_noise_to_signal"] == "inf"
    assert (read["x"], read["y"], read["3"]) == ([1.0, 1.0], ["nan", "-inf"], None)


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_bytes(path, b"old")

    def fail(source, target):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize("write", [write_text, write_picture, write_copy])
@pytest.mark.parametrize("moment", ["os.replace", None])
def test_a_full_disk_is_told_and_nothing_is_left(tmp_path, monkeypatch, write, moment):
    (tmp_path / "source").write_bytes(b"x")

    def fail(*arguments, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for target in (moment,) if moment else ("pathlib.Path.write_bytes", "PIL.Image.Image.save", "shutil.copyfile"):
        monkeypatch.setattr(target, fail)
    with pytest.raises(UnwritableError, match=r"^'.*new.png' cannot be written \(No space left on device\); make room"):
        write(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_only_what_is_of_writing_is_told():
    for error in (RuntimeError("a bug"), ValueError("a bug"), BrokenPipeError(errno.EPIPE, "closed")):
        with pytest.raises(type(error)) as raised, writing("file"):
            raise error
        assert raised.value is error


def test_an_image_cannot_take_the_place_of_a_folder(tmp_path):
    (tmp_path / "a.png").mkdir()
    with pytest.raises(ValueError, match=r"a.png', which is a folder; name a file"):
        check_image_path(tmp_path / "a.png")


@pytest.mark.parametrize("name", ["a", "a.txt", "a.xbm", "a.hdf", "a.svg"])
def test_what_holds_no_image_in_colour_is_refused_before_it_is_drawn(tmp_path, name):
    with pytest.raises(
        ValueError, match=rf"{name}', whose suffix names no format of colour images; name a file such as"
    ):
        check_image_path(tmp_path / name)
    for suffix in ("png", "JPG", "webp", "tiff", "gif"):
        check_image_path(tmp_path / f"a.{suffix}")
        write_image(tmp_path / f"a.{suffix}", Image.new("RGB", (4, 4)))


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"output is '.*file', where nothing can be written"):
        prepare_folder(tmp_path / "file")


def test_plain_leaves_numbers_alone():
    assert plain({"a": (1, 2.5, True)}) == {"a": [1, 2.5, True]}

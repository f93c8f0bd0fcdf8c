import json
import math

import pytest
import torch

from diamond_diffusers import SMC
from diamond_diffusers.evaluation.files import plain, write_bytes, write_json
from diamond_diffusers.output_files import prepare_folder


def test_json_is_strict_and_complete(tmp_path):
    write_json(tmp_path / "a" / "b.json", {"alignment": SMC(), "x": torch.ones(2), "y": [math.nan, -math.inf], 3: None})

    def refuse(constant):
        raise AssertionError(constant)

    read = json.loads((tmp_path / "a" / "b.json").read_text(), parse_constant=refuse)
    assert read["alignment"]["posterior"] == {"type": "DenoiserPoint", "num_samples": 1}
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


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"output is '.*file', where nothing can be written"):
        prepare_folder(tmp_path / "file")


def test_plain_leaves_numbers_alone():
    assert plain({"a": (1, 2.5, True)}) == {"a": [1, 2.5, True]}

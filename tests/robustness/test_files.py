"""Files that others wrote, broke or put there on purpose are read right, or refused by name."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file

from benchmarks.zoo.flux import build_tiny_flux
from diamond_diffusers import DiamondMapPipeline
from diamond_diffusers.cli.method import method_request
from diamond_diffusers.evaluation.benchmark.prompts import read_prompts
from diamond_diffusers.evaluation.benchmark.redraw import read_recorded
from diamond_diffusers.evaluation.judging.image_sets import find_image_sets
from diamond_diffusers.evaluation.judging.verdicts import VERDICTS, VerdictFolder
from diamond_diffusers.evaluation.scoring.image_files import batches_of_one_size, find_images
from diamond_diffusers.files.foreign import ForeignFileError, parse_json, read_text
from diamond_diffusers.maps.diamond_map import DiamondMap
from diamond_diffusers.maps.storage import load_diamond_map, save_diamond_map
from diamond_diffusers.training.options.config import ConfigError, read_config

from ..maps.tiny_maps import tiny_family
from .judging import OneOf, Tally


class Evil:
    """Which leaves a mark where a pickle of it is read."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


CONTENTS: dict[str, bytes] = {
    "empty": b"",
    "blank": b" \n\t\n",
    "zeros": b"\0" * 4096,
    "no UTF-8": b'{"name": "\xff\xfe"}',
    "half a surrogate pair": b'{"name": "\\ud800"}',
    "null": b"null",
    "a number": b"1",
    "a text": b'"smc"',
    "a list": b"[]",
    "an empty object": b"{}",
    "another object": b'{"a": 1}',
    "a name that is a number": b'{"name": 1}',
    "a name that is a list": b'{"name": ["smc"]}',
    "a name of nothing": b'{"name": "no_such"}',
    "NaN": b'{"name": "smc", "num_particles": NaN}',
    "Infinity": b'{"name": "smc", "max_tilt": Infinity, "x": -Infinity}',
    "1e999": b'{"name": "smc", "num_particles": 1e999}',
    "5000 digits": b'{"name": "smc", "num_particles": ' + b"9" * 5000 + b"}",
    "a key twice": b'{"name": "smc", "name": "none"}',
    "deep lists": b"[" * 100_000 + b"]" * 100_000,
    "deep objects": b'{"name":' * 500 + b"1" + b"}" * 500,
    "an end that is missing": b'{"name": "smc", "num_particles": 4',
    "something behind the end": b'{"name": "smc"} {"name": "smc"}',
    "a comment": b'// smc\n{"name": "smc"}x',
    "a pickle": pickle.dumps({"name": "smc"}),
    "an archive": b"PK\x03\x04" + b"\0" * 60,
    "an ELF": b"\x7fELF" + b"\0" * 60,
    "HTML": b"<html><body>404</body></html>",
    "a pointer of LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    "YAML of Python": b"!!python/object/apply:os.system ['touch x']\n",
    "aliases": b"a: &a [x]\nb: &b [*a, *a]\nname: [*b, *b]\n",
    "an anchor in itself": b"&a [*a]",
    "tabs": b"name:\tsmc\n\t- x\n",
}
PLACES = ("a folder", "a link to nothing", "a link to itself", "nothing", "a pipe of the system")


def put(file: Path, kind: str) -> None:
    """Makes a file, or what stands in its place."""
    if file.is_dir() and not file.is_symlink():
        shutil.rmtree(file)
    file.unlink(missing_ok=True)
    if kind in CONTENTS:
        file.write_bytes(CONTENTS[kind])
    elif kind == "a folder":
        file.mkdir()
    elif kind == "a link to nothing":
        file.symlink_to("no such file")
    elif kind == "a link to itself":
        file.symlink_to(file.name)


def as_method(file: Path) -> None:
    method_request(str(file), {}).build()


def as_options(file: Path) -> None:
    read_config(file)


def as_images(file: Path) -> None:
    paths = find_images([file])
    batches_of_one_size(paths, 2)


def as_table(file: Path) -> None:
    # A folder without the file has another layout.
    if not os.path.lexists(file):
        read_text(file)
    find_image_sets([file.parent])


READERS: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "method.json": (as_method, ("an odd one",)),
    "method.yaml": (as_method, ("an odd one",)),
    "record.json": (read_recorded, ()),
    "prompts.jsonl": (read_prompts, ()),
    "prompts.csv": (read_prompts, ()),
    "questions.json": (read_prompts, ()),
    "metadata.jsonl": (as_table, ()),
    "metadata.csv": (as_table, ()),
    "image.png": (as_images, ()),
    "image.webp": (as_images, ()),
}


@pytest.mark.parametrize("name", READERS)
def test_file(name: str, tmp_path: Path, tally: Tally) -> None:
    read, _ = READERS[name]
    for kind in (*CONTENTS, *PLACES[:4]):
        file = tmp_path / name
        put(file, kind)
        names = (name, "alignment", "num_particles", "max_tilt", "smc")
        # Of a method that was read, what is wrong within is shown, and not the file.
        shown = OneOf((name, "no_such", r"\ud800", "NaN", "1e999", "x"))
        tally.judge(
            lambda file=file: read(file), names, shown, f"{read.__name__}({name}: {kind})", lambda _: "silent: read"
        )
    tally.check()


def test_verdicts(tmp_path: Path) -> None:
    """A file without a line is one without verdicts; any other is refused."""
    for kind in (*CONTENTS, *PLACES[:3]):
        put(tmp_path / VERDICTS, kind)
        try:
            folder = VerdictFolder(tmp_path)
        except ForeignFileError as error:
            assert VERDICTS in str(error), kind
        else:
            assert "\n" not in (tmp_path / VERDICTS).read_text(errors="replace") and not folder._found, kind


@pytest.mark.parametrize("kind", [*CONTENTS, *PLACES[:4]])
def test_file_of_options(kind: str, tmp_path: Path, tally: Tally) -> None:
    """Most of these are mappings, of which the parser then says that they hold no option."""
    file = tmp_path / "options.yaml"
    put(file, kind)
    tally.judge(lambda: read_config(file), ("options.yaml", "--config"), "options.yaml", f"read_config({kind})")
    tally.check()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=12,
)


@settings(max_examples=150, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(value=json_values)
def test_any_json(value: Any, tmp_path: Path, tally: Tally) -> None:
    """A form, a record and a configuration of any value of JSON are refused as what they are not."""
    for name in ("method.json", "record.json"):
        file = tmp_path / name
        file.write_text(json.dumps(value), errors="surrogatepass")
        tally.judge(
            lambda name=name, file=file: READERS[name][0](file), (name, "alignment"), name, f"{name}: {value!r}"
        )
    tally.check()


@settings(max_examples=200, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(text=st.text(st.characters(codec=None), max_size=40))
def test_any_text(text: str, tally: Tally) -> None:
    try:
        parse_json(text, "the text", "mend it")
        tally.count("understood", None, text)
    except ForeignFileError as error:
        tally.count("refused", None if "the text" in str(error) else "no name", text)
    tally.check()


@pytest.fixture(scope="module")
def map_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("robust_map")
    with torch.random.fork_rng(devices=[]):
        save_diamond_map(folder, DiamondMap(tiny_family("flux"), rank=2), {}, {})
    return folder


def hostile_weights(file: Path, mark: Path) -> dict[str, bytes | Callable[[], None]]:
    """What may stand in place of a file of weights."""
    whole, tensors = file.read_bytes(), load_file(file)
    name = next(iter(tensors))
    return {
        **CONTENTS,
        "half": whole[: len(whole) // 2],
        "all but a byte": whole[:-1],
        "a header of 2**63 bytes": b"\xff" * 7 + b"\x7f" + whole[8:],
        "a pickle that acts": pickle.dumps(Evil(mark)),
        "NaN": lambda: save_file({key: torch.full_like(each, torch.nan) for key, each in tensors.items()}, file),
        "inf": lambda: save_file({key: torch.full_like(each, torch.inf) for key, each in tensors.items()}, file),
        "other shapes": lambda: save_file({key: each[..., :1].contiguous() for key, each in tensors.items()}, file),
        "one too few": lambda: save_file({key: each for key, each in tensors.items() if key != name}, file),
        "one too many": lambda: save_file({**tensors, "odd": torch.zeros(1)}, file),
        "whole numbers": lambda: save_file({key: each.long() for key, each in tensors.items()}, file),
        "none": lambda: save_file({}, file),
    }


def test_weights_of_a_map(map_folder: Path, tmp_path: Path, tally: Tally) -> None:
    mark = tmp_path / "mark"
    for source in sorted(map_folder.glob("*.safetensors")):
        for kind, content in hostile_weights(source, mark).items():
            folder = tmp_path / "map"
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(map_folder, folder)
            file = folder / source.name
            if callable(content):
                keep = source.read_bytes()
                content()
                file.write_bytes(source.read_bytes())
                source.write_bytes(keep)
            else:
                file.write_bytes(content)
            tally.judge(
                lambda folder=folder: load_diamond_map(tiny_family("flux"), folder),
                (source.name, "map", "Diamond Map"),
                str(folder),
                f"load_diamond_map({source.name}: {kind})",
                lambda _: "silent: loaded",
            )
    assert not mark.exists()
    tally.check()


def test_configuration_of_a_map(map_folder: Path, tmp_path: Path, tally: Tally) -> None:
    config = json.loads((map_folder / "diamond_map_config.json").read_text())
    values = [None, True, -1, 0, 10**30, 1.5, "", "x", "../../etc", "a\nb", [], [1], {}, {"a": 1}, "x" * 3000]
    folder = tmp_path / "map"
    shutil.copytree(map_folder, folder)
    file = folder / "diamond_map_config.json"
    for kind in (*CONTENTS, *PLACES[:4]):
        put(file, kind)
        tally.judge(
            lambda: load_diamond_map(tiny_family("flux"), folder),
            (file.name, "Diamond Map"),
            str(folder),
            f"load_diamond_map(config: {kind})",
            lambda _: "silent: loaded",
        )
    put(file, "empty")
    for key in config:
        for value in values:
            file.write_text(json.dumps({**config, key: value}))
            tally.judge(
                lambda: load_diamond_map(tiny_family("flux"), folder),
                (key, file.name, "Diamond Map"),
                OneOf((str(folder), value)),
                f"load_diamond_map({key}={value!r:.40})",
            )
    tally.check()


@pytest.mark.parametrize("name", ["model_index.json", "diamond_map/diamond_map_config.json"])
def test_saved_pipeline(name: str, tiny_folder: Path, tmp_path: Path, tally: Tally) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    for kind in (*CONTENTS, *PLACES[:3]):
        put(folder / name, kind)
        tally.judge(
            lambda: DiamondMapPipeline.from_pretrained(folder),
            (Path(name).name, "model", str(folder)),
            str(folder),
            f"from_pretrained({name}: {kind})",
            lambda _: "silent: loaded",
        )
    tally.check()


def test_folders_to_save_in(tiny_pipe: DiamondMapPipeline, tmp_path: Path, tally: Tally) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "taken" / "model_index.json").mkdir(parents=True)
    for name in ("file", "link", "loop", "file/below", "taken", "", "a\0b", "x" * 300, "a" + "/a" * 3000):
        folder = f"{tmp_path}/{name}" if name else ""
        before = sorted(os.listdir(tmp_path))
        tally.judge(
            lambda folder=folder: tiny_pipe.save_pretrained(folder),
            ("save_directory", "folder", "cannot be written"),
            folder,
            f"save_pretrained({name[:20]!r})",
            lambda _: "silent: saved",
        )
        assert sorted(os.listdir(tmp_path)) == before
    for value in (None, 3, 1.5, [], {}, b"x", Image.new("RGB", (1, 1))):
        if isinstance(value, bytes):
            continue
        tally.judge(
            lambda value=value: tiny_pipe.save_pretrained(value),
            "save_directory",
            value,
            f"save_pretrained({value!r})",
            lambda _: "silent: saved",
        )
    tally.check()


def test_a_saved_pipeline_with_nan_weights_is_not_silent(tiny_folder: Path, tally: Tally) -> None:
    pipe = DiamondMapPipeline.from_pipe(build_tiny_flux(guidance_embeds=False))
    pipe.set_progress_bar_config(disable=True)
    with torch.no_grad():
        for weight in pipe.transformer.parameters():
            weight.fill_(torch.nan)
    for alignment in ("none", "smc"):
        given = {"alignment": alignment, "num_inference_steps": 1, "height": 16, "width": 16, "output_type": "pt"}
        tally.judge(
            lambda given=given: pipe("a ring", reward=lambda images, prompts: images.mean((1, 2, 3)), **given),
            ("image", "model", "latents", "network"),
            "NaN",
            f"pipe of NaN, {alignment}",
            lambda out: None if torch.isfinite(out.images).all() else "silent: images of nan",
        )
    tally.check()


def test_errors_of_options_are_of_one_class() -> None:
    assert issubclass(ConfigError, ValueError) and issubclass(ForeignFileError, ValueError)

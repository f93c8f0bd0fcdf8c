"""What is saved is whole, beside what else is in its folder, or the folder stays as it was."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from huggingface_hub import ModelCard

from benchmarks.zoo.flux import build_tiny_flux
from diamond_diffusers import SMC, DiamondMapPipeline
from diamond_diffusers.maps.diamond_map import DiamondMap
from diamond_diffusers.maps.storage import MAP_FILES, save_diamond_map
from diamond_diffusers.pipelines import saving
from diamond_diffusers.pipelines.saving import write_defaults
from tests.hub import Hub, files_in
from tests.maps.tiny_maps import perturb

DEFAULTS = {"true_cfg_scale": 2.0, "negative_prompt": ""}


@pytest.fixture(scope="module")
def map_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("map")
    pipe = DiamondMapPipeline.from_pipe(build_tiny_flux(guidance_embeds=False))
    pipe.save_pretrained(folder / "base")
    diamond_map = DiamondMap(pipe.family, rank=2)
    perturb(diamond_map)
    save_diamond_map(folder / "map", diamond_map, DEFAULTS, {"steps": 7}, base_model=str(folder / "base"))
    return folder


@pytest.fixture
def pipe(map_folder: Path) -> DiamondMapPipeline:
    """With a map."""
    return DiamondMapPipeline.from_pretrained(map_folder / "map")


@pytest.fixture
def folder(pipe: DiamondMapPipeline, tmp_path: Path) -> Path:
    """An earlier save, with files of the user's."""
    pipe.save_pretrained(tmp_path / "model", license="mit")
    for name in ("notes.txt", "diamond_map/notes.txt", "transformer/model.txt", "mine/deep/a.bin", "model.safetensors"):
        (tmp_path / "model" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "model" / name).write_text(f"mine: {name}")
    return tmp_path / "model"


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in files_in(folder)}


class Method:
    """A method of the user's own."""


@pytest.mark.parametrize("value", [Method(), SMC(), lambda images, prompts: 0.0, torch.float16, float("nan"), {1: 2}])
def test_defaults_that_cannot_be_saved_are_known_before(
    value: object, pipe: DiamondMapPipeline, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(folder)
    hub = Hub(tmp_path / "hub", monkeypatch)
    monkeypatch.setattr(DiffusionPipeline, "save_pretrained", lambda *_, **__: pytest.fail("wrote weights"))
    for options in ({"defaults": {"alignment": value}}, {"defaults": {"sigmas": [1.0, value]}}):
        pipe._take_defaults(options["defaults"])
        for target in (folder, tmp_path / "new"):
            with pytest.raises((TypeError, ValueError), match=r"defaults\['(alignment|sigmas)'\].*|holds the key"):
                pipe.save_pretrained(target)
        with pytest.raises((TypeError, ValueError)):
            pipe.push_to_hub("someone/model")
        with pytest.raises((TypeError, ValueError)):
            save_diamond_map(folder / "diamond_map", pipe.family.posterior_map, pipe.defaults, {})
        with pytest.raises((TypeError, ValueError)):
            write_defaults(folder, "flux", pipe.defaults)
    assert contents(folder) == before
    assert not (tmp_path / "new").exists() and not hub.calls


@pytest.mark.parametrize("name", ["", "a\0b"])
def test_what_can_be_no_folder_is_known_before(
    name: str, pipe: DiamondMapPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="can be no folder; name a folder to save in"):
        pipe.save_pretrained(name)
    assert not list(tmp_path.iterdir())


def test_weights_that_could_not_be_loaded_are_not_saved(pipe: DiamondMapPipeline, folder: Path, tmp_path: Path) -> None:
    before = contents(folder)
    with torch.no_grad():
        pipe.family.posterior_map.trained_parameters()[0].view(-1)[0] = torch.nan
    for target in (folder, tmp_path / "new"):
        with pytest.raises(ValueError, match=r"the weight '.*' of the Diamond Map is not made of finite numbers"):
            pipe.save_pretrained(target)
    assert contents(folder) == before and {path.name for path in tmp_path.iterdir()} == {"model"}


@pytest.mark.parametrize("failing", ["save_diamond_map", "write_model_card", "the stock scheduler"])
def test_a_full_disk_leaves_the_former_model(
    failing: str, pipe: DiamondMapPipeline, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(folder)

    def fails(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    if failing == "the stock scheduler":
        monkeypatch.setattr(type(pipe.scheduler), "save_pretrained", fails)
    else:
        monkeypatch.setattr(saving, failing, fails)
    for target in (folder, tmp_path / "new"):
        with pytest.raises(OSError, match="No space left"):
            pipe.save_pretrained(target)
    assert contents(folder) == before
    assert {path.name for path in tmp_path.iterdir()} == {"model"}
    # The model is still what it was.
    monkeypatch.undo()
    pipe.save_pretrained(tmp_path / "new")
    assert {f"diamond_map/{name}" for name in MAP_FILES} <= files_in(tmp_path / "new")


def test_files_of_the_user_stay(pipe: DiamondMapPipeline, folder: Path) -> None:
    mine = {name: content for name, content in contents(folder).items() if content.startswith(b"mine: ")}
    (folder / "README.md").write_text("---\nlicense: [\n---\n\nBy hand, and no card.\n")
    pipe.unload_diamond_map()
    pipe.save_pretrained(folder)
    after = contents(folder)
    assert mine.items() <= after.items() and len(mine) == 5
    assert b"By hand" in after["README.md"]
    assert not {f"diamond_map/{name}" for name in MAP_FILES[1:]} & after.keys()
    (folder / "README.md").write_bytes("# Größer".encode("latin-1"))
    pipe.save_pretrained(folder)
    assert (folder / "README.md").read_bytes() == "# Größer".encode("latin-1")


def test_weights_of_an_earlier_form_do_not_stay(pipe: DiamondMapPipeline, folder: Path) -> None:
    whole = files_in(folder)
    pipe.save_pretrained(folder, max_shard_size="20KB", variant="fp16")
    fp16 = files_in(folder) - whole
    assert any("index.fp16.json" in name for name in fp16) and any("-00001-of-" in name for name in fp16)
    pipe.save_pretrained(folder, max_shard_size="20KB")
    assert "transformer/diffusion_pytorch_model.safetensors.index.json" in files_in(folder)
    assert "transformer/diffusion_pytorch_model.safetensors" not in files_in(folder)
    assert fp16 <= files_in(folder)
    with torch.no_grad():
        pipe.transformer.proj_out.bias += 1.0
    pipe.save_pretrained(folder)
    assert files_in(folder) == whole | fp16
    loaded = DiamondMapPipeline.from_pretrained(folder)
    assert torch.equal(loaded.transformer.proj_out.bias, pipe.transformer.proj_out.bias)


@pytest.fixture
def umask() -> Iterator[None]:
    former = os.umask(0o027)
    yield
    os.umask(former)


def test_others_may_read_what_the_umask_lets_them(pipe: DiamondMapPipeline, tmp_path: Path, umask: None) -> None:
    # From one weight file to the next, into a folder that is there or not.
    for _ in range(2):
        pipe.save_pretrained(tmp_path / "model")
    save_diamond_map(tmp_path / "map", pipe.family.posterior_map, pipe.defaults, {})
    write_defaults(tmp_path / "defaults", "flux", {})
    for path in tmp_path.rglob("*"):
        assert path.stat().st_mode & 0o777 == (0o750 if path.is_dir() else 0o640), path


def test_a_file_is_no_folder_to_save_in(pipe: DiamondMapPipeline, tmp_path: Path) -> None:
    (tmp_path / "model").write_text("mine")
    with pytest.raises(NotADirectoryError, match=r"model' is a file, or .*; name a folder to save in"):
        pipe.save_pretrained(tmp_path / "model")
    assert (tmp_path / "model").read_text() == "mine"


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"license": 5}, TypeError, "license is 5; give a text"),
        ({"license": "mit\n---\nbase_model: evil"}, ValueError, "as the Hub names it, such as 'apache-2.0'"),
        ({"license": ""}, ValueError, "as the Hub names it"),
        ({"sample_prompt": ["a ring"]}, TypeError, "sample_prompt is .*; give a text"),
    ],
)
def test_what_no_card_can_hold_is_known_before(
    options: dict, error: type[Exception], message: str, pipe: DiamondMapPipeline, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        pipe.save_pretrained(tmp_path / "model", **options)
    assert not (tmp_path / "model").exists()


def test_leftovers_of_a_killed_process_are_not_pushed(
    pipe: DiamondMapPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Hub(tmp_path / "hub", monkeypatch)
    left = tmp_path / "model" / ".unfinished-1234" / "new" / "weights.safetensors"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half")
    pipe.save_pretrained(tmp_path / "model", push_to_hub=True, license="mit")
    pushed = tmp_path / "hub" / "someone" / "model"
    assert not any("unfinished" in name for name in files_in(pushed))
    assert ModelCard.load(pushed / "README.md").data.license == "mit"


def test_a_map_alone_is_not_buried_under_a_model(pipe: DiamondMapPipeline, map_folder: Path) -> None:
    """It would be loaded in place of the model that is saved there."""
    before = contents(map_folder / "map")
    with pytest.raises(ValueError, match=r"which holds a Diamond Map alone, .*; name another folder"):
        pipe.save_pretrained(map_folder / "map")
    assert contents(map_folder / "map") == before

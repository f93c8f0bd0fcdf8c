"""A saved map is the map, a LoRA for stock diffusers, and refuses other bases."""

from __future__ import annotations

import json
import shutil
from itertools import product
from pathlib import Path

import pytest
import torch

from benchmarks.zoo.tiny_models import TINY_MODELS
from diamond_diffusers.maps import map_config
from diamond_diffusers.maps.diamond_map import DiamondMap
from diamond_diffusers.maps.storage import CONFIG_NAME, MAP_FILES, load_diamond_map, read_map_config, save_diamond_map

from ..rounding import assert_same_from_a_copy
from .tiny_maps import draw_inputs, perturb, tiny_family


@pytest.fixture(scope="module", params=product(TINY_MODELS, (False, True)), ids=str)
def saved(request, tmp_path_factory):
    """A saved map of each family, without and with `condition_on_observation`, arguments, and what it makes of them."""
    family, condition_on_observation = request.param
    family = tiny_family(family)
    diamond_map = DiamondMap(family, rank=4, lora_alpha=8, condition_on_observation=condition_on_observation)
    perturb(diamond_map)
    inputs = draw_inputs(family)
    folder = tmp_path_factory.mktemp(family.name)
    save_diamond_map(folder, diamond_map, {"guidance_scale": 3.0}, {"steps": 5})
    with torch.no_grad():
        return folder, inputs, inputs.denoised(diamond_map), condition_on_observation


@torch.no_grad()
def test_it_loads_as_it_was(saved, tmp_path):
    folder, inputs, denoised, condition_on_observation = saved
    assert {file.name for file in folder.iterdir()} == set(MAP_FILES)
    config = read_map_config(folder)
    assert (config["defaults"], config["training"]) == ({"guidance_scale": 3.0}, {"steps": 5})
    shutil.copytree(folder, tmp_path / "model" / "diamond_map")
    diamond_map = load_diamond_map(tiny_family(config["family"]), tmp_path / "model", subfolder="diamond_map")
    assert_same_from_a_copy(inputs.denoised(diamond_map), denoised)
    assert (diamond_map.rank, diamond_map.lora_alpha) == (4, 8)
    assert diamond_map.condition_on_observation == config["condition_on_observation"] == condition_on_observation


@pytest.fixture(scope="module")
def flux_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("flux_map")
    diamond_map = DiamondMap(tiny_family("flux"), rank=2, lora_alpha=6)
    perturb(diamond_map)
    save_diamond_map(folder, diamond_map, {}, {})
    return folder


def write_config(folder, **settings):
    """Changes settings of a saved map."""
    config = json.loads((folder / CONFIG_NAME).read_text())
    (folder / CONFIG_NAME).write_text(json.dumps(config | settings))


def test_files_of_maps_with_and_without_the_observation_are_not_mixed(flux_folder, tmp_path):
    shutil.copytree(flux_folder, tmp_path / "without")
    save_diamond_map(tmp_path / "with", DiamondMap(tiny_family("flux"), 2, condition_on_observation=True), {}, {})
    family = tiny_family("flux")
    for name, setting in (("without", True), ("with", False)):
        write_config(tmp_path / name, condition_on_observation=setting)
        with pytest.raises(ValueError, match=rf"has condition_on_observation {setting}.*take all files from one map"):
            load_diamond_map(family, tmp_path / name)
    assert not hasattr(family.network_module, "peft_config")


def test_a_map_that_does_not_say_is_without_the_observation(flux_folder, tmp_path):
    shutil.copytree(flux_folder, tmp_path / "map")
    config = read_map_config(flux_folder)
    config.pop("condition_on_observation")
    (tmp_path / "map" / CONFIG_NAME).write_text(json.dumps(config))
    assert not load_diamond_map(tiny_family("flux"), tmp_path / "map").condition_on_observation


def test_a_map_saved_again_keeps_the_name_of_its_base(flux_folder, tmp_path):
    shutil.copytree(flux_folder, tmp_path / "map")
    write_config(tmp_path / "map", base_model="someone/base", base_revision="v1")
    save_diamond_map(tmp_path / "again", load_diamond_map(tiny_family("flux"), tmp_path / "map"), {}, {})
    config = read_map_config(tmp_path / "again")
    assert (config["base_model"], config["base_revision"]) == ("someone/base", "v1")


def test_stock_diffusers_reads_the_lora(flux_folder):
    family = tiny_family("flux")
    family.pipeline.load_lora_weights(flux_folder, adapter_name="map")
    config = family.network_module.peft_config["map"]
    assert (config.r, config.lora_alpha) == (2, 6)
    ours = load_diamond_map(tiny_family("flux"), flux_folder).lora_parameters
    stock = {name: weight for name, weight in family.network_module.named_parameters() if ".map." in name}
    assert len(ours) == len(stock)
    assert all(torch.equal(weight, stock[name.replace("diamond_map", "map")]) for name, weight in ours.items())


def test_files_come_from_the_hub(flux_folder, monkeypatch):
    asked = []

    def download(repo, name, **options):
        asked.append((repo, name, tuple(options.items())))
        return str(Path(flux_folder) / name)

    monkeypatch.setattr(map_config, "hf_hub_download", download)
    hub = {"subfolder": "diamond_map", "revision": "v1", "token": "secret", "cache_dir": "cache"}
    hub |= {"local_files_only": True, "force_download": True}
    load_diamond_map(tiny_family("flux"), "someone/map", **hub)
    assert sorted(asked) == sorted(("someone/map", name, tuple(hub.items())) for name in MAP_FILES)


def test_another_base_is_refused(flux_folder, tmp_path):
    with pytest.raises(ValueError, match=r"for a flux model, but this is a sana model"):
        load_diamond_map(tiny_family("sana"), flux_folder)
    family = tiny_family("flux")
    family.network_module.register_to_config(num_layers=19)
    with pytest.raises(ValueError, match=r"whose num_layers is 1, but that of this flux model is 19"):
        load_diamond_map(family, flux_folder)

    folder = tmp_path / "renamed"
    shutil.copytree(flux_folder, folder)
    config = json.loads((folder / "diamond_map_config.json").read_text())
    config["base_config"].pop("num_layers")
    (folder / "diamond_map_config.json").write_text(json.dumps({**config, "base_model": "someone/base"}))
    tampered = tiny_family("flux")
    torch.nn.Module.__setattr__(tampered.network_module, "x_embedder", torch.nn.Linear(8, 32))
    with pytest.raises(ValueError, match=r"conditioning.inner_state.weight.* does not fit"):
        load_diamond_map(tampered, folder)
    assert not hasattr(tampered.network_module, "peft_config")


def test_what_is_no_map_is_refused(flux_folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no diamond_map_config\.json"):
        read_map_config(tmp_path)
    config = json.loads((flux_folder / "diamond_map_config.json").read_text())
    file = tmp_path / "diamond_map_config.json"
    file.write_text(json.dumps({**config, "format_version": 9}))
    with pytest.raises(ValueError, match="format_version 9"):
        read_map_config(tmp_path)
    file.write_text(json.dumps({"format_version": 1, "family": "flux", "defaults": {}}))
    with pytest.raises(ValueError, match="no Diamond Map"):
        read_map_config(tmp_path)


def test_a_map_of_another_prediction_is_refused(tmp_path):
    family = tiny_family("stable_diffusion")
    save_diamond_map(tmp_path, DiamondMap(family, rank=2), {}, {})
    other = tiny_family("stable_diffusion")
    other.pipeline.scheduler.register_to_config(prediction_type="v_prediction")
    with pytest.raises(ValueError, match="prediction_type is 'epsilon'"):
        load_diamond_map(other, tmp_path)

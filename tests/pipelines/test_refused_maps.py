"""A Diamond Map that is refused leaves the model as it was, with the map that it had or without one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from huggingface_hub.errors import EntryNotFoundError
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from benchmarks.zoo.flux import build_tiny_flux
from diamond_diffusers import DiamondMapPipeline
from diamond_diffusers.maps import diamond_map as diamond_maps
from diamond_diffusers.maps import map_config
from diamond_diffusers.maps.diamond_map import DiamondMap
from diamond_diffusers.maps.storage import CONDITIONING_NAME, CONFIG_NAME, LORA_NAME, save_diamond_map
from tests.maps.test_diamond_map import add_style
from tests.maps.tiny_maps import perturb
from tests.pipelines.test_diamond_map import DEFAULTS, draw

LAYER = "transformer.transformer_blocks.0.attn.to_q"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, and a map of it."""
    folder = tmp_path_factory.mktemp("model")
    pipe = DiamondMapPipeline.from_pipe(build_tiny_flux(guidance_embeds=False))
    pipe.save_pretrained(folder / "base")
    diamond_map = DiamondMap(pipe.family, rank=2)
    perturb(diamond_map, 0.2)
    save_diamond_map(folder / "map", diamond_map, DEFAULTS, {"steps": 7}, base_model=str(folder / "base"))
    return folder


def config(**settings: Any) -> Callable[[Path], None]:
    """Changes settings of the configuration; `...` takes one out."""

    def change(folder: Path) -> None:
        file = folder / CONFIG_NAME
        changed = {**json.loads(file.read_text()), **settings}
        file.write_text(json.dumps({name: value for name, value in changed.items() if value is not ...}))

    return change


def tensors(
    name: str, change: Callable[[dict[str, torch.Tensor]], Any] = lambda weights: None, **adapter: Any
) -> Callable[[Path], None]:
    """Changes the tensors of a file, and what it declares of the LoRA."""

    def rewrite(folder: Path) -> None:
        weights = load_file(folder / name)
        with safe_open(folder / name, "pt") as opened:
            metadata = opened.metadata()
        change(weights)
        if adapter:
            declared = json.loads(metadata[LORA_ADAPTER_METADATA_KEY])
            declared |= {f"transformer.{key}": value for key, value in adapter.items()}
            metadata[LORA_ADAPTER_METADATA_KEY] = json.dumps(declared)
        save_file(weights, folder / name, metadata)

    return rewrite


def metadata(text: str) -> Callable[[Path], None]:
    def rewrite(folder: Path) -> None:
        save_file(load_file(folder / LORA_NAME), folder / LORA_NAME, {LORA_ADAPTER_METADATA_KEY: text})

    return rewrite


def cut(name: str, length: int) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:length])


def wider(weights: dict[str, torch.Tensor]) -> None:
    weights[f"{LAYER}.lora_A.weight"] = torch.zeros(2, 33)


REFUSED: dict[str, tuple[Callable[[Path], None], str]] = {
    "no base": (config(base_model=...), "has no 'base_model'"),
    "defaults": (config(defaults=[1]), "defaults of .* is a list in place of an object"),
    "guidance": (config(defaults={"true_cfg_scale": "high"}), "true_cfg_scale among the defaults"),
    "unknown": (config(colour="red"), "'colour', which is unknown"),
    "no training": (config(training=...), "has no 'training'"),
    "family": (config(family="sana"), "is for a sana model"),
    "shapes": (config(base_config={"num_layers": 7}), "whose num_layers is 7"),
    "nested": (lambda folder: (folder / CONFIG_NAME).write_text("[" * 100_000), "nested deeper than 64 levels"),
    "short LoRA": (cut(LORA_NAME, -8), "is damaged"),
    "short header": (cut(LORA_NAME, 100), "is damaged"),
    "empty file": (cut(CONDITIONING_NAME, 0), "is damaged"),
    "rank": (tensors(LORA_NAME, r=10**9), r"declares rank 1000000000, but its weights for .* have shapes \[2, 32\]"),
    "no rank": (tensors(LORA_NAME, r=0), "declares rank 0"),
    "text for a rank": (tensors(LORA_NAME, r="2"), "r of the metadata of .* is '2' in place of a whole number"),
    "no alpha": (tensors(LORA_NAME, lora_alpha="nan"), "alpha nan, not above 0 or not finite"),
    "boundless alpha": (tensors(LORA_NAME, lora_alpha="inf"), "alpha inf, not above 0 or not finite"),
    "no guidance": (
        config(defaults={"guidance_scale": "nan"}),
        "guidance_scale among the .* is nan, which is no number",
    ),
    "no scale": (config(defaults={"reward_scale": "-inf"}), "reward_scale among the .* is -inf, which is no number"),
    "a key of two lines": (
        lambda folder: (folder / CONFIG_NAME).write_text('{"format_version": 1, "a\\nb": NaN}'),
        r"a\\nb of .* is nan",
    ),
    "a third axis": (
        tensors(LORA_NAME, lambda w: w.update({f"{LAYER}.lora_B.weight": torch.zeros(32, 2, 1)})),
        "for 'transformer_blocks.0.attn.to_q' does not fit the transformer",
    ),
    "a long setting": (config(base_config={"num_layers": "x" * 10**6}), r"whose num_layers is 'x+\.\.\.x+', but"),
    "alpha": (tensors(LORA_NAME, lora_alpha=-1), "alpha -1, not above 0"),
    "no layers": (tensors(LORA_NAME, target_modules=[]), "does not declare"),
    "a layer": (tensors(LORA_NAME, target_modules=["to_q"]), "lacks 'to_q.lora_A.weight'|does not declare"),
    "numbers for layers": (tensors(LORA_NAME, target_modules=[1]), r"target_modules\[0\] of the metadata"),
    "metadata": (metadata("[" * 100_000), "the metadata of .* nested deeper than 64 levels"),
    "a list for metadata": (metadata("[1]"), "the metadata of .* is a list"),
    "a lost weight": (tensors(LORA_NAME, lambda w: w.pop(f"{LAYER}.lora_B.weight")), "lacks '.*to_q.lora_B.weight'"),
    "width": (tensors(LORA_NAME, wider), "for 'transformer_blocks.0.attn.to_q' does not fit the transformer"),
    "whole numbers": (
        tensors(LORA_NAME, lambda w: w.update({f"{LAYER}.lora_A.weight": torch.zeros(2, 32, dtype=torch.int8)})),
        "'transformer.transformer_blocks.0.attn.to_q.lora_A.weight' of .* is not made of finite numbers",
    ),
    "not a number": (tensors(CONDITIONING_NAME, lambda w: w["times.output.bias"].fill_(torch.nan)), "finite numbers"),
    "a lost layer": (
        tensors(CONDITIONING_NAME, lambda w: w.pop("times.output.bias")),
        "'conditioning.times.output.bias",
    ),
    "a layer too many": (
        tensors(CONDITIONING_NAME, lambda w: w.update(more=torch.zeros(2))),
        "'conditioning.more' .* does not fit",
    ),
    "conditioning": (
        tensors(CONDITIONING_NAME, lambda w: w.update({"times.output.bias": torch.zeros(5)})),
        "the weight 'conditioning.times.output.bias' of the Diamond Map .* does not fit",
    ),
    "a lost file": (lambda folder: (folder / LORA_NAME).unlink(), f"holds no {LORA_NAME}"),
}


@pytest.fixture
def broken(folder: Path, tmp_path: Path) -> Callable[[str], tuple[Path, str]]:
    """Copies of the map that are to be refused, and why."""

    def make(name: str) -> tuple[Path, str]:
        change, message = REFUSED[name]
        shutil.copytree(folder / "map", tmp_path / "map")
        change(tmp_path / "map")
        return tmp_path / "map", message

    return make


def state_of(pipe: DiamondMapPipeline) -> dict[str, Any]:
    """What a map changes in a model."""
    network = pipe.transformer
    return {
        "modules": [(name, id(module)) for name, module in network.named_modules()],
        "parameters": [(name, id(p), p.requires_grad, p._version) for name, p in network.named_parameters()],
        "adapters": dict(getattr(network, "peft_config", {})),
        "active": [(m.active_adapters, m.disable_adapters) for m in network.modules() if hasattr(m, "lora_A")],
        "map": pipe.family.posterior_map,
        "defaults": (pipe.defaults, pipe._base_defaults),
        "random state": torch.random.get_rng_state().tolist(),
    }


@pytest.fixture(scope="module")
def pipes(folder: Path) -> dict[str, DiamondMapPipeline]:
    """One with a map and a LoRA, and one without; they have to stay what they are."""
    plain = DiamondMapPipeline.from_pipe(build_tiny_flux(guidance_embeds=False), defaults={"height": 16})
    mapped = DiamondMapPipeline.from_pretrained(folder / "map")
    add_style(mapped.family)
    return {"without one": plain, "with one": mapped}


@pytest.mark.parametrize("name", REFUSED)
def test_the_model_stays_as_it_was(
    name: str, broken: Callable, pipes: dict[str, DiamondMapPipeline], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, message = broken(name)
    monkeypatch.setattr(diamond_maps, "inject_adapter_in_model", lambda *_, **__: pytest.fail("took memory for it"))
    for pipe in pipes.values():
        before = state_of(pipe)
        with pytest.raises((ValueError, FileNotFoundError), match=message) as refused:
            pipe.load_diamond_map(source)
        assert "\n" not in str(refused.value) and len(str(refused.value)) < 800
        assert state_of(pipe) == before


@pytest.mark.parametrize("name", ["no base", "rank", "width", "short LoRA", "metadata", "a lost file"])
def test_a_folder_with_such_a_map_is_refused_in_one_sentence(
    name: str, folder: Path, broken: Callable, tmp_path: Path
) -> None:
    source, message = broken(name)
    shutil.copytree(folder / "base", tmp_path / "model")
    shutil.rmtree(tmp_path / "model" / "diamond_map")
    shutil.copytree(source, tmp_path / "model" / "diamond_map")
    for model in (source, tmp_path / "model"):
        with pytest.raises((ValueError, FileNotFoundError), match=message) as refused:
            DiamondMapPipeline.from_pretrained(model)
        assert "\n" not in str(refused.value)


def test_damage_is_known_before_weights_are_loaded(broken: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    source, message = broken("rank")
    monkeypatch.setattr(
        "diffusers.DiffusionPipeline.from_pretrained", lambda *_, **__: pytest.fail("loaded the weights of the base")
    )
    with pytest.raises(ValueError, match=message):
        DiamondMapPipeline.from_pretrained(source)


def test_a_lost_file_on_the_hub_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch, pipes: dict) -> None:
    def download(repository: str, name: str, **options: object) -> str:
        if name == LORA_NAME:
            raise EntryNotFoundError("404 Client Error.\n\nEntry Not Found for url")
        return str(folder / "map" / name)

    monkeypatch.setattr(map_config, "hf_hub_download", download)
    with pytest.raises(FileNotFoundError, match=f"someone/map holds a {CONFIG_NAME} but no {LORA_NAME}"):
        pipes["without one"].load_diamond_map("someone/map")


def test_what_names_no_map_is_refused(folder: Path, pipes: dict[str, DiamondMapPipeline]) -> None:
    pipe = pipes["without one"]
    with pytest.raises(ValueError, match=r"is a file; name the folder that it is in"):
        pipe.load_diamond_map(folder / "map" / CONFIG_NAME)
    with pytest.raises(ValueError, match="neither a folder nor the name of a repository"):
        pipe.load_diamond_map("a" * 5000)
    with pytest.raises(TypeError, match="load_diamond_map has no argument 'subfoldr'; it takes subfolder, revision"):
        pipe.load_diamond_map(folder / "map", subfoldr="map")


def test_a_network_that_cannot_be_adapted_keeps_its_map(folder: Path) -> None:
    pipe = DiamondMapPipeline.from_pretrained(folder / "map")
    images = draw(pipe)
    add_style(pipe.family)
    pipe.fuse_lora(adapter_names=["style"])
    before = state_of(pipe)
    with pytest.raises(ValueError, match=r"LoRAs are fused into the weights .* unfuse_lora\(\)"):
        pipe.load_diamond_map(folder / "map")
    assert state_of(pipe) == before
    pipe.unfuse_lora()
    pipe.unload_lora_weights()
    torch.testing.assert_close(draw(pipe), images)


@pytest.mark.parametrize("failing", ["injection", "half of it", "weights", "device"])
def test_what_fails_half_way_is_taken_back(failing: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No memory, an interrupt: what no look at the files foresees."""
    plain = DiamondMapPipeline.from_pipe(build_tiny_flux(guidance_embeds=False), defaults={"height": 16})
    mapped = DiamondMapPipeline.from_pretrained(folder / "map")
    before, images = state_of(plain), draw(mapped)
    defaults = mapped.defaults
    inject, calls = diamond_maps.inject_adapter_in_model, []

    def fails(original: Callable, half: bool = False) -> Callable:
        def once(*arguments: Any, **options: Any) -> Any:
            calls.append(failing)
            if len(calls) % 2:
                if half:
                    layers = arguments[0].target_modules
                    half_config = diamond_maps.LoraConfig(r=2, target_modules=sorted(layers)[::2])
                    inject(half_config, *arguments[1:], **options)
                raise MemoryError("there is no more")
            return original(*arguments, **options)

        return once

    if failing in ("injection", "half of it"):
        monkeypatch.setattr(diamond_maps, "inject_adapter_in_model", fails(inject, failing == "half of it"))
    elif failing == "weights":
        monkeypatch.setattr(DiamondMap, "load_weights", fails(DiamondMap.load_weights))
    else:
        monkeypatch.setattr(diamond_maps.MapConditioning, "to", fails(diamond_maps.MapConditioning.to))
    with pytest.raises(MemoryError):
        mapped.load_diamond_map(folder / "map")
    calls.clear()
    with pytest.raises(MemoryError):
        plain.load_diamond_map(folder / "map")
    monkeypatch.undo()
    assert state_of(plain) == before
    assert mapped.defaults == defaults and mapped.family.has_diamond_map
    torch.testing.assert_close(draw(mapped), images)
    # A LoRA, and the map, load as if nothing had been.
    add_style(plain.family)
    plain.unload_lora_weights()
    plain.load_diamond_map(folder / "map")
    torch.testing.assert_close(draw(plain), images)
    plain.unload_diamond_map()
    assert not hasattr(plain.transformer, "peft_config") and plain.defaults == {"height": 16}


def test_loading_twice_is_loading_once(folder: Path) -> None:
    pipe = DiamondMapPipeline.from_pretrained(folder / "map", defaults={"height": 16, "num_inference_steps": 3})
    images, defaults = draw(pipe), pipe.defaults
    names = [name for name, _ in pipe.transformer.named_modules()]
    pipe.load_diamond_map(folder / "map")
    assert [name for name, _ in pipe.transformer.named_modules()] == names
    torch.testing.assert_close(draw(pipe), images)
    assert pipe.defaults == defaults
    pipe.unload_diamond_map()
    assert "true_cfg_scale" not in pipe.defaults
    pipe.unload_diamond_map()


def test_a_refused_lora_leaves_the_model(pipes: dict[str, DiamondMapPipeline]) -> None:
    """One of two times, whose weights do not fit: the embedder that it needs goes with it."""
    pipe = pipes["without one"]
    before = state_of(pipe)
    name = "transformer.time_text_embed.second_embedder.timestep_embedder.linear_1"
    lora = {f"{name}.lora_A.weight": torch.zeros(2, 256), f"{name}.lora_B.weight": torch.zeros(999, 2)}
    with pytest.raises(RuntimeError):
        pipe.load_lora_weights(lora)
    after = state_of(pipe)
    assert after["modules"] == before["modules"] and not after["adapters"]


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ('{"transformer.r": 1000000000, "transformer.target_modules": ["to_q"]}', "declares the rank 1000000000, but"),
        ('{"transformer.r": 2, "transformer.rank_pattern": {"to_q": 1000000000}}', "weights have at most 2"),
        ('{"transformer.r": "2"}', "declares the rank 2, but its weights have at most 2"),
        ('{"transformer.r": 0}', "declares the rank 0"),
        ("[" * 100_000, "is no JSON|are no JSON"),
        ("[1]", "are no object of JSON"),
    ],
)
def test_the_declared_rank_of_any_lora_is_that_of_its_weights(
    declared: str, message: str, pipes: dict[str, DiamondMapPipeline], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lora = {f"{LAYER}.lora_A.weight": torch.zeros(2, 32), f"{LAYER}.lora_B.weight": torch.zeros(32, 2)}
    file = tmp_path / "lora.safetensors"
    save_file(lora, file, {LORA_ADAPTER_METADATA_KEY: declared})
    for pipe in pipes.values():
        before = state_of(pipe)
        monkeypatch.setattr(pipe.pipeline, "load_lora_weights", lambda *_, **__: pytest.fail("took memory for it"))
        with pytest.raises(ValueError, match=message):
            pipe.load_lora_weights(str(file))
        monkeypatch.undo()
        assert state_of(pipe) == before


def test_a_lora_that_declares_its_rank_loads(folder: Path, tmp_path: Path) -> None:
    pipe = DiamondMapPipeline.from_pretrained(folder / "base")
    pipe.load_lora_weights(str(folder / "map" / LORA_NAME), adapter_name="style")
    assert pipe.transformer.peft_config["style"].r == 2

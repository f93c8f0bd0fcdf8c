"""A Diamond Map as users load, call, save and unload it."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from huggingface_hub import ModelCard
from huggingface_hub.errors import LocalEntryNotFoundError
from torch import Tensor

from benchmarks.zoo.flux import build_tiny_flux
from benchmarks.zoo.tiny_models import TINY_MODELS
from diamond_diffusers import (
    SMC,
    DiamondMapPipeline,
    DiamondPosterior,
    DiamondTransition,
    Guidance,
    Guide,
    NoAlignment,
)
from diamond_diffusers.maps import map_config
from diamond_diffusers.maps.diamond_map import DiamondMap
from diamond_diffusers.maps.storage import CONDITIONING_NAME, CONFIG_NAME, LORA_NAME, MAP_FILES, save_diamond_map
from diamond_diffusers.pipelines.loading import read_base_defaults, read_defaults
from tests.families.family import brightness
from tests.maps.test_diamond_map import add_style
from tests.maps.tiny_maps import perturb
from tests.products import one_of_each_kind
from tests.rounding import assert_same_from_a_copy

CALL = {"height": 16, "width": 16, "num_inference_steps": 3, "max_sequence_length": 12, "output_type": "pt"}
DEFAULTS = {"true_cfg_scale": 2.0, "negative_prompt": ""}
ALIGNMENT = SMC(num_particles=3, posterior=DiamondPosterior(2), transition=DiamondTransition())


@pytest.fixture(scope="module")
def map_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A map with random weights, around a base that is saved too."""
    folder = tmp_path_factory.mktemp("map")
    pipe = DiamondMapPipeline.from_pipe(build_tiny_flux(guidance_embeds=False))
    pipe.save_pretrained(folder / "base")
    diamond_map = DiamondMap(pipe.family, rank=2)
    torch.manual_seed(1)
    weights = {name: torch.randn_like(weight) / 5 for name, weight in diamond_map.weights().items()}
    save_diamond_map(
        folder / "map", diamond_map, DEFAULTS, {"steps": 7}, base_model=str(folder / "base"), weights=weights
    )
    return folder


def draw(pipe: DiamondMapPipeline, **options: object) -> torch.Tensor:
    call = {**CALL, "alignment": ALIGNMENT, "generator": torch.Generator().manual_seed(0), **options}
    return pipe("a red circle", reward=brightness, **call).images


def test_a_map_loads_with_its_base_and_runs_on_one_evaluation_a_look_ahead(map_folder: Path) -> None:
    pipe = DiamondMapPipeline.from_pretrained(map_folder / "map")
    assert pipe.defaults == DEFAULTS
    out = pipe("a red circle", reward=brightness, alignment=ALIGNMENT, **CALL)
    assert out.cost.network_evaluations == 3 * (2 * 2 + 3)
    assert out.images.isfinite().all()


def test_saved_beside_its_base_it_loads_again_and_stock_diffusers_sees_the_base(
    map_folder: Path, tmp_path: Path
) -> None:
    pipe = DiamondMapPipeline.from_pretrained(map_folder / "map")
    images = draw(pipe)
    pipe.save_pretrained(tmp_path)
    assert_same_from_a_copy(draw(DiamondMapPipeline.from_pretrained(tmp_path)), images)
    stock, base = DiffusionPipeline.from_pretrained(tmp_path), build_tiny_flux(guidance_embeds=False)
    for name, weight in base.transformer.state_dict().items():
        assert torch.equal(stock.transformer.state_dict()[name], weight), name


def test_the_base_is_bit_identical_with_the_map_loaded_and_after_it_is_unloaded(map_folder: Path) -> None:
    pipe = DiamondMapPipeline.from_pipe(build_tiny_flux(guidance_embeds=False))
    latents = torch.randn(1, 4, 16)
    before = pipe("a red circle", latents=latents, **CALL).images
    pipe.load_diamond_map(map_folder / "map")
    assert torch.equal(pipe("a red circle", latents=latents, **{**CALL, "true_cfg_scale": 1.0}).images, before)
    mapped = draw(pipe)
    with pytest.raises(ValueError, match="neither a folder nor"):
        pipe.load_diamond_map(map_folder / "nothing")
    assert torch.equal(draw(pipe), mapped)
    pipe.load_diamond_map(map_folder / "map")
    assert_same_from_a_copy(draw(pipe), mapped)
    pipe.unload_diamond_map()
    assert torch.equal(pipe("a red circle", latents=latents, **CALL).images, before)
    with pytest.raises(ValueError, match="needs a Diamond Map"):
        pipe("a red circle", alignment=NoAlignment(DiamondTransition()), **CALL)


def test_image_i_with_generator_i_is_the_same_in_any_batch(map_folder: Path) -> None:
    pipe = DiamondMapPipeline.from_pretrained(map_folder / "map")
    generators = [torch.Generator().manual_seed(seed) for seed in range(2)]
    call = {**CALL, "reward": brightness, "alignment": ALIGNMENT, "particle_batch_size": 2}
    both = pipe(["a ring", "a ring"], generator=generators, **call).images
    alone = pipe("a ring", generator=torch.Generator().manual_seed(1), **call).images
    torch.testing.assert_close(both[1:], alone, atol=1e-4, rtol=0)


def test_baked_in_guidance_and_foreign_bases_are_refused(map_folder: Path) -> None:
    pipe = DiamondMapPipeline.from_pretrained(map_folder / "map")
    with pytest.raises(ValueError, match=r"true_cfg_scale is 3\.0.*distilled with 2\.0"):
        draw(pipe, true_cfg_scale=3.0)
    other = DiamondMapPipeline.from_pipe(build_tiny_flux(guidance_embeds=True))
    with pytest.raises(ValueError, match="guidance_embeds"):
        other.load_diamond_map(map_folder / "map")
    with pytest.raises(FileNotFoundError, match="no Diamond Map"):
        other.load_diamond_map(map_folder)
    with pytest.raises(
        ValueError, match="negative_prompt is 'a ring', but the Diamond Map was distilled with the empty"
    ):
        draw(pipe, negative_prompt="a ring")
    with pytest.raises(ValueError, match="no Diamond Map"):
        other.load_diamond_map(map_folder / "base" / "diamond_map")


def test_networks_that_checkpoint_themselves_do_so_with_the_map(map_folder: Path) -> None:
    pipe = DiamondMapPipeline.from_pretrained(map_folder / "map")
    guided = Guidance(guide=Guide("pathwise", scaling="auto"), posterior=DiamondPosterior(2))
    expected, plain = draw(pipe, alignment=guided), draw(pipe, alignment="none", true_cfg_scale=1.0)
    assert not torch.equal(expected, plain)
    pipe.transformer.enable_gradient_checkpointing()
    assert torch.equal(draw(pipe, alignment=guided), expected)
    pipe.transformer.disable_gradient_checkpointing()
    # Another call of the same pipeline, in another thread, has it evaluated so for a while.
    with torch.enable_grad(), pipe.family.evaluating_network(True):
        assert pipe.transformer.is_gradient_checkpointing
        assert torch.equal(draw(pipe, alignment=guided), expected)
    assert not pipe.transformer.is_gradient_checkpointing


def test_defaults_of_the_map_go_with_it(map_folder: Path, tmp_path: Path) -> None:
    pipe = DiamondMapPipeline.from_pretrained(map_folder / "map", defaults={"num_inference_steps": 2})
    assert pipe.defaults == {**DEFAULTS, "num_inference_steps": 2}
    pipe.save_pretrained(tmp_path / "with")
    pipe.unload_diamond_map()
    assert pipe.defaults == {"num_inference_steps": 2}
    again = DiamondMapPipeline.from_pretrained(tmp_path / "with")
    assert again.defaults == {**DEFAULTS, "num_inference_steps": 2}
    again.unload_diamond_map()
    assert again.defaults == {"num_inference_steps": 2}


def test_it_loads_from_beside_its_base_too(map_folder: Path, tmp_path: Path) -> None:
    pipe = DiamondMapPipeline.from_pretrained(map_folder / "map")
    pipe.save_pretrained(tmp_path)
    other = DiamondMapPipeline.from_pipe(build_tiny_flux(guidance_embeds=False))
    other.load_diamond_map(tmp_path)
    assert_same_from_a_copy(draw(other), draw(pipe))


def test_stock_methods_for_loras_leave_it(map_folder: Path) -> None:
    pipe = DiamondMapPipeline.from_pretrained(map_folder / "map")
    images = draw(pipe)
    add_style(pipe.family, "diamond_map_style")
    assert not torch.equal(draw(pipe), images)
    with pytest.raises(ValueError, match=r"'diamond_map'.*leave it out"):
        pipe.set_adapters(["diamond_map_style", "diamond_map"])
    pipe.set_adapters("diamond_map_style", 0.5)
    pipe.unload_lora_weights()
    assert torch.equal(draw(pipe), images)
    # Where it is taken out with them all the same, it can be loaded again.
    pipe.pipeline.unload_lora_weights()
    with pytest.raises(RuntimeError, match="load it again"):
        draw(pipe)
    pipe.load_diamond_map(map_folder / "map")
    assert_same_from_a_copy(draw(pipe), images)
    pipe.delete_adapters("diamond_map")
    pipe.unload_diamond_map()


def test_a_compiled_base_is_saved_as_what_it_was(map_folder: Path, tmp_path: Path) -> None:
    pipe = DiamondMapPipeline.from_pretrained(map_folder / "base")
    pipe.pipeline.transformer = torch.compile(pipe.transformer, backend="eager")
    pipe.load_diamond_map(map_folder / "map")
    pipe.save_pretrained(tmp_path)
    expected = DiamondMapPipeline.from_pretrained(map_folder / "map")
    assert_same_from_a_copy(draw(DiamondMapPipeline.from_pretrained(tmp_path)), draw(expected))


def test_what_was_saved_before_does_not_stay(map_folder: Path, tmp_path: Path) -> None:
    pipe = DiamondMapPipeline.from_pretrained(map_folder / "map")
    pipe.save_pretrained(tmp_path, license="apache-2.0")
    pipe = DiamondMapPipeline.from_pretrained(tmp_path)
    pipe.save_pretrained(tmp_path)
    assert ModelCard.load(tmp_path / "README.md").data.license == "apache-2.0"
    pipe.unload_diamond_map()
    pipe.save_pretrained(tmp_path)
    assert not (tmp_path / "README.md").exists()
    assert [file.name for file in (tmp_path / "diamond_map").iterdir()] == [CONFIG_NAME]
    assert not DiamondMapPipeline.from_pretrained(tmp_path).family.has_diamond_map


def test_fused_weights_are_not_saved_as_the_base(map_folder: Path, tmp_path: Path) -> None:
    pipe = DiamondMapPipeline.from_pretrained(map_folder / "base")
    add_style(pipe.family)
    pipe.fuse_lora()
    with pytest.raises(ValueError, match=r"fused into the weights of the transformer.*unfuse_lora"):
        pipe.save_pretrained(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def broken_copies(folder: Path) -> dict[str, dict[str, bytes]]:
    config = json.loads((folder / CONFIG_NAME).read_text())
    no_base = json.dumps({**config, "base_model": None}).encode()
    gone = json.dumps({**config, "base_model": "/nowhere/base"}).encode()
    return {
        "does not say where its base is": {CONFIG_NAME: no_base},
        "not at /nowhere/base any more": {CONFIG_NAME: gone},
        "is no JSON": {CONFIG_NAME: b"{"},
        "is damaged": {CONDITIONING_NAME: b"nothing"},
        "does not say the rank": {LORA_NAME: (folder / CONDITIONING_NAME).read_bytes()},
    }


def test_broken_maps_are_named(map_folder: Path, tmp_path: Path) -> None:
    for message, changes in broken_copies(map_folder / "map").items():
        for name in MAP_FILES:
            content = changes.get(name, (map_folder / "map" / name).read_bytes())
            (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=message):
            DiamondMapPipeline.from_pretrained(tmp_path)


@pytest.mark.parametrize("family", one_of_each_kind(TINY_MODELS, ["flux", "stable_diffusion"]))
def test_every_family_loads_runs_saves_and_unloads_one(family: str, tmp_path: Path) -> None:
    model = TINY_MODELS[family]
    pipe = DiamondMapPipeline.from_pipe(model.build())
    call = {name: value for name, value in model.call.items() if name != "negative_prompt"}
    call |= {"num_inference_steps": 2, "output_type": "pt", "latents": None}
    diamond_map = DiamondMap(pipe.family, rank=2)
    perturb(diamond_map)
    save_diamond_map(tmp_path / "map", diamond_map, {}, {})
    diamond_map.remove()

    def images(alignment: object) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        return pipe("a ring", reward=brightness, alignment=alignment, generator=generator, **call).images

    plain = images(NoAlignment())
    pipe.load_diamond_map(tmp_path / "map")
    mapped = images(ALIGNMENT)
    pipe.save_pretrained(tmp_path / "model")
    assert torch.equal(images(NoAlignment()), plain)
    pipe.unload_diamond_map()
    assert torch.equal(images(NoAlignment()), plain)
    pipe = DiamondMapPipeline.from_pretrained(tmp_path / "model")
    assert_same_from_a_copy(images(ALIGNMENT), mapped)


def test_what_a_map_alone_declares_is_known_before_it_is_loaded(map_folder: Path) -> None:
    assert read_defaults(map_folder / "map") == DEFAULTS
    assert read_base_defaults(map_folder / "map") == {}


def test_models_that_cannot_be_asked_for_a_map_are_said_to_be(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def offline(*names: object, **options: object) -> str:
        raise LocalEntryNotFoundError("no connection")

    monkeypatch.setattr(map_config, "hf_hub_download", offline)
    assert read_defaults("someone/model", local_files_only=True) == {}
    assert not caplog.records
    assert read_defaults("someone/model") == {}
    assert "someone/model was not looked at for a Diamond Map" in caplog.text


@torch.no_grad()
def test_skip_layer_guidance_is_not_the_maps() -> None:
    model = TINY_MODELS["stable_diffusion_3"]
    pipe = DiamondMapPipeline.from_pipe(model.build())
    pipe.family.posterior_map = DiamondMap(pipe.family, rank=2)
    perturb(pipe.family.posterior_map)
    call = {name: value for name, value in model.call.items() if name != "negative_prompt"}
    call |= {"num_inference_steps": 3, "output_type": "pt", "alignment": NoAlignment(DiamondTransition())}
    skipping = {
        "skip_guidance_layers": [0],
        "skip_layer_guidance_start": 0.0,
        "skip_layer_guidance_stop": 1.0,
    }
    images = [
        pipe("a ring", generator=torch.Generator().manual_seed(0), **call, **options).images
        for options in ({}, skipping)
    ]
    assert torch.equal(*images)


def test_calls_in_several_threads_give_what_they_give_alone(map_folder: Path) -> None:
    """Of one pipeline: the adapter of the map is at work in one thread, and none may be in the other."""
    pipe = DiamondMapPipeline.from_pretrained(map_folder / "map")
    pipe.set_progress_bar_config(disable=True)
    kinds = [
        {"alignment": ALIGNMENT, "reward": brightness},
        {"alignment": "none", "num_inference_steps": 5, "true_cfg_scale": 1.0},
    ]

    def image(kind: int) -> Tensor:
        return pipe("a ring", generator=torch.Generator().manual_seed(kind), **{**CALL, **kinds[kind]}).images

    alone = [image(kind) for kind in range(2)]
    # So long that evaluations would meet.
    handle = pipe.transformer.register_forward_pre_hook(lambda *_: time.sleep(0.005))
    with ThreadPoolExecutor(2) as threads:
        together = list(threads.map(image, [0, 1]))
    handle.remove()
    for image_together, image_alone in zip(together, alone, strict=True):
        # Sums may round differently beside another thread.
        torch.testing.assert_close(image_together, image_alone, atol=1e-5, rtol=0)
    assert (alone[0] - alone[1]).abs().max() > 0.01

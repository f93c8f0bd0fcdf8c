"""A Diamond Map as users load, call, save and unload it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline

from diamond_diffusers import SMC, DiamondMapPipeline, DiamondPosterior, DiamondTransition, NoAlignment
from diamond_diffusers.models.diamond_map import DiamondMap
from diamond_diffusers.models.storage import save_diamond_map
from tests.families.family import brightness
from tests.families.tiny_flux import build_tiny_flux

CALL = {"height": 16, "width": 16, "num_inference_steps": 3, "max_sequence_length": 12, "output_type": "pt"}
DEFAULTS = {"true_cfg_scale": 2.0, "negative_prompt": ""}
ALIGNMENT = SMC(num_particles=3, posterior=DiamondPosterior(2), transition=DiamondTransition())


@pytest.fixture(scope="module")
def map_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A map with random weights, around a base that is saved too."""
    folder = tmp_path_factory.mktemp("map")
    pipe = DiamondMapPipeline.from_pipe(build_tiny_flux(guidance_embeds=False))
    pipe.save_pretrained(folder / "base")
    diamond_map = DiamondMap(pipe.backbone, rank=2)
    torch.manual_seed(1)
    weights = {name: torch.randn_like(weight) / 5 for name, weight in diamond_map.weights().items()}
    save_diamond_map(
        folder / "map", diamond_map, DEFAULTS, {"steps": 7}, base_model=str(folder / "base"), weights=weights
    )
    return folder


def draw(pipe: DiamondMapPipeline, **options: object) -> torch.Tensor:
    call = {**CALL, "generator": torch.Generator().manual_seed(0), **options}
    return pipe("a red circle", reward=brightness, alignment=ALIGNMENT, **call).images


def test_a_map_loads_with_its_base_and_runs_on_one_evaluation_a_look_ahead(map_folder: Path) -> None:
    pipe = DiamondMapPipeline.from_pretrained(map_folder / "map")
    assert pipe.defaults == DEFAULTS
    out = pipe("a red circle", reward=brightness, alignment=ALIGNMENT, **CALL)
    assert out.cost.network_evaluations == 3 * (3 * 2 + 3)
    assert out.images.isfinite().all()


def test_saved_beside_its_base_it_loads_again_and_stock_diffusers_sees_the_base(
    map_folder: Path, tmp_path: Path
) -> None:
    pipe = DiamondMapPipeline.from_pretrained(map_folder / "map")
    images = draw(pipe)
    pipe.save_pretrained(tmp_path)
    assert torch.equal(draw(DiamondMapPipeline.from_pretrained(tmp_path)), images)
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
    pipe.load_diamond_map(map_folder / "map")
    assert torch.equal(draw(pipe), mapped)
    pipe.unload_diamond_map()
    assert torch.equal(pipe("a red circle", latents=latents, **{**CALL, "true_cfg_scale": 1.0}).images, before)
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
    with pytest.raises(ValueError, match="no Diamond Map"):
        other.load_diamond_map(map_folder / "base" / "diamond_map")

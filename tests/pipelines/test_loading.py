"""Single-file checkpoints, and pipeline classes that cannot be loaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import FluxImg2ImgPipeline, FluxInpaintPipeline, ZImagePipeline
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.zoo.flux import build_tiny_flux
from benchmarks.zoo.z_image import build_tiny_z_image
from diamond_diffusers import DiamondMapPipeline

CALL = {"height": 16, "width": 16, "num_inference_steps": 2, "output_type": "pt"}


def original_weights(pipeline: ZImagePipeline) -> dict[str, Tensor]:
    """The transformer's weights under the names of the original checkpoint."""
    weights = dict(pipeline.transformer.state_dict())
    renamed = {}
    for name, weight in weights.items():
        if name.endswith("attention.to_q.weight"):
            fused = [weights[name.replace("to_q", part)] for part in ("to_q", "to_k", "to_v")]
            name, weight = name.replace("to_q", "qkv"), torch.cat(fused)
        elif "attention.to_k." in name or "attention.to_v." in name:
            continue
        for ours, original in (("all_x_embedder.2-1", "x_embedder"), ("all_final_layer.2-1", "final_layer")):
            name = name.replace(ours, original)
        renamed[f"model.diffusion_model.{name.replace('to_out.0', 'out')}"] = weight
    return renamed


def test_a_single_file_is_the_model_it_was_saved_from(tmp_path: Path) -> None:
    stock = build_tiny_z_image()
    stock.save_pretrained(tmp_path / "folder")
    save_file(original_weights(stock), tmp_path / "model.safetensors")
    for file in (tmp_path / "folder" / "transformer").glob("*.safetensors"):
        file.unlink()
    pipe = DiamondMapPipeline.from_single_file(
        tmp_path / "model.safetensors",
        config=str(tmp_path / "folder"),
        vae=stock.vae,
        text_encoder=stock.text_encoder,
        tokenizer=stock.tokenizer,
        few_step=True,
    )
    assert type(pipe.pipeline) is ZImagePipeline
    assert pipe.few_step is True
    pipe.set_progress_bar_config(disable=True)
    images = pipe("a red circle", generator=torch.Generator().manual_seed(0), **CALL).images
    expected = stock("a red circle", generator=torch.Generator().manual_seed(0), **CALL).images
    torch.testing.assert_close(images, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("class_name", "message"),
    [
        ("StableDiffusionInpaintPipeline", "is a StableDiffusionInpaintPipeline.*choose one of.*adding_a_family"),
        ("SanaPipeline", "cannot load SanaPipeline from a single file; save it as a folder"),
    ],
)
def test_single_files_of_other_classes_are_refused_before_they_are_read(
    tmp_path: Path, class_name: str, message: str
) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": class_name, "_diffusers_version": "0.42.1"}))
    with pytest.raises(TypeError, match=message):
        DiamondMapPipeline.from_single_file(tmp_path / "no_such_file.safetensors", config=str(tmp_path))


@pytest.mark.parametrize("pipeline_class", [FluxImg2ImgPipeline, FluxInpaintPipeline])
def test_classes_that_start_from_an_image_are_refused(pipeline_class: type) -> None:
    pipeline = pipeline_class(**build_tiny_flux().components)
    with pytest.raises(TypeError, match=rf"is a {pipeline_class.__name__}.*FluxPipeline.*adding_a_family"):
        DiamondMapPipeline.from_pipe(pipeline)


@pytest.mark.parametrize(
    "class_name", ["StableDiffusionControlNetPipeline", "StableDiffusionXLImg2ImgPipeline", "NoSuchPipeline"]
)
def test_other_classes_on_disk_are_refused_before_their_weights_are_read(tmp_path: Path, class_name: str) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": class_name, "_diffusers_version": "0.42.1"}))
    with pytest.raises(TypeError, match=rf"is a {class_name}.*StableDiffusionXLPipeline.*adding_a_family"):
        DiamondMapPipeline.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (b"[1]", ValueError, "model_index.json of .* does not name the class"),
        (b"{}", ValueError, "does not name the class"),
        (b"null", ValueError, "does not name the class"),
        (b"[" * 100_000, ValueError, "is nested too deep"),
        (b'{"_class_name": ["pipeline", "FluxPipeline"]}', TypeError, "for which there is no family"),
        (b'{"_class_name": 5}', TypeError, "pipeline is a 5, for which there is no family"),
        (b"{", ValueError, "is missing or no JSON; take it from where the model was saved"),
    ],
)
def test_a_model_index_is_a_file_of_others(
    tmp_path: Path, content: bytes, error: type[Exception], message: str
) -> None:
    (tmp_path / "model_index.json").write_bytes(content)
    with pytest.raises(error, match=message):
        DiamondMapPipeline.from_pretrained(tmp_path)

"""The shipped `FluxPipeline`: loads with stock diffusers, reads every word, and draws what it is asked for."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import FluxPipeline

import diamond_diffusers.miniature as miniature
from benchmarks.miniature.flow_model import FlowModel, pack, tokenize
from diamond_diffusers.miniature.grammar import held_out_captions, vocabulary
from diamond_diffusers.miniature.judge import judge
from diamond_diffusers.miniature.render import render, sample_world

FOLDER = Path(miniature.__file__).parent / "weights" / "pipeline"
DEFAULTS = json.loads((FOLDER / "diamond_map" / "diamond_map_config.json").read_text())["defaults"]
CALL = {key: DEFAULTS[key] for key in ("height", "width", "num_inference_steps", "max_sequence_length")}


@pytest.fixture(scope="module")
def pipeline() -> FluxPipeline:
    pipeline = FluxPipeline.from_pretrained(FOLDER)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw(pipeline: FluxPipeline, texts: list[str], seed: int) -> torch.Tensor:
    return pipeline(
        texts,
        negative_prompt=[DEFAULTS["negative_prompt"]] * len(texts),
        true_cfg_scale=DEFAULTS["true_cfg_scale"],
        generator=torch.Generator().manual_seed(seed),
        output_type="pt",
        **CALL,
    ).images


def test_its_tokenizers_are_those_of_training(pipeline: FluxPipeline) -> None:
    assert draw(pipeline, ["a red circle"], 0).shape == (1, 3, 64, 64)
    clip_ids, t5_ids = (ids[0].tolist() for ids in tokenize(["three red hearts"]))
    assert pipeline.tokenizer("three red hearts").input_ids == clip_ids[:5]
    assert pipeline.tokenizer_2("three red hearts").input_ids == t5_ids[:4]


@pytest.mark.slow
def test_a_fresh_process_loads_the_folder_with_diffusers_alone() -> None:
    script = f"""
import sys
from diffusers import FluxPipeline
pipeline = FluxPipeline.from_pretrained({str(FOLDER)!r})
image = pipeline("a red circle", height=64, width=64, num_inference_steps=2, max_sequence_length=12).images[0]
assert not any(name.startswith("diamond_diffusers") for name in sys.modules)
print(image.size, pipeline.tokenizer("three red hearts").input_ids, pipeline.tokenizer_2("three red hearts").input_ids)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    clip_ids, t5_ids = (ids[0].tolist() for ids in tokenize(["three red hearts"]))
    assert done.stdout.strip() == f"(64, 64) {clip_ids[:5]} {t5_ids[:4]}"


def test_no_word_of_the_grammar_is_unknown(pipeline: FluxPipeline) -> None:
    words = vocabulary()
    for tokenizer, special in ((pipeline.tokenizer, 2), (pipeline.tokenizer_2, 1)):
        ids = tokenizer(" ".join(words), truncation=False).input_ids
        assert tokenizer.unk_token_id not in ids
        assert len(set(ids)) == len(words) + special
        assert tokenizer.unk_token_id in tokenizer("a pink hexagon").input_ids


def test_clip_pools_at_the_end_of_the_text(pipeline: FluxPipeline) -> None:
    ids, _ = tokenize(["four green stars", "a heart"])
    with torch.no_grad():
        output = pipeline.text_encoder(ids)
    ends = (ids == pipeline.tokenizer.eos_token_id).int().argmax(-1)
    assert ends.tolist() == [4, 3]
    assert torch.equal(output.pooler_output, output.last_hidden_state[torch.arange(2), ends])


def test_training_sees_the_network_as_the_pipeline_does(pipeline: FluxPipeline) -> None:
    """The velocity that training regresses is the one that one step of the pipeline from pure noise takes."""
    text = "two blue rings"
    flow = FlowModel().eval()
    for name in ("transformer", "text_encoder", "text_encoder_2"):
        getattr(flow, name).load_state_dict(getattr(pipeline, name).state_dict())
    noise = pack(torch.randn(1, 8, 8, 8, generator=torch.Generator().manual_seed(0)))
    with torch.no_grad():
        velocity = flow(noise, torch.ones(1), *tokenize([text]))
    latents = pipeline(text, latents=noise, output_type="latent", **{**CALL, "num_inference_steps": 1}).images
    torch.testing.assert_close(latents, noise - velocity, atol=1e-5, rtol=1e-5)


def test_the_autoencoder_reconstructs_fresh_renders(pipeline: FluxPipeline) -> None:
    """Measured: 32.4 dB, and 99 % of reconstructions satisfy the judge; a blurry autoencoder (27 dB) fails both."""
    captions, scenes = sample_world(random.Random(7), 64)
    images = render(scenes)
    with torch.no_grad():
        latents = pipeline.vae.encode(images * 2 - 1).latent_dist.sample(torch.Generator().manual_seed(0))
        decoded = (pipeline.vae.decode(latents).sample / 2 + 0.5).clamp(0, 1)
    psnr = -10 * torch.log10((decoded - images).square().mean())
    assert psnr > 31
    assert judge(decoded, captions).float().mean() > 0.93
    config = pipeline.vae.config
    normalised = (latents - config.shift_factor) * config.scaling_factor
    assert abs(normalised.mean()) < 0.05
    assert abs(normalised.std() - 1) < 0.05


def test_single_objects_come_out_right_in_most_draws(pipeline: FluxPipeline) -> None:
    """Measured over 128 draws: 79 %; the bound lies 2.5 standard errors of 32 draws below."""
    texts = [caption.text for caption in held_out_captions() if caption.category == "single_object"] * 4
    assert judge(draw(pipeline, texts, seed=0), texts).float().mean() > 0.6

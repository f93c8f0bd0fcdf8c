"""The teacher is the base under guidance, and reads images as the base decodes latents."""

from __future__ import annotations

import random
import weakref
from dataclasses import replace
from functools import partial

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from benchmarks.zoo.flux import build_tiny_flux
from benchmarks.zoo.tiny_models import TINY_MODELS
from diamond_diffusers.core.glass import sample_posterior
from diamond_diffusers.training.data.batches import Order, prepared_lists
from diamond_diffusers.training.data.encoding import LatentEncoder, TrajectoryEncoder
from diamond_diffusers.training.data.images import Preparation
from diamond_diffusers.training.data.loading import load_rows, read_prompts
from diamond_diffusers.training.data.sources import open_source
from diamond_diffusers.training.data.trajectories import INNER_STEPS
from diamond_diffusers.training.errors import TrainingError
from diamond_diffusers.training.options.records import DataOptions, Options, PreparationOptions
from diamond_diffusers.training.teacher import Teacher

from ..accelerator import DEVICE, Accelerator
from ..maps.tiny_maps import tiny_family

PROMPTS = ["a red circle", "two blue stars"]


@pytest.fixture(scope="module", params=TINY_MODELS)
def teacher(request):
    family = tiny_family(request.param)
    model = TINY_MODELS[request.param]
    kept = {"max_sequence_length": model.call.get("max_sequence_length")}
    return Teacher(family, kept, model.call["height"], guidance_scale=3.0)


@torch.no_grad()
def test_it_is_guided_away_from_the_empty_prompt_by_that_much(teacher):
    """Its prediction is `negative + 3 (positive - negative)`, of predictions without guidance."""
    family, name = teacher.family, teacher.family.name
    torch.manual_seed(0)
    x = torch.randn(2, *TINY_MODELS[name].shape)
    level = torch.tensor([0.8, 2.0], dtype=torch.float64)
    conditions = teacher.conditions(teacher.features(PROMPTS))
    guided = family.predict(x, level, conditions)
    positive, negative = (
        family.predict(x, level, replace(conditions, features=features, negative_features=None))
        for features in (conditions.features, conditions.negative_features)
    )
    assert (positive - negative).abs().max() > 1e-4
    torch.testing.assert_close(guided, negative + 3 * (positive - negative), atol=1e-4, rtol=1e-4)
    # The empty prompt, which SANA does not put an instruction before, and which is zero in SDXL.
    if name == "sdxl":
        assert family.pipeline.config.force_zeros_for_empty_prompt
        assert not any(conditions.negative_features[name].any() for name in ("encoder_hidden_states", "text_embeds"))
    elif name != "sana":
        torch.testing.assert_close(conditions.negative_features, teacher.features(["", ""]))


@torch.no_grad()
def test_latents_of_an_image_decode_to_what_the_autoencoder_makes_of_it(teacher):
    family = teacher.family
    vae = family.pipeline.vae
    size = teacher.resolution
    images = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1
    mean, deviation = family.encode_images(images)
    assert mean.shape == deviation.shape == (2, *TINY_MODELS[family.name].shape)
    encoded = vae.encode(images)
    plain = encoded.latent if hasattr(encoded, "latent") else encoded.latent_dist.mean
    expected = (vae.decode(plain, return_dict=False)[0] / 2 + 0.5).clamp(0, 1)
    conditions = teacher.conditions(teacher.features(PROMPTS))
    torch.testing.assert_close(family.decode(mean, conditions), expected, atol=1e-4, rtol=0)
    # Deviations are scaled as the means are: by the ratio of two latents' differences.
    if not hasattr(encoded, "latent"):
        ratio = (mean[0] - mean[1]).std() / (plain[0] - plain[1]).std()
        torch.testing.assert_close(deviation.mean() / encoded.latent_dist.std.mean(), ratio, atol=0, rtol=0.3)


@torch.no_grad()
def test_its_samples_are_those_of_the_stock_pipeline(teacher):
    family = teacher.family
    drawn = teacher.sample(PROMPTS, 2, torch.Generator().manual_seed(4))
    assert drawn.shape == (2, *TINY_MODELS[family.name].shape)
    guidance = {name: [value] * 2 if name == "negative_prompt" else value for name, value in teacher.guidance.items()}
    stock = family.pipeline(
        PROMPTS,
        **{**teacher.call, **guidance},
        num_inference_steps=2,
        generator=torch.Generator().manual_seed(4),
        output_type="pt",
    ).images
    conditions = teacher.conditions(teacher.features(PROMPTS))
    torch.testing.assert_close(family.decode(drawn, conditions), stock.clamp(0, 1), atol=1e-4, rtol=0)


def test_embedded_guidance_is_given_to_the_network():
    family = tiny_family("flux")
    family.pipeline.__dict__.update(build_tiny_flux(guidance_embeds=True).__dict__)
    teacher = Teacher(family, {"max_sequence_length": 12}, 16, guidance_scale=2.5)
    assert teacher.guidance == {"guidance_scale": 2.5}
    conditions = teacher.conditions(teacher.features(PROMPTS))
    assert conditions.negative_features is None
    assert conditions.shared["guidance_scale"] == 2.5


def test_a_few_step_model_is_no_teacher():
    family = tiny_family("flux")
    family.few_step = True
    with pytest.raises(TrainingError, match="is a few-step one"):
        Teacher(family, {}, 16)


@pytest.fixture
def flux_teacher():
    return Teacher(tiny_family("flux"), {"max_sequence_length": 12}, 16)


def opened(given, teacher, order, first_batch=0):
    evaluate = apply if given.loss.build().needs_trajectories else None
    return open_source(given, load_rows(given.data), teacher, order, first_batch, lambda: None, evaluate)


def apply(function):
    """In place of a module."""
    return function(None)


def drawn(source, count=3):
    results = []
    for number in range(count):
        torch.manual_seed(number)
        results.append(next(source)())
    return results


def test_cached_latents_are_the_same_as_fresh_ones(options, flux_teacher, monkeypatch):
    def order(rows):
        return Order(rows, 2)

    fresh = opened(options("--center_crop"), flux_teacher, order, 0)
    given = options("--center_crop", "--cache_latents", "--max_train_steps", 9)
    cached = opened(given, flux_teacher, order, 0)
    for (z, features), (expected, same) in zip(drawn(cached), drawn(fresh), strict=True):
        torch.testing.assert_close(z, expected)
        torch.testing.assert_close(features, same)
    # Kept for the next run, and told apart from other settings.
    monkeypatch.setattr(flux_teacher.family, "encode_images", lambda images: pytest.fail("encoded again"))
    drawn(opened(given, flux_teacher, order, 4))
    monkeypatch.undo()
    folder = given.output.output_dir / "cache"
    next(opened(options("--cache_latents"), flux_teacher, order))
    assert len(list(folder.iterdir())) == 2
    assert all(len(load_file(cache / "00000000.safetensors")["latents.mean"]) == 5 for cache in folder.iterdir())


def test_what_is_cached_is_of_the_images_and_captions_as_they_are(options, flux_teacher, tmp_path):
    """After a row moved, an image changed and a caption changed."""
    folder = tmp_path / "images"
    folder.mkdir()

    def write(name: str, colour: str, caption: str) -> None:
        Image.new("RGB", (16, 16), colour).save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(caption)

    def check() -> None:
        given = options("--cache_latents", "--center_crop", "--train_data_dir", folder)
        rows = load_rows(given.data)
        everything = [[(row, row) for row in range(len(rows))]]
        (prepared,) = prepared_lists(rows, Preparation(16, center_crop=True), everything, 0, 0)
        fresh = LatentEncoder(flux_teacher, 16)(prepared, 0, len(rows))
        order = Order(len(rows), len(rows))
        cached = opened(given, flux_teacher, lambda rows: order)
        torch.manual_seed(0)
        z, features = next(cached)()
        torch.manual_seed(0)
        index = torch.tensor([row for row, _ in next(order.batches(0))])
        mean, deviation = fresh.pop("latents.mean")[index], fresh.pop("latents.deviation")[index]
        torch.testing.assert_close(z, mean + deviation * torch.randn_like(mean))
        torch.testing.assert_close(features, {name: feature[index] for name, feature in fresh.items()})

    write("b", "red", "a red circle")
    write("c", "blue", "two blue stars")
    check()
    write("a", "green", "a ring")
    check()
    write("c", "white", "two blue stars")
    check()
    (folder / "b.txt").write_text("two stars")
    check()


@pytest.mark.parametrize("cached", [False, True])
def test_trajectories_are_those_of_the_inner_flow(options, flux_teacher, cached):
    given = options("--loss", "trajectories", "--center_crop", *["--cache_trajectories"] * cached)
    order = partial(Order, batch_size=2)
    for data, features in drawn(opened(given, flux_teacher, order, 0), 2):
        conditions = flux_teacher.conditions(features)
        assert data.states.shape[:3] == (2, 2, INNER_STEPS + 1)
        for kept in range(2):
            with torch.no_grad():
                sample = sample_posterior(
                    lambda rows, level, told=conditions: flux_teacher.family.predict(rows, level, told),
                    data.x,
                    data.noise_to_signal,
                    data.states[:, kept, 0],
                    num_inner_steps=INNER_STEPS,
                    solver="exponential",
                )
            torch.testing.assert_close(data.states[:, kept, -1], sample, atol=1e-5, rtol=1e-4)


def test_without_images_the_teacher_draws_them(options, flux_teacher, prompts_file):
    assert read_prompts(prompts_file) == ["a red circle", "two blue stars", "a ring"]
    given = Options(
        data=DataOptions(prompts_file=prompts_file), preparation=PreparationOptions(teacher_num_inference_steps=2)
    )
    batches = drawn(opened(given, flux_teacher, lambda rows: Order(rows, 3), 0), 2)
    again = drawn(opened(given, flux_teacher, lambda rows: Order(rows, 3), 0), 2)
    told = flux_teacher.features(read_prompts(prompts_file))["pooled_projections"].sum(0)
    for (z, features), (same, _) in zip(batches, again, strict=True):
        assert torch.equal(z, same)
        # Three prompts, in any order.
        torch.testing.assert_close(features["pooled_projections"].sum(0), told)
    assert not torch.equal(batches[0][0], batches[1][0])
    prompts_file.write_text("\n")
    with pytest.raises(TrainingError, match="is empty; write one prompt a line"):
        read_prompts(prompts_file)


@pytest.fixture
def prompts_once(options, prompts_file):
    """Options of a run on samples of the teacher that are drawn once."""
    return lambda *further: options(
        *[
            "--prompts_file",
            prompts_file,
            "--teacher_num_inference_steps",
            2,
            "--cache_latents",
            "--max_train_steps",
            9,
        ],
        *further,
    )


def test_samples_that_are_kept_are_drawn_once(prompts_once, flux_teacher, monkeypatch, prompts_file):
    def order(rows):
        return Order(rows, 3)

    first, second = drawn(opened(prompts_once(), flux_teacher, order), 2)
    folder = prompts_once().output.output_dir / "cache"
    (cache,) = folder.iterdir()
    # Each is a sample of its own caption, whatever is drawn beside it.
    kept = load_file(cache / "00000000.safetensors")
    assert set(kept) == {"latents.mean", *first[1]}
    prompts, noise = read_prompts(prompts_file), iter(seeds_of_shard(flux_teacher, kept, prompts_once()))
    for place, row in enumerate(Order(3, 3).permutation(0).tolist()):
        alone = flux_teacher.sample([prompts[row]], 2, [torch.Generator().manual_seed(next(noise))])
        torch.testing.assert_close(kept["latents.mean"][place : place + 1], alone, atol=1e-5, rtol=1e-4)
        told = flux_teacher.features([prompts[row]])
        torch.testing.assert_close({name: kept[name][place : place + 1] for name in told}, told)
    # Every epoch has the same ones.
    torch.testing.assert_close(first[0].sort(0).values, second[0].sort(0).values)
    monkeypatch.setattr(flux_teacher, "sample", lambda *arguments: pytest.fail("drawn again"))
    drawn(opened(prompts_once(), flux_teacher, order), 1)
    monkeypatch.undo()
    # Other settings, and other captions, have other samples.
    opened(prompts_once("--teacher_num_inference_steps", 1), flux_teacher, order)
    opened(prompts_once("--quantize", "fp8", "--loss", "progressive"), flux_teacher, order)
    prompts_file.write_text("a red circle\na star\na ring\n")
    opened(prompts_once(), flux_teacher, order)
    assert len(list(folder.iterdir())) == 4


def seeds_of_shard(teacher, kept, given):
    """Of the noise of the samples in the first file."""
    rng = random.Random(random.Random(f"{given.machine.seed} shard 0").getrandbits(63))
    return [rng.getrandbits(63) for _ in range(len(kept["latents.mean"]))]


def test_trajectories_of_samples_do_not_depend_on_how_many_are_drawn_at_once(flux_teacher):
    rows = [(None, caption) for caption in (*PROMPTS, "a ring")]
    one, many = (TrajectoryEncoder(flux_teacher, size, num_inference_steps=2)(rows, 5, 3) for size in (1, 3))
    torch.testing.assert_close(one, many, atol=1e-5, rtol=1e-4)
    assert len(one["trajectories.x"].unique(dim=0)) == 3


def test_text_encoders_leave_when_captions_are_encoded(flux_teacher):
    pipeline = flux_teacher.family.pipeline
    encoders = [weakref.ref(pipeline.text_encoder), weakref.ref(pipeline.text_encoder_2)]
    network, expected = pipeline.transformer, flux_teacher.features([PROMPTS[0]] * 2)
    flux_teacher.drop_text_encoders(PROMPTS[:1])
    assert [encoder() for encoder in encoders] == [None, None]
    assert pipeline.transformer is network and pipeline.vae is not None
    torch.testing.assert_close(flux_teacher.features([PROMPTS[0]] * 2), expected)
    with pytest.raises(TrainingError, match="dropped before 'two blue stars' was encoded"):
        flux_teacher.features(PROMPTS)


def test_the_autoencoder_waits_on_the_cpu(flux_teacher):
    """And is where the network is whenever it is used."""
    family, shape = flux_teacher.family, TINY_MODELS["flux"].shape
    z, images = torch.randn(1, *shape), torch.rand(1, 3, 16, 16)
    conditions = flux_teacher.conditions(flux_teacher.features(PROMPTS[:1]))
    expected = family.decode(z, conditions)
    mean, _ = family.encode_images(images)
    with Accelerator(), torch.no_grad():
        family.pipeline.to(DEVICE)
        flux_teacher.park_autoencoder()
        uses = [
            (lambda: family.decode(z.to(DEVICE), conditions), expected),
            (lambda: family.encode_images(images)[0], mean),
        ]
        for use, found in uses:
            assert family.pipeline.vae.device.type == "cpu"
            assert family.device == family.pipeline.transformer.device == DEVICE
            torch.testing.assert_close(use().cpu(), found, atol=1e-5, rtol=1e-4)
            assert family.pipeline.vae.device == DEVICE
            flux_teacher.park_autoencoder()

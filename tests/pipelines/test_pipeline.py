"""What `DiamondMapPipeline` owes its users, whatever the family."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, FluxPipeline, UNet2DModel

from benchmarks.zoo.flux import build_tiny_flux
from diamond_diffusers import SMC, BestOfN, DiamondMapPipeline, GlassPosterior, Guidance, Guide, ODETransition

PROMPTS = ["a red circle", "two blue stars"]
CALL = {"height": 16, "width": 16, "num_inference_steps": 3, "max_sequence_length": 12}
ALIGNMENTS = {
    "best_of_n": BestOfN(num_particles=3),
    "smc": SMC(num_particles=3, posterior=GlassPosterior(num_inner_steps=2, num_samples=2)),
    "guidance": Guidance(),
    "pathwise_guidance": Guidance(guide=Guide("pathwise"), transition=ODETransition()),
    "guidance_tilted_mean": Guidance(guide=Guide("tilted_mean"), posterior=GlassPosterior(num_samples=8)),
    "guided_smc": SMC(num_particles=3, guide=Guide()),
}


def brightness(images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
    return 10 * images.mean((1, 2, 3))


def generators(count: int = 2) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in range(count)]


@pytest.fixture(scope="module")
def pipe() -> DiamondMapPipeline:
    return DiamondMapPipeline.from_pipe(build_tiny_flux(guidance_embeds=False))


@pytest.mark.parametrize("name", ALIGNMENTS)
def test_alignment_gains_reward_over_plain_samples(pipe: DiamondMapPipeline, name: str) -> None:
    # Means of so many differ by .008 by chance; the gains of these methods are .012 to .037.
    prompts = ["a red circle"] * 32
    call = {**CALL, "num_inference_steps": 6, "reward": brightness}
    alignment = ALIGNMENTS[name]
    # A method may move its particles by other transitions than plain sampling; then its own untilted law is to beat.
    plain_method = alignment if alignment.resolve(pipe.family).transition.is_stochastic else "none"
    plain = pipe(prompts, generator=generators(32), alignment=plain_method, reward_scale=0.0, **call).rewards
    aligned = pipe(prompts, generator=generators(32), alignment=alignment, reward_scale=100.0, **call).rewards
    assert aligned.mean() > plain.mean()


@pytest.mark.parametrize("name", ALIGNMENTS)
def test_output_holds_everything(pipe: DiamondMapPipeline, name: str) -> None:
    out = pipe(PROMPTS, reward=brightness, alignment=ALIGNMENTS[name], generator=generators(), **CALL)
    assert [type(image) for image in out.images] == [PIL.Image.Image] * 2
    assert out.rewards.shape == (2,)
    torch.testing.assert_close(out.reward_terms["brightness"], out.rewards)
    assert (out.log_evidence is not None) == isinstance(ALIGNMENTS[name], SMC)
    assert len(out.trace.steps) == 3
    assert out.cost.seconds > 0
    json.dumps([out.trace.as_dict(), out.cost.as_dict()], allow_nan=True)
    if name != "best_of_n":
        assert out.trace.plot().get_axes()


def test_output_types_and_tuples(pipe: DiamondMapPipeline) -> None:
    assert pipe(PROMPTS, output_type="np", **CALL).images.shape == (2, 16, 16, 3)
    tensor = pipe(PROMPTS, output_type="pt", generator=generators(), **CALL).images
    pil = pipe(PROMPTS, output_type="pil", generator=generators(), **CALL).images
    np.testing.assert_array_equal(np.asarray(pil[0]), (tensor[0].permute(1, 2, 0) * 255).round().byte().numpy())
    images, rewards = pipe(PROMPTS, reward=brightness, return_dict=False, **CALL)
    assert len(images) == len(rewards) == 2


def test_rewards_are_those_of_the_returned_images(pipe: DiamondMapPipeline) -> None:
    for selection, count in (("sample", 2), ("best", 2), ("all", 6)):
        out = pipe(
            PROMPTS,
            reward=brightness,
            alignment=SMC(num_particles=3),
            final_selection=selection,
            output_type="pt",
            generator=generators(),
            **CALL,
        )
        assert len(out.images) == count
        torch.testing.assert_close(brightness(out.images, PROMPTS), out.rewards)


def test_num_images_per_prompt_gives_independent_clouds(pipe: DiamondMapPipeline) -> None:
    out = pipe(
        PROMPTS,
        reward=brightness,
        alignment=SMC(num_particles=2),
        num_images_per_prompt=3,
        generator=generators(6),
        output_type="pt",
        **CALL,
    )
    assert len(out.images) == 6
    assert len(out.log_evidence) == 6
    assert (out.images[0] - out.images[1]).abs().max() > 1e-3


def test_reward_reads_each_images_own_prompt(pipe: DiamondMapPipeline) -> None:
    def length(images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        return torch.tensor([float(len(prompt)) for prompt in prompts])

    call = {**CALL, "reward": length, "alignment": BestOfN(num_particles=2)}
    assert pipe(PROMPTS, num_images_per_prompt=2, **call).rewards.tolist() == [12, 12, 14, 14]
    assert pipe(PROMPTS, reward_prompt=["abc", "abcd"], **call).rewards.tolist() == [3, 4]


def test_zero_reward_scale_makes_guidance_plain(pipe: DiamondMapPipeline) -> None:
    call = {**CALL, "output_type": "pt", "reward": brightness}
    plain = pipe(PROMPTS, generator=generators(), alignment="none", **call).images
    guided = pipe(
        PROMPTS, generator=generators(), alignment=Guidance(transition=ODETransition()), reward_scale=0.0, **call
    ).images
    assert torch.equal(plain, guided)


def test_callback_reads_and_replaces_latents_and_interrupts(pipe: DiamondMapPipeline) -> None:
    seen: list[tuple[int, torch.Size]] = []

    def watch(pipeline: DiamondMapPipeline, step: int, timestep: torch.Tensor, tensors: dict) -> dict:
        seen.append((step, tensors["latents"].shape))
        return {"latents": torch.zeros_like(tensors["latents"])}

    alignment = SMC(num_particles=2)
    out = pipe(
        PROMPTS,
        reward=brightness,
        alignment=alignment,
        callback_on_step_end=watch,
        output_type="latent",
        **CALL,
    )
    assert seen == [(i, torch.Size([4, 4, 16])) for i in range(3)]
    assert out.images.abs().max() == 0

    def stop(pipeline: DiamondMapPipeline, step: int, timestep: torch.Tensor, tensors: dict) -> dict:
        pipeline._interrupt = True
        return tensors

    assert len(pipe(PROMPTS, callback_on_step_end=stop, **CALL).trace.steps) == 1


def save_and_draw(folder: Path) -> torch.Tensor:
    pipe = DiamondMapPipeline(build_tiny_flux(False), {**CALL, "num_inference_steps": 2, "negative_prompt": ""})
    pipe.save_pretrained(folder)
    return pipe("a red circle", generator=torch.Generator().manual_seed(0), output_type="pt").images


def test_saved_model_is_stock_and_keeps_its_defaults(tmp_path: Path) -> None:
    images = save_and_draw(tmp_path)
    stock = FluxPipeline.from_pretrained(tmp_path)
    assert type(stock) is FluxPipeline
    pipe = DiamondMapPipeline.from_pretrained(tmp_path)
    out = pipe("a red circle", generator=torch.Generator().manual_seed(0), output_type="pt")
    assert len(out.trace.steps) == 2
    torch.testing.assert_close(out.images, images, atol=1e-5, rtol=0)


@pytest.mark.slow
def test_saved_model_is_the_same_in_a_fresh_process(tmp_path: Path) -> None:
    images = save_and_draw(tmp_path / "model")
    code = (
        "import sys, torch; from diamond_diffusers import DiamondMapPipeline;"
        "pipe = DiamondMapPipeline.from_pretrained(sys.argv[1]);"
        "out = pipe('a red circle', generator=torch.Generator().manual_seed(0), output_type='pt');"
        "assert len(out.trace.steps) == 2; torch.save(out.images, sys.argv[2])"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "model", tmp_path / "images.pt"], check=True)
    torch.testing.assert_close(torch.load(tmp_path / "images.pt", weights_only=True), images, atol=1e-5, rtol=0)


def test_attributes_are_the_stock_pipelines(pipe: DiamondMapPipeline) -> None:
    stock = pipe.pipeline
    assert pipe.components.keys() == stock.components.keys()
    scheduler = type(stock.scheduler).from_config(stock.scheduler.config)
    pipe.scheduler = scheduler
    assert stock.scheduler is scheduler
    assert pipe.transformer is stock.transformer
    assert pipe.to("cpu") is pipe
    assert {"scheduler", "enable_model_cpu_offload", "load_diamond_map", "transformer"} <= set(dir(pipe))
    with pytest.raises(AttributeError, match="no_such_attribute"):
        _ = pipe.no_such_attribute


def test_from_pipe_shares_and_leaves_the_pipeline_as_it_is() -> None:
    stock = build_tiny_flux(False).to(torch.bfloat16)
    pipe = DiamondMapPipeline.from_pipe(stock)
    assert pipe.pipeline is stock
    assert pipe.dtype == torch.bfloat16


def test_unknown_pipeline_class_is_refused_with_the_supported_ones() -> None:
    unet = UNet2DModel(
        sample_size=8,
        block_out_channels=(4,),
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        norm_num_groups=2,
        layers_per_block=1,
    )
    with pytest.raises(TypeError, match=r"DDPMPipeline.*FluxPipeline"):
        DiamondMapPipeline.from_pipe(DDPMPipeline(unet, DDPMScheduler()))


def test_unknown_class_on_disk_is_refused_before_its_weights_are_read(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text('{"_class_name": "NoSuchPipeline", "_diffusers_version": "0.42.1"}')
    with pytest.raises(TypeError, match="NoSuchPipeline"):
        DiamondMapPipeline.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"alignment": "smc"}, "reward is None"),
        ({"alignment": "smx", "reward": brightness}, "alignment is 'smx'; choose one of"),
        ({"final_selection": "worst"}, "final_selection is 'worst'"),
        ({"final_selection": "best"}, "no reward compares"),
        (
            {"callback_on_step_end_tensor_inputs": ["latents", "pooled_prompt_embeds"]},
            "choose from latents, prompt_embeds",
        ),
        ({"num_inference_steps": 0}, "num_inference_steps is 0"),
        ({"num_images_per_prompt": 0}, "num_images_per_prompt is 0"),
        ({"num_inference_steps": "3"}, "num_inference_steps is '3'"),
        ({"max_network_evaluations": 10.5, "reward": brightness}, r"max_network_evaluations is 10\.5"),
        ({"particle_batch_size": 2.5}, r"particle_batch_size is 2\.5"),
        ({"reward_scale": float("nan"), "reward": brightness}, "reward_scale is nan"),
        ({"reward_scale": "10", "reward": brightness}, "reward_scale is '10'"),
        ({"prompt": [], "reward": brightness}, "prompt is an empty list"),
        ({"prompt": "", "reward": brightness}, "but its text is ''"),
        ({"prompt": 5}, "prompt is 5; give a text"),
        ({"generator": 0}, "which is or holds 0"),
        ({"alignment": ["smc"], "reward": brightness}, r"alignment is \['smc'\]; give a method"),
        ({"latents": torch.zeros(1, 4, 8)}, r"latents is of shape \[1, 4, 8\].*shape \[4, 16\]"),
        ({"particle_batch_size": 0}, "particle_batch_size is 0"),
        ({"generator": [torch.Generator()] * 3}, "3 generators for 1 images"),
        ({"latents": torch.zeros(2, 4, 16)}, "latents holds 2 rows"),
        ({"latents": torch.zeros(1, 4, 16), "alignment": "best_of_n", "reward": brightness}, "deterministic path"),
        ({"reward_prompt": ["a", "b"], "reward": brightness}, "reward_prompt holds 2 texts for 1 prompts"),
        ({"reward": lambda images, prompts: images.mean()}, "shape"),
        ({"reward": lambda images, prompts: images.mean() / 0 * 0}, "finite"),
        ({"reward": lambda images, prompts: images.mean((1, 2, 3)) * float("nan")}, "finite"),
        ({"reward": lambda images, prompts: images.detach().mean((1, 2, 3)), "alignment": "guidance"}, "gradient"),
    ],
)
def test_bad_arguments_are_named_before_any_sampling(
    pipe: DiamondMapPipeline, arguments: dict, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_sampling(*args: object) -> None:
        raise AssertionError("the network was called")

    monkeypatch.setattr(pipe.family, "denoise", no_sampling)
    with pytest.raises((TypeError, ValueError), match=message):
        pipe(**{"prompt": "a red circle", **CALL, **arguments})


def test_a_models_own_alignment_gives_way_where_the_reward_has_no_derivative(pipe: DiamondMapPipeline) -> None:
    own = DiamondMapPipeline.from_pipe(pipe.pipeline, defaults={"alignment": "guidance"})
    out = own("a red circle", reward="jpeg_size", generator=generators(1), **CALL)
    assert not out.alignment.needs_reward_gradient and "a black box" in out.choice
    with pytest.raises(ValueError, match="no gradient"):
        own("a red circle", reward="jpeg_size", alignment="guidance", **CALL)


def test_unknown_keyword_is_named(pipe: DiamondMapPipeline) -> None:
    with pytest.raises(TypeError, match="guidence_scale"):
        pipe("a red circle", guidence_scale=3.0, **CALL)


def test_a_reward_sees_the_latents_and_the_level_that_it_names(pipe: DiamondMapPipeline) -> None:
    seen: list[tuple[torch.Size, float]] = []

    def quiet(images: torch.Tensor, prompts: list[str], latents: torch.Tensor, noise_to_signal: torch.Tensor):
        seen.append((latents.shape[1:], noise_to_signal.max().item()))
        return -latents.square().mean((1, 2))

    out = pipe(PROMPTS, reward=quiet, alignment=SMC(num_particles=2), particle_batch_size=3, **CALL)
    # SMC values no start.
    levels = [0.0, *(step.noise_to_signal for step in out.trace.steps[1:]), 0.0]
    assert {shape for shape, _ in seen} == {torch.Size([4, 16])}
    assert list(dict.fromkeys(level for _, level in seen)) == list(dict.fromkeys(levels))

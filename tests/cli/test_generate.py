import json
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from diamond_diffusers import (
    SMC,
    BestOfN,
    DiamondMapPipeline,
    DiamondPosterior,
    FlowMapPoint,
    Guidance,
    RandomSearch,
    Watch,
)
from diamond_diffusers.alignment.methods import METHODS
from diamond_diffusers.cli import generate as module
from diamond_diffusers.cli.loading import model_defaults, own_alignment
from diamond_diffusers.cli.records import LoadingOptions
from diamond_diffusers.core.cost import charge
from diamond_diffusers.core.memory_errors import want_of_memory
from diamond_diffusers.evaluation import side_by_side
from diamond_diffusers.evaluation.side_by_side import draw_side_by_side
from diamond_diffusers.families import FAMILIES
from diamond_diffusers.rewards import REWARDS, CallableReward, as_reward, available_rewards, staged

from ..conftest import redness, save_tiny_model
from .invoking import invoke, refusal, succeed


@pytest.fixture
def generate(tiny_folder, redness_reward, tmp_path):
    """Runs `generate` on the tiny model; returns the output and the record."""

    def run(*arguments, prompts=("three red circles",)):
        output = succeed(
            "generate", *prompts, "--model", tiny_folder, "--reward", redness_reward, "--output", tmp_path, *arguments
        )
        return output, json.loads((tmp_path / "record.json").read_text())

    return run


def test_version_and_help():
    assert re.fullmatch(r"diamond-diffusers \d+\.\d+\.\d+\S*\n", succeed("--version"))
    for command in ("generate", "rewards", "models", "benchmark", "redraw"):
        assert command in succeed("--help")
    assert all(name in succeed("generate", "--help") for name in METHODS.names())


def test_rewards_and_models_are_listed():
    listed = succeed("rewards")
    assert all(name in listed for name in available_rewards())
    assert "FluxPipeline" in succeed("models")


def test_a_family_that_does_not_import_is_listed_too(monkeypatch):
    def get(name):
        if name == "FluxPipeline":
            raise ImportError("family 'FluxPipeline' is broken")
        return get_family(name)

    get_family = FAMILIES.get
    monkeypatch.setattr(FAMILIES, "get", get)
    listed = succeed("models")
    assert "not usable here: family 'FluxPipeline' is broken" in listed and "SanaPipeline" in listed


def test_the_progress_bar_is_as_it_was_afterwards(tiny_pipe):
    tiny_pipe.set_progress_bar_config(disable=True, desc="mine")
    draw_side_by_side(
        tiny_pipe, ["a star"], BestOfN(num_particles=2), as_reward(redness), arguments={"num_inference_steps": 1}
    )
    assert tiny_pipe.pipeline._progress_bar_config == {"disable": True, "desc": "mine"}


def test_a_record_says_how_often_each_stage_was_asked(tiny_pipe):
    reward, arguments = staged(["brightness", ("symmetry", 1)]), {"num_inference_steps": 1}
    drawn = draw_side_by_side(tiny_pipe, ["a star"], BestOfN(num_particles=2), reward, arguments=arguments)
    calls = side_by_side.record(drawn, {})["stage_calls"]
    assert calls == {"aligned": {"brightness": 2, "symmetry": 1}, "plain": {"brightness": 1, "symmetry": 1}}


def test_what_a_watch_has_cost_is_printed(tiny_pipe, capsys):
    def paid(images, prompts):
        charge(1, 0.5)
        return images.mean((1, 2, 3))

    watch = Watch(CallableReward(paid, differentiable=False))
    method, arguments = RandomSearch(num_candidates=2, round_size=1), {"num_inference_steps": 1}
    drawn = draw_side_by_side(
        tiny_pipe, ["a star"], method, as_reward("brightness"), arguments=arguments, with_plain=False, watch=watch
    )
    module._print_rewards(drawn, 1, False)
    assert "3 scores of 'paid' by 3 requests for 1.5 in 2 checks" in capsys.readouterr().out


def test_generate_writes_images_sheet_trace_and_record(generate, tmp_path):
    prompts = ("three red circles", "a star")
    output, record = generate("--num-images", "2", "--seed", "5", "--num-particles", "3", prompts=prompts)
    files = {path.name for path in tmp_path.iterdir()}
    images = {f"{run}_{i:03d}.png" for run in ("plain", "aligned") for i in range(4)}
    assert files == images | {"contact_sheet.png", "trace.png", "record.json"}
    assert [(image["prompt"], image["seed"]) for image in record["images"]] == [
        (prompts[0], 5),
        (prompts[0], 6),
        (prompts[1], 7),
        (prompts[1], 8),
    ]
    assert record["settings"]["alignment"]["name"] == "smc"
    assert record["settings"]["alignment"]["num_particles"] == 3
    assert record["settings"]["call"]["true_cfg_scale"] == 2.0
    # Three steps of four images, twice each under classifier-free guidance.
    assert record["cost"]["plain"]["network_evaluations"] == 24
    assert record["cost"]["aligned"]["network_evaluations"] == 72
    assert len(record["trace"]["aligned"]) == 3
    assert record["images"][0]["aligned"]["log_evidence"] is not None
    assert set(record["versions"]) == {"python", "diamond-diffusers", "diffusers", "torch", "transformers"}
    for run in ("plain", "aligned"):
        assert f"{record['images'][0][run]['reward']:.3f}" in output
    assert "72 network evaluations" in output


def test_what_violates_a_constraint_is_marked(generate, caplog):
    output, record = generate("--reward", "redness, brightness < 0.001", "--num-particles", "2")
    (image,) = record["images"]
    assert image["aligned"]["constraints_met"] is image["plain"]["constraints_met"] is False
    assert record["settings"]["reward"] == "redness, brightness < 0.001"
    assert output.count(", violates") == 2 and "no sample was found that holds every constraint" in caplog.text


def test_every_image_has_a_seed_of_its_own(generate, tmp_path):
    generate("--num-images", "2", "--seed", "5")
    second = np.asarray(Image.open(tmp_path / "aligned_001.png")).astype(int)
    generate("--seed", "6")
    alone = np.asarray(Image.open(tmp_path / "aligned_000.png")).astype(int)
    assert abs(second - alone).max() <= 1


def test_best_of_n_never_falls_below_plain(generate):
    _, record = generate("--alignment", "best_of_n", "--num-images", "3")
    for image in record["images"]:
        assert image["aligned"]["reward"] >= image["plain"]["reward"] - 1e-5


@pytest.mark.parametrize("name", ["best_of_n", "beam_search", "zero_order_search"])
def test_a_budget_sets_the_count_of_the_method(generate, name):
    """Of two images, in three steps under classifier-free guidance: at least two thirds of it are spent."""
    _, record = generate("--alignment", name, "--num-images", "2", "--max-network-evaluations", "61")
    assert 2 * 40 < record["cost"]["aligned"]["network_evaluations"] <= 2 * 61
    assert record["settings"]["max_network_evaluations"] == 61


def test_the_record_holds_the_method_that_ran(generate):
    """Three particles in three steps, twice each under classifier-free guidance, are all that 23 pay for."""
    _, record = generate("--alignment", "best_of_n", "--max-network-evaluations", "23")
    ran = record["settings"]["alignment"]
    assert (ran["num_particles"], ran["transition"]["name"]) == (3, "ode")


@pytest.mark.parametrize(
    ("alignment", "budget"),
    [(BestOfN(), 5), (Guidance(DiamondPosterior()), None), (SMC(posterior=FlowMapPoint(1)), 99)],
)
def test_an_aligned_call_is_refused_before_anything_is_drawn(tiny_pipe, monkeypatch, alignment, budget):
    def predict(*arguments):
        raise AssertionError("a network call")

    monkeypatch.setattr(tiny_pipe.family, "predict", predict)
    with pytest.raises(ValueError, match=r"is 5, but|needs a Diamond Map|is not a few-step flow map"):
        draw_side_by_side(tiny_pipe, ["a star"], alignment, as_reward(redness), max_network_evaluations=budget)


def test_without_alignment_only_plain_images_are_drawn(generate, tmp_path):
    _, record = generate("--alignment", "none")
    assert {path.name for path in tmp_path.iterdir()} == {"plain_000.png", "contact_sheet.png", "record.json"}
    assert set(record["cost"]) == {"plain"}


def test_a_model_without_a_reward_is_drawn_from_plainly(tiny_folder, tmp_path):
    output = succeed("generate", "a star", "--model", tiny_folder, "--output", tmp_path)
    assert "aligned" not in output
    assert json.loads((tmp_path / "record.json").read_text())["images"][0]["plain"]["reward"] is None


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--alignment", "magic"), "alignment is 'magic'; choose one of beam_search"),
        (("--alignment", "none", "--num-particles", 2), "--num-particles is 2, but alignment 'none' does not use it"),
        (("--alignment", "none", "--max-network-evaluations", 9), "--max-network-evaluations is 9, but alignment"),
        (("--alignment", "none", "--reward-scale", 2), "--reward-scale is 2.0, but alignment 'none' does not use it"),
        (
            ("--alignment", "none", "--reward-scale", "auto"),
            "--reward-scale is auto, but alignment 'none' does not use",
        ),
        (("--reward-scale", "strong"), "--reward-scale is 'strong'; give a number or auto"),
        (("--reward-scale", "inf"), "--reward-scale is inf; give a finite number"),
        (("--alignment", "best_of_n", "--posterior", "glass"), "--posterior is glass, but alignment 'best_of_n' does"),
        (("--alignment", "best_of_n", "--guidance-strength", 2), "--guidance-strength is 2.0, but alignment"),
        (("--num-particles", 4, "--max-network-evaluations", 9), "--num-particles is 4, which --max-network-eval"),
        (("--alignment", "posterior_smc", "--posterior", "weighted"), "whose samples differ in weight"),
        (("--num-lookaheads", 2), "add --posterior glass"),
        (("--posterior", "magic"), "posterior is 'magic'; choose one of denoiser, diamond, flow_map, glass"),
        (("--posterior", "diamond", "--num-inner-steps", 2), "--num-inner-steps is 2, but posterior 'diamond'"),
        (("--alignment", "guidance", "--gradient", "magic"), "gradient is 'magic'; choose one of pathwise"),
        (("--reward", "magic"), "reward is 'magic'; choose one of"),
        (("--reward", "redness +"), "The reward expression 'redness +' has the end where"),
        (("--device", "magic"), "--device is 'magic', which is not usable here"),
        (("--device", "meta"), "--device is 'meta', which is not usable here"),
        (("--dtype", "int8"), "--dtype is 'int8'; choose auto, float32"),
        (
            ("--negative-prompt", "caf\udce9"),
            r"--negative-prompt is 'caf\udce9', which is not in UTF-8; set the terminal",
        ),
        (("--model", "/nowhere"), "--model is '/nowhere', which cannot be loaded"),
    ],
)
def test_bad_input_gets_one_sentence(tiny_folder, redness_reward, tmp_path, arguments, sentence):
    folder = tmp_path / "out"
    defaults = ("--model", tiny_folder, "--reward", redness_reward, "--output", folder)
    result = invoke("generate", "a star", *defaults, *arguments)
    assert result.exit_code == 2
    (error,) = [line for line in result.output.splitlines() if line.startswith("Error: ")]
    assert sentence in error
    assert "Traceback" not in result.output
    assert not folder.exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("--num-particles", 10**12),
        ("--num-inference-steps", 10**12),
        ("--height", 10**9),
        ("--seed", 10**30),
        ("--num-images", 10**12),
        ("--max-network-evaluations", 10**12),
    ],
)
def test_numbers_that_no_machine_can_draw_are_refused(tiny_folder, tmp_path, arguments):
    result = invoke("generate", "a star", "--model", tiny_folder, "--output", tmp_path / "out", *arguments)
    assert result.exit_code == 2 and not (tmp_path / "out").exists()
    assert f"Invalid value for '{arguments[0]}'" in result.output


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("model_index.json", "{}", "does not name the class of a pipeline"),
        ("model_index.json", "[]", "does not name the class of a pipeline"),
        ("model_index.json", "[" * 100_000, "model_index.json of"),
        ("transformer/config.json", "{", "is not a valid JSON file"),
        ("scheduler/scheduler_config.json", '{"num_train_timesteps": "x"}', "'str' object"),
        ("transformer/diffusion_pytorch_model.safetensors", "x", "Unable to load weights"),
    ],
)
def test_a_damaged_model_is_named(tiny_folder, tmp_path, file, content, reason):
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    (folder / file).write_text(content)
    result = invoke("generate", "a star", "--model", folder, "--output", tmp_path / "out")
    assert result.exit_code == 2
    (error,) = [line for line in result.output.splitlines() if line.startswith("Error: ")]
    assert f"--model is '{folder}', which cannot be loaded" in error and reason in error


def test_a_method_without_a_reward_is_refused(tiny_folder, tmp_path):
    result = invoke("generate", "a star", "--model", tiny_folder, "--alignment", "smc", "--output", tmp_path / "out")
    assert result.exit_code == 2
    assert "--reward is not given" in result.output
    assert not (tmp_path / "out").exists()


def test_a_size_below_a_token_is_refused(tiny_folder, tmp_path):
    result = invoke("generate", "a star", "--model", tiny_folder, "--height", 3, "--output", tmp_path)
    assert result.exit_code == 2
    assert "height is 3, which is less than a token; give at least" in result.output


CUDA_IS_FULL = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 1.00 GiB."


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (
            torch.OutOfMemoryError(CUDA_IS_FULL),
            "CUDA out of memory: Tried to allocate 2.00 GiB; lower --particle-batch",
        ),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 12"),
            "memory of this machine is too",
        ),
        (MemoryError(), "memory of this machine is too small; lower --particle-batch-size"),
        (RuntimeError(CUDA_IS_FULL), None),
    ],
    ids=["GPU", "CPU", "Python", "other"],
)
def test_a_want_of_memory_is_told(tiny_folder, tmp_path, monkeypatch, error, sentence):
    def draw(*arguments, **options):
        raise error

    monkeypatch.setattr(side_by_side, "draw_side_by_side", draw)
    result = invoke("generate", "a star", "--model", tiny_folder, "--output", tmp_path)
    assert result.exit_code == (1 if sentence is None else 2)
    # Of the options that this command has.
    assert "--batch-size" not in result.output
    assert ("Error" in result.output) == (sentence is not None) and (sentence or "") in result.output


def test_memory_that_no_machine_has_is_told():
    for shape in ((2**40,), (2**40, 2**40)):
        with pytest.raises(RuntimeError) as raised:
            torch.empty(shape)
        assert want_of_memory(raised.value) == "the memory of this machine is too small"


def test_files_of_the_run_before_are_removed_and_no_others(generate, tmp_path):
    (tmp_path / "plain_000.jpg").write_text("")
    (tmp_path / "trace.png").write_text("")
    generate("--alignment", "none", "--num-images", "2")
    assert not (tmp_path / "aligned_000.png").exists()
    assert (tmp_path / "trace.png").exists()
    generate()
    generate("--alignment", "none")
    files = {path.name for path in tmp_path.iterdir()}
    assert files == {"plain_000.jpg", "plain_000.png", "contact_sheet.png", "record.json"}


def test_an_empty_prompt_is_refused(tiny_folder, redness_reward, tmp_path):
    command = ("generate", "", "--model", tiny_folder, "--output", tmp_path / "out")
    result = invoke(*command, "--reward", redness_reward)
    assert result.exit_code == 2
    assert "PROMPT is empty" in result.output
    assert not (tmp_path / "out").exists()
    succeed(*command)


def test_guidance_by_a_reward_without_gradient_is_refused(tiny_folder, tmp_path, monkeypatch):
    def rounded(images, prompts):
        return images.detach().mean((1, 2, 3))

    monkeypatch.setitem(REWARDS._entries, "rounded", rounded)
    command = ("generate", "a star", "--model", tiny_folder, "--reward", "rounded", "--output", tmp_path / "out")
    result = invoke(*command, "--alignment", "guidance")
    assert result.exit_code == 2
    assert "gradient is 'isotropic', but reward 'rounded' has no gradient" in result.output
    assert not (tmp_path / "out").exists()


def test_an_output_that_cannot_be_written_is_refused(tiny_folder, redness_reward, tmp_path):
    (tmp_path / "file").write_text("")
    target = tmp_path / "file" / "out"
    result = invoke("generate", "a star", "--model", tiny_folder, "--reward", redness_reward, "--output", target)
    assert result.exit_code == 2
    assert "where nothing can be written" in result.output


def test_the_models_own_alignment_and_reward_are_defaults(redness_reward, tmp_path):
    with torch.random.fork_rng():
        model = save_tiny_model(tmp_path / "model", alignment="best_of_n", reward=redness_reward)
    succeed("generate", "a star", "--model", model, "--output", tmp_path / "out")
    settings = json.loads((tmp_path / "out" / "record.json").read_text())["settings"]
    assert (settings["alignment"]["name"], settings["reward"]) == ("best_of_n", "redness")


def test_a_model_may_have_a_method_with_options(redness_reward, tmp_path):
    method = {"name": "fk_steering", "num_particles": 2}
    with torch.random.fork_rng():
        model = save_tiny_model(tmp_path / "model", alignment=method, reward=redness_reward)
    succeed("generate", "a star", "--model", model, "--output", tmp_path / "out", "-o", "resampling=ssp")
    ran = json.loads((tmp_path / "out" / "record.json").read_text())["settings"]["alignment"]
    assert (ran["name"], ran["num_particles"], ran["resampling"]) == ("smc", 2, "ssp")
    assert DiamondMapPipeline.from_pretrained(model).defaults["alignment"] == method


def test_every_option_can_be_given(generate, tmp_path):
    path = tmp_path / "method.yaml"
    path.write_text("name: smc\nnum_particles: 2\nresampling: ssp\n")
    _, record = generate("--alignment", path, "-o", "posterior=glass", "--option", "posterior.num_samples=3")
    ran = record["settings"]["alignment"]
    assert (ran["num_particles"], ran["resampling"]) == (2, "ssp")
    assert (ran["posterior"]["name"], ran["posterior"]["num_samples"]) == ("glass", 3)
    # What was recorded is a file of a method too.
    path.write_text(json.dumps(ran))
    assert generate("--alignment", path)[1]["settings"]["alignment"] == ran


def test_a_budget_does_not_replace_an_option(tiny_folder, redness_reward, tmp_path):
    command = ("generate", "a star", "--model", tiny_folder, "--reward", redness_reward, "--output", tmp_path / "out")
    error = refusal(*command, "-o", "num_particles=4", "--max-network-evaluations", 9)
    assert "-o num_particles is 4, which --max-network-evaluations 9 would replace; drop one of them" in error


def test_options_are_checked_before_the_model_is_loaded(tiny_folder, redness_reward, tmp_path, monkeypatch):
    def load(*arguments):
        raise AssertionError("the model is loaded")

    monkeypatch.setattr(module, "load_model", load)
    command = ("generate", "a star", "--model", tiny_folder, "--reward", redness_reward, "--output", tmp_path / "out")
    unknown = refusal(*command, "-o", "num_particle=4")
    assert "no option 'num_particle', did you mean 'num_particles'; choose one of num_particles, posterior" in unknown
    wrong = refusal(*command, "-o", "posterior=glass", "-o", "posterior.num_samples=many")
    assert "posterior.num_samples is 'many'; give a whole number" in wrong


def test_the_embedded_model_draws_with_its_own_reward(tmp_path):
    output = succeed("generate", "three red circles", "--num-inference-steps", "2", "--output", tmp_path)
    assert "three red circles" in output
    record = json.loads((tmp_path / "record.json").read_text())
    assert (record["settings"]["model"], record["settings"]["reward"]) == ("embedded", "miniature")
    with Image.open(tmp_path / "aligned_000.png") as image:
        assert image.size == (64, 64)


def test_a_reward_without_gradient_has_a_method_that_needs_none():
    """As in Python, where the model's own method is one that follows gradients."""
    defaults = {"alignment": "diamond_guided_resampling"}
    assert own_alignment(defaults, as_reward("brightness")) == defaults["alignment"]
    assert own_alignment(defaults, as_reward("jpeg_size")) == "auto"
    assert own_alignment(defaults, None) == "none"
    # The embedded model leaves it to the table.
    assert own_alignment(model_defaults(None, LoadingOptions()), as_reward("brightness")) == "auto"


def test_the_method_is_chosen_where_none_is_named(tiny_folder, redness_reward, tmp_path):
    command = ("generate", "a star", "--model", tiny_folder, "--reward", redness_reward, "--no-plain")
    output = succeed(*command, "--output", tmp_path / "chosen")
    settings = json.loads((tmp_path / "chosen" / "record.json").read_text())["settings"]
    assert settings["alignment"]["name"] == "guidance" and settings["choice"] in " ".join(output.split())
    refused = refusal(*command, "--output", tmp_path / "out", "--alignment", "auto", "--num-particles", 2)
    assert "--num-particles is 2, but --alignment auto chooses the method with its options" in refused


@pytest.mark.slow
def test_the_scale_of_the_reward_is_told_and_recorded(generate):
    output, record = generate("--num-particles", 2, "--reward-scale", "auto")
    assert record["settings"]["reward_scale"] == "auto"
    (image,) = record["images"]
    assert image["aligned"]["reward_scale"] > 0 and image["plain"]["reward_scale"] is None
    assert f"aligned: reward scale {image['aligned']['reward_scale']:.4g}" in output
    assert record["cost"]["aligned"]["reward_calls"] > 32


def test_memory_can_be_planned(generate):
    auto = ("--particle-batch-size", "auto", "--gradient-checkpointing", "auto")
    printed, record = generate("--num-particles", 2, *auto)
    assert record["settings"]["particle_batch_size"] == record["settings"]["gradient_checkpointing"] == "auto"
    plan = record["plan"]["aligned"]
    assert plan["particle_batch_size"] is None and 0 < plan["num_bytes"] < plan["free_bytes"]
    assert "aligned, planned for memory: all rows at once, nothing evaluated twice" in printed
    _, record = generate("--num-particles", 2, "--particle-batch-size", 1, "--gradient-checkpointing", "true")
    assert record["settings"]["particle_batch_size"] == 1 and record["settings"]["gradient_checkpointing"] is True
    assert record["plan"] == {"plain": None, "aligned": None}


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--particle-batch-size", "some", "--particle-batch-size is 'some'; give a whole number or auto or none"),
        ("--particle-batch-size", 0, "--particle-batch-size is 0; give a whole number of at least 1"),
        ("--gradient-checkpointing", 2, "--gradient-checkpointing is '2'; give true or false or auto or none"),
    ],
)
def test_other_uses_of_memory_are_refused(option, value, message):
    result = invoke("generate", "a star", option, value)
    assert result.exit_code == 2
    assert message in result.output


def test_terms_are_calibrated_and_the_record_tells_how(generate, tmp_path):
    printed, record = generate("--alignment", "best_of_n", "--calibrate", "2")
    settings, reward = record["settings"], record["images"][0]["aligned"]["reward"]
    assert settings["reward"] == "standardised(redness)" and "calibration: redness is " in printed
    (term,) = settings["calibration"]["terms"].values()
    raw = record["images"][0]["aligned"]["reward_terms"]["redness"]
    assert reward == pytest.approx((raw - term["mean"]) / term["standard_deviation"], abs=1e-3)
    assert record["cost"]["calibration"]["network_evaluations"] == 2 * 3 * 2
    # Again, as the record says, without samples; also into the same folder.
    option, file = settings["calibration"]["again"].split(" ")
    _, again = generate("--alignment", "best_of_n", option, file)
    assert again["images"] == record["images"] and again["settings"] == settings
    assert set(again["cost"]) == {"plain", "aligned"}
    both = refusal("generate", "a star", "--reward", "redness", "--calibrate", 2, option, file)
    assert "--calibrate is 2, but --calibration" in both
    other = refusal("generate", "a star", "--reward", "brightness", option, file)
    assert "statistics are of redness, but the terms of the reward are brightness" in other


@pytest.mark.slow
def test_a_budget_of_scores_is_recorded(generate):
    _, record = generate("--alignment", "best_of_n", "--max-reward-calls", "3")
    assert record["settings"]["max_reward_calls"] == 3
    # With two by which the reward is tried, and found to be differentiable.
    assert record["cost"]["aligned"]["reward_calls"] == 3 + 2


@pytest.mark.slow
def test_a_budget_is_shared(generate):
    options = ("-o", "num_candidates=2", "-o", "round_size=1", "--share-budget-verifier", "brightness < 2")
    printed, record = generate("--alignment", "random_search", *options, "--share-budget-at", 100)
    shared = record["shared"]["aligned"]
    assert not any(shared["has_passed"]) and set(shared["num_rounds"]) == {2}
    assert record["settings"]["shared_budget"] == {"threshold": 100.0, "verifier": shared["verifier"]}
    assert f"shared: 0 of {len(shared['has_passed'])} images pass" in printed
    refused = refusal("generate", "a star", "--alignment", "smc", "--reward", "redness", "--share-budget-at", 0.5)
    assert "--share-budget-at is 0.5, but alignment SMC does not draw an image in rounds" in refused


@pytest.mark.slow
def test_a_held_out_reward_is_watched(generate):
    options = ("-o", "num_candidates=3", "-o", "round_size=1", "--watch", "symmetry", "--watch-patience", 1)
    printed, record = generate("--alignment", "random_search", *options)
    watched = record["watched"]["aligned"]
    assert watched["reward"] == "symmetry" and "watched: taken from round" in printed
    assert watched["chosen"] == [max(range(len(watched["held_out"])), key=lambda check: watched["held_out"][check])]
    assert record["settings"]["watch"] == {"reward": "symmetry", "patience": 1, "every": 1}
    alone = refusal("generate", "a star", "--reward", "redness", "--watch-every", 2)
    assert "--watch-every is 2, but nothing is watched; name a reward with --watch" in alone
    refused = refusal("generate", "a star", "--alignment", "smc", "--reward", "redness", "--watch", "symmetry")
    assert "watch is given, but alignment SMC has half-noisy particles" in refused

"""MPS, HPSv3, CycleReward and EvalMuse against their official code; see fixtures/rewards/README.md."""

import json
import logging
import re
import runpy
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from diamond_diffusers.rewards import CycleReward, EvalMuseReward, HPSv3Reward, MPSReward
from diamond_diffusers.rewards.availability import availability
from diamond_diffusers.rewards.evalmuse.reward import MAX_WORDS, _words

from ..products import one_of_each_kind
from ..rounding import assert_same_from_a_copy
from .golden import FIXTURES, picture, shape_counts
from .judge_networks import CLIP, CLIP_LAYERS, ENDING, EVA, NETWORKS, QFORMER, QUESTION, meta, small_weights, write_qwen
from .test_imagereward import TINY_TEXT, TINY_VISION

FOLDER = FIXTURES / "published_judges"
NAMES = ("mps", "hpsv3", "cyclereward", "evalmuse")
GRADIENT_PROMPT = 1
"""The official gradients are those of this prompt's score of the image `exact224`."""


def golden(name):
    return json.loads((FOLDER / f"{name}.json").read_text())


@pytest.fixture(scope="module")
def weights():
    """The weights of each small network in its published layout, by name."""
    return {name: small_weights(name) for name in NAMES}


@pytest.fixture(scope="module")
def make(weights, tmp_path_factory):
    """Makes the small judge of a name with options."""
    folder = tmp_path_factory.mktemp("judges")
    for name in NAMES:
        save_file(weights[name], folder / f"{name}.safetensors")
    bert = FIXTURES / "tokenizers" / "bert-tiny"
    classes = {
        "mps": partial(MPSReward, tokenizer=FIXTURES / "tokenizers" / "clip", clip_config=CLIP, sizes=CLIP_LAYERS),
        "hpsv3": partial(HPSv3Reward, base=write_qwen(folder), instruction=QUESTION + ENDING),
        "cyclereward": partial(CycleReward, tokenizer=bert, vision_config=TINY_VISION, text_config=TINY_TEXT),
        "evalmuse": partial(EvalMuseReward, tokenizer=bert, vision_config=EVA, qformer_config=QFORMER),
    }
    return lambda name, checkpoint=None, **options: classes[name](
        checkpoint or folder / f"{name}.safetensors", **options
    )


@pytest.fixture(scope="module")
def judges(make):
    return {name: make(name) for name in NAMES}


def official_scores(name):
    scores = torch.tensor(golden(name)["scores"])
    return scores[..., 0] if name == "hpsv3" else scores


class TestParity:
    @pytest.mark.parametrize("name", NAMES)
    def test_scores_from_images_of_any_size(self, judges, name):
        values, expected = golden(name), official_scores(name)
        # One is resized not at all, one to more pixels, and the last one to fewer by some judges.
        for row, image in enumerate(("exact224", "odd301x227", values["images"][-1]), start=1):
            column = values["images"].index(image)
            with torch.no_grad():
                score = judges[name](picture(image), [values["prompts"][row]])
            torch.testing.assert_close(score, expected[row, column, None], atol=1e-5, rtol=0)

    @pytest.mark.slow
    @pytest.mark.parametrize("name", NAMES)
    def test_all_scores(self, judges, name):
        values = golden(name)
        with torch.no_grad():
            columns = [
                torch.cat([judges[name](picture(image), [prompt]) for prompt in values["prompts"]])
                for image in values["images"]
            ]
        torch.testing.assert_close(torch.stack(columns, 1), official_scores(name), atol=1e-5, rtol=0)

    @pytest.mark.parametrize("name", NAMES)
    def test_prompts_of_one_batch_do_not_change_each_other(self, judges, name):
        prompts = golden(name)["prompts"][:3]
        assert len(set(map(len, prompts))) == 3
        with torch.no_grad():
            scores = judges[name](picture("exact224").expand(3, -1, -1, -1), prompts)
        torch.testing.assert_close(scores, official_scores(name)[:3, 0], atol=1e-5, rtol=0)

    @pytest.mark.parametrize("name", NAMES)
    def test_gradients(self, judges, name):
        """By the normalised pixels, at every 16th place, of an image that is not resized."""
        images = picture("exact224").requires_grad_()
        judge, prompt = judges[name], golden(name)["prompts"][GRADIENT_PROMPT]
        expected = load_file(FOLDER / "gradients.safetensors")[name]
        if name == "hpsv3":
            inputs = judge._inputs(images, [prompt])
            score = judge.model(inputs, judge.reward_token_id)[:, 0]
            (gradient,) = torch.autograd.grad(score.sum(), inputs["pixel_values"])
            found = gradient[::64, ::8]
        else:
            pixels = []
            preprocess = judge.preprocessing
            judge.preprocessing = lambda images: pixels.append(preprocess(images)) or pixels[0]
            try:
                score = judge(images, [prompt])
            finally:
                judge.preprocessing = preprocess
            (gradient,) = torch.autograd.grad(score.sum(), pixels[0])
            found = gradient[0, :, 3::16, 5::16]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)

    @pytest.mark.parametrize("name", NAMES)
    def test_published_network_has_exactly_the_published_tensors(self, name):
        module, _, published = NETWORKS[name]
        found = shape_counts(module.published_shapes(meta(published)))
        expected = golden(name)["tensors"]
        # The official MPS was written for a transformers that saved them; that of the fixture does not.
        optional = {key for key in found if name == "mps" and key.endswith("position_ids")}
        assert {key: found[key] for key in found if key not in optional} == expected

    def test_the_page_counts_the_published_parameters(self):
        page = (Path(__file__).parents[2] / "docs" / "judges" / "published_judges.md").read_text(encoding="utf-8")
        counts = dict(re.findall(r"^\| `(\w+)` \| (\d+\.\d+) \| ", page, re.MULTILINE))
        found = {name: sum(w.numel() for w in meta(NETWORKS[name][2]).parameters()) for name in NAMES}
        assert counts == {name: f"{count / 1e9:.2f}" for name, count in found.items()}

    def test_hpsv3_reads_the_same_tokens_and_pixels(self, judges):
        values = golden("hpsv3")
        inputs = judges["hpsv3"]._inputs(picture("exact224"), [values["prompts"][GRADIENT_PROMPT]])
        assert inputs["input_ids"][0].tolist() == values["input_ids"]

    def test_hpsv3_gives_the_spread_too(self, judges, monkeypatch):
        values = golden("hpsv3")
        monkeypatch.setattr(judges["hpsv3"], "output", "spread")
        score = judges["hpsv3"](picture("odd301x227"), [values["prompts"][2]])
        torch.testing.assert_close(score, torch.tensor([values["scores"][2][1][1]]), atol=1e-5, rtol=0)

    def test_evalmuse_reads_the_same_words(self):
        values = golden("evalmuse")
        assert [" ".join(_words(prompt)[:MAX_WORDS]) for prompt in values["prompts"]] == values["captions"]


class TestCheckpoint:
    @pytest.mark.parametrize("name", one_of_each_kind(NAMES, ("mps", "cyclereward")))
    def test_a_missing_and_an_unexpected_tensor_are_named(self, make, weights, tmp_path, name):
        *others, last = weights[name]
        save_file({key: weights[name][key] for key in others}, tmp_path / "lacks.safetensors")
        with pytest.raises(ValueError, match=rf"'{name}' got checkpoint=.* lacks tensor '{last}'; give one in its"):
            make(name, tmp_path / "lacks.safetensors")
        save_file(weights[name] | {"adapter": torch.ones(2)}, tmp_path / "more.safetensors")
        with pytest.raises(ValueError, match=rf"'{name}' got checkpoint=.* has the unexpected tensor 'adapter'"):
            make(name, tmp_path / "more.safetensors")

    @pytest.mark.parametrize("name", NAMES)
    def test_unknown_options_are_refused(self, make, name):
        with pytest.raises(TypeError, match=rf"'{name}' got the unknown option trust_remote_code=True"):
            make(name, trust_remote_code=True)

    @pytest.mark.parametrize(("name", "file"), [("hpsv3", "HPSv3.pth"), ("evalmuse", "fga_blip2.pth")])
    def test_reads_weights_beside_the_state_of_their_training(self, make, judges, weights, tmp_path, name, file):
        torch.save({"model": weights[name], "epoch": 3}, tmp_path / file)
        images, prompts = picture("small96"), ["a cat"]
        assert_same_from_a_copy(make(name, tmp_path / file)(images, prompts), judges[name](images, prompts))

    def test_mps_takes_the_names_of_its_later_release_and_half_weights(self, make, judges, weights, tmp_path):
        later = {f"mps.{key}": weight.half() for key, weight in weights["mps"].items()}
        save_file(later, tmp_path / "model.safetensors")
        images, prompts = picture("small96"), ["a cat"]
        score = make("mps", tmp_path)(images, prompts)
        torch.testing.assert_close(score, judges["mps"](images, prompts), atol=0.05, rtol=0)

    def test_mps_as_a_pickled_program_is_refused(self, make, tmp_path):
        torch.save(torch.nn.Linear(2, 2), tmp_path / "MPS_overall.pt")
        with pytest.raises(ValueError, match="cannot be read as a file of tensors"):
            make("mps", tmp_path)

    def test_cyclereward_is_downloaded_once_from_its_release(self, judges, weights, tmp_path, monkeypatch):
        asked = []

        def download(url, path, hash_prefix, progress):
            asked.append(url)
            torch.save(weights["cyclereward"], path)

        monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
        monkeypatch.setattr(torch.hub, "download_url_to_file", download)
        assert "CycleReward-Combo.pth" in CycleReward.missing_downloads()
        options = {
            "tokenizer": FIXTURES / "tokenizers" / "bert-tiny",
            "vision_config": TINY_VISION,
            "text_config": TINY_TEXT,
        }
        rewards = [CycleReward(**options), CycleReward(**options)]
        assert [url.rpartition("/")[2] for url in asked] == ["CycleReward-Combo.pth"]
        assert "CycleReward-Combo.pth" not in CycleReward.missing_downloads()
        images = picture("small96")
        assert_same_from_a_copy(rewards[1](images, ["a cat"]), judges["cyclereward"](images, ["a cat"]))
        with pytest.raises(ValueError, match=r"variant='t2t'; give one of combo, t2i, i2t"):
            CycleReward(variant="t2t")

    def test_cyclereward_without_a_network_says_what_to_do(self, tmp_path, monkeypatch):
        def refuse(*_, **__):
            raise OSError("no route to host")

        monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
        monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
        with pytest.raises(OSError, match=r"cannot download https://.*Combo\.pth \(no route to host\); give"):
            CycleReward()


class TestInstruction:
    @pytest.fixture
    def package(self, tmp_path, monkeypatch):
        """A package that cannot be imported, with the texts where hpsv3 1.0 has them."""
        folder = tmp_path / "hpsv3" / "dataset"
        folder.mkdir(parents=True)
        (tmp_path / "hpsv3" / "__init__.py").write_text("raise RuntimeError")
        monkeypatch.syspath_prepend(tmp_path)

        def write(source):
            (folder / "data_collator_qwen.py").write_text(source)

        write(f"import torch_that_is_old\n\nINSTRUCTION = {QUESTION!r}\nprompt_with_special_token = {ENDING!r}\n")
        return write

    def test_is_read_from_the_package_without_running_it(self, make, judges, package):
        judge = make("hpsv3", instruction=None)
        assert judge.instruction == QUESTION + ENDING
        assert availability(HPSv3Reward).startswith("after download of MizzenAI/HPSv3")

    def test_a_package_of_another_layout_is_refused(self, make, package):
        package("INSTRUCTION = 3\n")
        with pytest.raises(ImportError, match=r"the instruction .* has no INSTRUCTION and .*: run `pip install"):
            make("hpsv3", instruction=None)

    def test_without_the_package_says_what_to_install(self, make, monkeypatch):
        monkeypatch.setattr("diamond_diffusers.rewards.hpsv3.instruction.find_spec", lambda name: None)
        with pytest.raises(ImportError, match=r"from the package 'hpsv3' \(No module named 'hpsv3'\): run"):
            make("hpsv3", instruction=None)
        assert availability(HPSv3Reward).startswith("no: package hpsv3 does not import")

    @pytest.mark.parametrize("instruction", ["<|Reward|>", "{text_prompt}", "{text_prompt} <|Reward|> <|Reward|>"])
    def test_lacking_a_part_is_refused(self, make, instruction):
        with pytest.raises(ValueError, match=r"in it once"):
            make("hpsv3", instruction=instruction)

    def test_an_unknown_output_is_refused(self, make):
        with pytest.raises(ValueError, match=r"output='mu'; give 'mean' or 'spread'"):
            make("hpsv3", output="mu")


class TestUse:
    @pytest.mark.slow
    @pytest.mark.parametrize("name", NAMES)
    def test_gradient_checkpointing_changes_no_gradient(self, make, judges, name):
        images = picture("small96").requires_grad_()
        gradients = [
            torch.autograd.grad(judge(images, ["a cat"]).sum(), images)[0]
            for judge in (make(name, gradient_checkpointing=True), judges[name])
        ]
        torch.testing.assert_close(*gradients)

    @pytest.mark.slow
    @pytest.mark.parametrize("name", NAMES)
    def test_half_precision(self, make, judges, name):
        low = make(name, dtype=torch.bfloat16)
        images, prompts = picture("small96"), ["a red cat"]
        scores, exact = low(images.bfloat16(), prompts), judges[name](images, prompts)
        assert scores.dtype == torch.float32
        assert 0 < (scores - exact).abs().max() < 0.1 * max(1, exact.abs().max())

    @pytest.mark.parametrize("token", ["<|image_pad|>", "<|video_pad|>", "<|Reward|>"])
    def test_hpsv3_refuses_prompts_with_tokens_of_its_own(self, judges, token):
        with pytest.raises(ValueError, match=r"'hpsv3' got the prompt .* has a meaning of its own to the model; leave"):
            judges["hpsv3"](picture("small96"), [f"a {token}"])
        with pytest.raises(ValueError, match="leave it out"):
            judges["hpsv3"].check_prompts(["a cat", f"a {token}"])

    def test_mps_keeps_its_angles_in_half_precision(self, make):
        rotary = make("mps", dtype=torch.bfloat16).model.layers[0].parallel.rotary_emb
        torch.testing.assert_close(rotary.inv_freq, 10000.0 ** -(torch.arange(0, 8, 2) / 8))

    @pytest.mark.parametrize("name", one_of_each_kind(NAMES, ("mps", "evalmuse")))
    def test_carries_gradients_from_any_size(self, judges, name):
        judges[name].probe(image_size=(40, 72), needs_gradient=True)

    def test_mps_depends_on_its_condition_and_threshold(self, judges, monkeypatch):
        images, prompts = picture("exact224"), golden("mps")["prompts"][2:3]
        scores = [judges["mps"](images, prompts)]
        for name, value in (("threshold", 0.01), ("threshold", 0.8), ("condition", "number, position")):
            monkeypatch.setattr(judges["mps"], name, value)
            scores.append(judges["mps"](images, prompts))
            assert (scores[-1] - scores[-2]).abs() > 1e-3

    @pytest.mark.parametrize(("name", "limit"), [("mps", "77 of the 102 tokens"), ("evalmuse", "50 of the 100 words")])
    def test_cut_prompts_are_warned_of_once(self, judges, monkeypatch, caplog, name, limit):
        judge = judges[name]
        monkeypatch.setattr(judge._warn_of_truncation, "given", False)
        long = " ".join(["cat"] * 100)
        with caplog.at_level(logging.WARNING):
            for prompt in ("a cat", long, f"{long} dog"):
                judge(picture("small96"), [prompt])
        (record,) = caplog.records
        assert f"'{name}' reads only {limit}" in record.message


@pytest.mark.slow
def test_the_example_compares_judges(capsys, monkeypatch):
    example = Path(__file__).parents[2] / "examples" / "agreeing_judges.py"
    monkeypatch.setattr("sys.argv", [str(example), "miniature", "brightness"])
    runpy.run_path(str(example))
    *ranks, correlation = capsys.readouterr().out.splitlines()
    for name, line in zip(("miniature", "brightness"), ranks, strict=True):
        assert sorted(json.loads(line.removeprefix(name))) == list(range(1, 9))
    assert re.fullmatch(r"miniature and brightness: -?[01]\.\d\d", correlation)

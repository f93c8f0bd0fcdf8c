"""UnifiedReward: its answers against the official code, its question, and the grades that are read from answers."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor

from diamond_diffusers.rewards import UnifiedReward
from diamond_diffusers.rewards import unifiedreward as module
from diamond_diffusers.rewards.degradations import JPEG
from diamond_diffusers.rewards.unifiedreward import grades_in

from .golden import FIXTURES, formula_weights, picture
from .judge_networks import QWEN, write_qwen

GOLDEN = json.loads((FIXTURES / "published_judges" / "unifiedreward.json").read_text())
QWEN_25 = {key: value for key, value in QWEN.items() if key != "model_type"} | {
    "vocab_size": 263,
    "pad_token_id": 256,
    "vision_config": {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 2,
        "out_hidden_size": 32,
        "fullatt_block_indexes": [1],
        "window_size": 112,
    },
}
ANSWER = "Alignment Score (1-5): 2.5\nCoherence Score (1-5): 4\nStyle Score (1-5): 3.25"
"""In the form of the official example."""


SCRIPT_NAME = module.SCRIPT.rpartition("/")[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny Qwen2.5-VL with the weights that the official code was run with, under their published names."""
    folder = write_qwen(tmp_path_factory.mktemp("qwen"), Qwen2_5_VLProcessor)
    config = Qwen2_5_VLConfig(**QWEN_25)
    with torch.device("meta"):
        model = Qwen2_5_VLForConditionalGeneration(config)
    published = (("model.language_model.", "model."), ("model.visual.", "visual."))
    shapes = {}
    for name, weight in model.state_dict().items():
        for new, old in published:
            name = old + name.removeprefix(new) if name.startswith(new) else name
        shapes[name] = weight.shape
    save_file(formula_weights(shapes), folder / "model.safetensors", metadata={"format": "pt"})
    config.architectures = ["Qwen2_5_VLForConditionalGeneration"]
    config.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def reward(folder):
    return UnifiedReward(folder, question=GOLDEN["question"], jpeg_quality=None, max_new_tokens=24)


@pytest.fixture
def answering(reward, monkeypatch):
    """Makes the model answer so."""

    def answer(*texts):
        asked = []
        monkeypatch.setattr(
            reward.judge, "generate", lambda images, questions, limit: asked.append((images, questions)) or list(texts)
        )
        return asked

    return answer


class TestAnswers:
    @pytest.mark.parametrize("image", range(len(GOLDEN["images"])))
    def test_are_those_of_the_official_code(self, reward, image):
        row = image % len(GOLDEN["prompts"])
        (answer,) = reward.answers(picture(GOLDEN["images"][image]), [GOLDEN["prompts"][row]])
        assert answer == GOLDEN["answers"][row][image].strip()

    @pytest.mark.slow
    def test_of_a_batch_are_those_of_the_official_code(self, reward):
        for image, name in enumerate(GOLDEN["images"]):
            answers = reward.answers(picture(name).expand(2, -1, -1, -1), GOLDEN["prompts"])
            assert answers == [row[image].strip() for row in GOLDEN["answers"]]

    def test_without_grades_are_errors_and_no_scores(self, reward):
        with pytest.raises(ValueError, match=r"'unifiedreward' got an answer without a grade of alignment from 1 to 5"):
            reward(picture("small96"), ["a cat"])

    def test_are_not_asked_for_with_tokens_of_the_model(self, reward):
        reward.check_prompts(["a cat"])
        with pytest.raises(ValueError, match="stands for an image; leave it out"):
            reward.check_prompts(["a cat", "a <|image_pad|>"])

    def test_are_about_a_jpeg_file_of_the_image(self, reward, answering, monkeypatch):
        asked = answering(ANSWER)
        images = picture("exact224")
        monkeypatch.setattr(reward, "_compress", JPEG(95))
        reward(images, ["a cat"])
        ((shown, _),) = asked
        assert torch.equal(shown, JPEG(95)(images)) and not torch.equal(shown, images)


class TestGrades:
    def test_their_mean_is_the_score(self, reward, answering, monkeypatch):
        asked = answering(ANSWER, "**Style score (1-5):** 1\nCoherence Score (1-5): 2, Alignment Score (1-5): 3.")
        images = picture("small96").expand(2, -1, -1, -1).clone().requires_grad_()
        output = reward.evaluate(images, ["a {} cat", "a dog"])
        torch.testing.assert_close(output.total, torch.tensor([3.25, 2.0]))
        assert not output.total.requires_grad
        torch.testing.assert_close(output.terms["unifiedreward.alignment"], torch.tensor([2.5, 3.0]))
        assert len(output.terms) == 4
        assert asked[0][1] == ["How good is it? Text: a {} cat", "How good is it? Text: a dog"]
        monkeypatch.setattr(reward, "axes", ("style",))
        torch.testing.assert_close(reward(images, ["", ""]), torch.tensor([3.25, 1.0]))

    @pytest.mark.parametrize(
        ("answer", "expected"),
        [
            (ANSWER, {"alignment": 2.5, "coherence": 4.0, "style": 3.25}),
            ("", {}),
            ("Alignment Score (1-5): X", {}),
            ("Alignment Score (1-5): 7\nStyle Score (1-5): 0.5", {}),
            ("Style Score (1-5): 2\nStyle Score (1-5): 3", {"style": 3.0}),
            ("Alignment Score (1-5): 5", {"alignment": 5.0}),
        ],
    )
    def test_are_read_from_answers(self, answer, expected):
        assert grades_in(answer) == expected


class TestQuestion:
    SOURCE = "import nothing\nprompt = ''\nproblem = ('How is it?\\n' f'Text: [{prompt}]')\n"

    @pytest.fixture
    def downloads(self, tmp_path, monkeypatch):
        made = []

        def download(url, path, hash_prefix, progress):
            made.append(url)
            assert len(hash_prefix) == len(hashlib.sha256().hexdigest())
            Path(path).write_text(self.SOURCE)

        monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
        monkeypatch.setattr(torch.hub, "download_url_to_file", download)
        return made

    def test_is_read_once_from_the_official_program(self, folder, downloads):
        assert SCRIPT_NAME in UnifiedReward.missing_downloads()
        rewards = [UnifiedReward(folder) for _ in range(2)]
        assert {reward.question for reward in rewards} == {"How is it?\nText: [{}]"}
        assert downloads == [module.SCRIPT]
        assert SCRIPT_NAME not in UnifiedReward.missing_downloads()

    def test_that_cannot_be_had_is_asked_for(self, folder, tmp_path, monkeypatch):
        def refuse(*_, **__):
            raise RuntimeError("invalid hash value")

        monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
        monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
        with pytest.raises(OSError, match=r"cannot download its question from .* \(invalid hash value\); give"):
            UnifiedReward(folder)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"question": "How is it?"}, r"question='How is it\?'; put \{\} in the prompt's place"),
            ({"question": "{}", "axes": ()}, r"axes=\(\); give some of alignment, coherence, style"),
            ({"question": "{}", "axes": ("beauty",)}, r"axes=\('beauty',\); give some of"),
            ({"question": "{}", "jpeg_quality": 100}, "quality"),
        ],
    )
    def test_malformed_options_are_refused(self, folder, options, message):
        with pytest.raises(ValueError, match=message):
            UnifiedReward(folder, **options)

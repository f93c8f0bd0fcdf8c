import json
import logging
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from torchvision.transforms.functional import to_pil_image
from transformers import CLIPModel, CLIPProcessor

from diamond_diffusers.rewards import CLIPReward, as_reward

from ..rounding import assert_same_from_a_copy

IMAGE_SIZE = 32


@pytest.fixture
def reward(clip_folder):
    return CLIPReward(clip_folder)


@pytest.fixture
def encoded_texts(reward):
    """Collects the number of texts of every call of the text tower."""
    counts = []

    def count(module, inputs, keywords):
        counts.append(len(keywords["input_ids"]))

    reward.model.text_model.register_forward_pre_hook(count, with_kwargs=True)
    return counts


def quantised(images):
    return (images * 255).round() / 255


class TestParity:
    def test_equals_the_logits_of_clip(self, clip_folder, images, prompts):
        """The logit scale, the pooling at the end token and the padding are those of `CLIPModel.forward`."""
        pictures = quantised(images(IMAGE_SIZE, IMAGE_SIZE))
        inputs = CLIPProcessor.from_pretrained(clip_folder)(
            text=prompts, images=[to_pil_image(picture) for picture in pictures], padding=True, return_tensors="pt"
        )
        with torch.no_grad():
            logits = CLIPModel.from_pretrained(clip_folder)(**inputs).logits_per_image
        reward = CLIPReward(clip_folder, scale="logit_scale")
        scores = torch.stack([reward(pictures, [prompt] * 4) for prompt in prompts], dim=1)
        assert logits.std() > 1
        torch.testing.assert_close(scores, logits, atol=2e-5, rtol=1e-5)

    def test_scale_multiplies_the_cosine(self, clip_folder, reward, images, prompts):
        pictures = images(IMAGE_SIZE, IMAGE_SIZE)
        cosine = reward(pictures, prompts)
        assert cosine.abs().max() <= 1
        torch.testing.assert_close(CLIPReward(clip_folder, scale=100)(pictures, prompts), 100 * cosine)

    @pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 3e-2), (torch.float16, 4e-3)])
    def test_half_precision(self, clip_folder, reward, images, prompts, dtype, tolerance):
        """The deviation is a few units of the towers' precision (2^-8 and 2^-11)."""
        pictures = images(IMAGE_SIZE, IMAGE_SIZE)
        low = CLIPReward(clip_folder, dtype=dtype)
        assert low.model.dtype == dtype
        scores = low(pictures.to(dtype), prompts)
        assert scores.dtype == torch.float32
        torch.testing.assert_close(scores, reward(pictures, prompts), atol=tolerance, rtol=0)

    def test_repeated_rows_score_like_single_ones(self, reward, images, prompts):
        pictures = images(40, IMAGE_SIZE)
        rows = reward(pictures.repeat_interleave(3, 0), [prompt for prompt in prompts for _ in range(3)])
        torch.testing.assert_close(rows, reward(pictures, prompts).repeat_interleave(3))


class TestGradients:
    def test_equal_finite_differences(self, reward, images, prompts):
        """Central differences in float64; images of the right size, since resampling rounds to 8 bits."""
        reward.to(dtype=torch.float64)
        pictures = images(IMAGE_SIZE, IMAGE_SIZE).double().requires_grad_()
        (gradient,) = torch.autograd.grad(reward.score(pictures, prompts).sum(), pictures)
        for seed in range(3):
            direction = torch.randn(pictures.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
            with torch.no_grad():
                up, down = (reward.score(pictures + step * direction, prompts).sum() for step in (1e-6, -1e-6))
            slope = (gradient * direction).sum()
            assert slope.abs() > 1e-4
            torch.testing.assert_close((up - down) / 2e-6, slope, atol=1e-7, rtol=1e-7)

    def test_reach_each_image_alone(self, reward, images, prompts):
        pictures = images(IMAGE_SIZE, IMAGE_SIZE).requires_grad_()
        (gradient,) = torch.autograd.grad(reward(pictures, prompts)[1], pictures)
        assert gradient[1].abs().sum() > 0 and gradient[[0, 2, 3]].abs().sum() == 0

    def test_weights_are_frozen(self, reward):
        assert not reward.model.training
        assert not any(weight.requires_grad for weight in reward.model.parameters())

    def test_text_features_of_inference_mode_serve_later_gradients(self, reward, images, prompts):
        with torch.inference_mode():
            reward(images(IMAGE_SIZE, IMAGE_SIZE), prompts)
        reward.probe(prompt=prompts[0], needs_gradient=True)


class TestTexts:
    def test_each_distinct_prompt_is_encoded_once(self, reward, encoded_texts, images):
        pictures = images(IMAGE_SIZE, IMAGE_SIZE).repeat(2, 1, 1, 1)
        reward(pictures, ["a star", "red circle", "a star", "blue"] * 2)
        reward(pictures, ["blue", "a star"] * 4)
        assert encoded_texts == [3]
        reward(pictures, ["blue", "green"] * 4)
        assert encoded_texts == [3, 1]

    def test_casting_forgets(self, reward, encoded_texts):
        reward.text_features(["one"])
        assert reward.to(dtype=torch.float64) is reward
        assert reward.text_features(["one"]).dtype == torch.float64
        assert encoded_texts == [1, 1]

    def test_long_prompts_are_cut_with_one_warning(self, reward, images, caplog):
        pictures = images(IMAGE_SIZE, IMAGE_SIZE)[:1]
        long = " ".join(["red", "star"] * 6)
        with caplog.at_level(logging.WARNING, logger="diamond_diffusers"):
            score = reward(pictures, [long])
            reward(pictures, [long + " above"])
        (message,) = [record.getMessage() for record in caplog.records]
        assert message.endswith(f"reads only 12 of the 14 tokens of {long!r}; longer prompts are cut.")
        torch.testing.assert_close(score, reward(pictures, [" ".join(["red", "star"] * 5)]))

    def test_a_prompt_that_just_fits_gives_no_warning(self, reward, caplog):
        reward.text_features([" ".join(["red", "star"] * 5)])
        assert not caplog.records

    def test_template(self, clip_folder, reward, images, prompts):
        pictures = images(IMAGE_SIZE, IMAGE_SIZE)
        scores = CLIPReward(clip_folder, prompt_template="a photo of {}")(pictures, prompts)
        torch.testing.assert_close(scores, reward(pictures, [f"a photo of {prompt}" for prompt in prompts]))


def test_a_processor_of_its_own_place(clip_folder, reward, images, prompts, tmp_path):
    """The subfolder is the checkpoint's."""
    (tmp_path / "inner").mkdir()
    for file in ("config.json", "model.safetensors"):
        shutil.copy(clip_folder / file, tmp_path / "inner")
    other = CLIPReward(tmp_path, subfolder="inner", processor=clip_folder)
    pictures = images(40, 50)
    assert_same_from_a_copy(other(pictures, prompts), reward(pictures, prompts))


class TestErrors:
    def test_options(self, clip_folder):
        with pytest.raises(ValueError, match=r"'clip' got scale='big'; give a number or 'logit_scale'"):
            CLIPReward(clip_folder, scale="big")
        with pytest.raises(ValueError, match=r"prompt_template='a photo'; put {} in the prompt's place"):
            CLIPReward(clip_folder, prompt_template="a photo")

    def test_no_such_folder(self, tmp_path):
        with pytest.raises(
            OSError, match=r"'mine' cannot load checkpoint='.*absent' .*; give a name on the Hub, a folder"
        ):
            CLIPReward(tmp_path / "absent", name="mine")

    @pytest.mark.parametrize("absent", ["config.json", "model.safetensors", "tokenizer.json", "processor_config.json"])
    def test_an_incomplete_folder(self, clip_folder, tmp_path, absent):
        folder = shutil.copytree(clip_folder, tmp_path / "copy")
        (folder / absent).unlink()
        with pytest.raises(OSError, match=r"'clip' cannot load checkpoint="):
            CLIPReward(folder)

    def test_pickled_weights_are_not_read(self, clip_folder, tmp_path):
        folder = shutil.copytree(clip_folder, tmp_path / "copy")
        torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
        with pytest.raises(OSError, match=r"'clip' cannot load checkpoint="):
            CLIPReward(folder)

    def test_another_architecture(self, tmp_path):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
        with pytest.raises(ValueError, match=r"of the architecture 'bert'; give a checkpoint of clip or siglip, or"):
            CLIPReward(tmp_path)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda weights: weights.pop("text_projection.weight"), "which lacks text_projection.weight and 0 other"),
            (
                lambda weights: weights.update({"head.weight": torch.zeros(1)}),
                "which has the unknown head.weight and 0 other",
            ),
            (
                lambda weights: weights.update({"visual_projection.weight": torch.zeros(7, 32)}),
                "which has another shape of visual_projection.weight and 0 other",
            ),
        ],
    )
    def test_other_weights(self, clip_folder, tmp_path, change, message):
        folder = shutil.copytree(clip_folder, tmp_path / "copy")
        weights = load_file(folder / "model.safetensors")
        change(weights)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ValueError, match=message):
            CLIPReward(folder)

    def test_position_ids_of_old_checkpoints_are_skipped(self, clip_folder, tmp_path, images, prompts):
        folder = shutil.copytree(clip_folder, tmp_path / "copy")
        weights = load_file(folder / "model.safetensors")
        weights["text_model.embeddings.position_ids"] = torch.arange(12)[None]
        weights["vision_model.embeddings.position_ids"] = torch.arange(17)[None]
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        pictures = images(IMAGE_SIZE, IMAGE_SIZE)
        assert_same_from_a_copy(CLIPReward(folder)(pictures, prompts), CLIPReward(clip_folder)(pictures, prompts))

    def test_unknown_options(self, clip_folder):
        with pytest.raises(TypeError, match=r"'clip' got the unknown option scalle=2; for loading it takes cache_dir,"):
            CLIPReward(clip_folder, scalle=2)


def test_takes_part_in_sums(reward, images, prompts):
    pictures = images(IMAGE_SIZE, IMAGE_SIZE).requires_grad_()
    total = 2 * reward - as_reward(lambda images, prompts: images.mean((1, 2, 3)))
    total.probe(needs_gradient=True)
    assert total.evaluate(pictures, prompts).total.requires_grad

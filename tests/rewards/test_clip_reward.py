import json
import logging
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from torchvision.transforms.functional import to_pil_image
from torchvision.transforms.v2 import functional
from transformers import CLIPModel, CLIPProcessor

from diamond_diffusers.rewards import CLIPReward, as_reward
from diamond_diffusers.rewards.preprocessing import ImagePreprocessing

IMAGE_SIZE = 32


@pytest.fixture
def reward(clip_folder):
    return CLIPReward(clip_folder)


@pytest.fixture
def encoded_texts(reward):
    """Collects the number of texts of every call of the text tower."""
    counts = []
    reward.model.text_model.register_forward_pre_hook(lambda module, inputs: counts.append(len(inputs[0])))
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


class TestPreprocessing:
    @pytest.mark.parametrize("size", [(80, 64), (33, 47), (20, 25), (32, 50), (512, 300)])
    def test_is_torchvision_s_antialiased_bicubic_and_central_crop(self, reward, images, size):
        pictures = images(*size)
        resized = functional.resize(pictures, [IMAGE_SIZE], functional.InterpolationMode.BICUBIC, antialias=True).clamp(
            0, 1
        )
        cropped = functional.center_crop(resized, [IMAGE_SIZE, IMAGE_SIZE])
        mean, std = (torch.tensor(getattr(reward.preprocessing, name))[:, None, None] for name in ("mean", "std"))
        torch.testing.assert_close(reward.preprocessing(pictures), (cropped - mean) / std)

    @pytest.mark.parametrize("size", [(32, 32), (64, 64), (96, 64), (40, 60)])
    def test_is_the_processor_s_up_to_eight_bits(self, clip_folder, reward, images, size):
        """The processor rounds to 1/255 after resizing; the normalisation divides by 0.26."""
        pictures = quantised(images(*size))
        processor = CLIPProcessor.from_pretrained(clip_folder).image_processor
        expected = processor([to_pil_image(picture) for picture in pictures], return_tensors="pt").pixel_values
        torch.testing.assert_close(reward.preprocessing(pictures), expected, atol=1.1 / 255 / 0.26, rtol=0)

    def test_an_image_of_the_right_size_is_not_resampled(self, reward, images):
        pictures = images(IMAGE_SIZE, IMAGE_SIZE)
        expected = functional.normalize(pictures, reward.preprocessing.mean, reward.preprocessing.std)
        assert torch.equal(reward.preprocessing(pictures), expected)

    def test_overshoots_saturate(self, images):
        bare = ImagePreprocessing([IMAGE_SIZE], None, [0.0] * 3, [1.0] * 3)
        pixels = bare((images(64, 64) > 0.5).float())
        assert pixels.min() == 0 and pixels.max() == 1

    def test_reads_a_processor_that_resizes_both_edges_and_crops_nothing(self, clip_folder):
        processor = CLIPProcessor.from_pretrained(clip_folder).image_processor
        processor = type(processor)(size={"height": 12, "width": 20}, do_center_crop=False, do_normalize=False)
        pictures = torch.rand(1, 3, 30, 30)
        pixels = ImagePreprocessing.from_processor(processor)(pictures)
        assert pixels.shape == (1, 3, 12, 20) and pixels.min() >= 0 and pixels.max() <= 1

    def test_a_processor_that_does_not_resize(self, clip_folder):
        processor = type(CLIPProcessor.from_pretrained(clip_folder).image_processor)(do_resize=False)
        processor.crop_size = {"height": 8, "width": 8}
        assert ImagePreprocessing.from_processor(processor)(torch.rand(1, 3, 9, 30)).shape == (1, 3, 8, 8)


class TestGradients:
    @pytest.mark.parametrize("size", [(32, 32), (41, 50)])
    def test_equal_finite_differences(self, reward, images, prompts, size):
        """Central differences in float64; the pixels stay away from 0 and 1, where saturation has a kink."""
        reward.to(dtype=torch.float64)
        pictures = (0.3 + 0.4 * images(*size).double()).requires_grad_()
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

    def test_the_memory_is_bounded_and_forgets_what_was_used_longest_ago(self, clip_folder, images):
        reward = CLIPReward(clip_folder, text_cache_size=2)
        counts = []
        reward.model.text_model.register_forward_pre_hook(lambda module, inputs: counts.append(len(inputs[0])))
        features = reward.text_features(["one", "two", "red", "one"])
        torch.testing.assert_close(features[0], features[3])
        reward.text_features(["two", "red"])
        reward.text_features(["two"])
        reward.text_features(["blue"])
        reward.text_features(["two"])
        assert counts == [3, 1]
        reward.text_features(["red"])
        assert counts == [3, 1, 1]

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
        messages = [record.getMessage() for record in caplog.records]
        assert messages == [f"Reward 'clip' reads only 12 of the 14 tokens of {long!r}; longer prompts are cut."]
        torch.testing.assert_close(score, reward(pictures, [" ".join(["red", "star"] * 5)]))

    def test_a_prompt_that_just_fits_gives_no_warning(self, reward, caplog):
        reward.text_features([" ".join(["red", "star"] * 5)])
        assert not caplog.records

    def test_template(self, clip_folder, reward, images, prompts):
        pictures = images(IMAGE_SIZE, IMAGE_SIZE)
        scores = CLIPReward(clip_folder, prompt_template="a photo of {}")(pictures, prompts)
        torch.testing.assert_close(scores, reward(pictures, [f"a photo of {prompt}" for prompt in prompts]))


class TestErrors:
    def test_options(self, clip_folder):
        with pytest.raises(ValueError, match=r"'clip' got scale='big'; give a number or 'logit_scale'"):
            CLIPReward(clip_folder, scale="big")
        with pytest.raises(ValueError, match=r"prompt_template='a photo'; put {} in the prompt's place"):
            CLIPReward(clip_folder, prompt_template="a photo")

    def test_no_such_folder(self, tmp_path):
        with pytest.raises(OSError, match=r"'mine' cannot load checkpoint='.*absent' .*; give a name on the Hub, or a"):
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
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "siglip"}))
        with pytest.raises(ValueError, match=r"of the architecture 'siglip'; give a CLIP checkpoint"):
            CLIPReward(tmp_path)

    def test_missing_weights(self, clip_folder, tmp_path):
        folder = shutil.copytree(clip_folder, tmp_path / "copy")
        weights = load_file(folder / "model.safetensors")
        del weights["text_projection.weight"], weights["visual_projection.weight"]
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ValueError, match=r"lacks text_projection.weight and 1 other weights"):
            CLIPReward(folder)


def test_takes_part_in_sums(reward, images, prompts):
    pictures = images(IMAGE_SIZE, IMAGE_SIZE).requires_grad_()
    total = 2 * reward - as_reward(lambda images, prompts: images.mean((1, 2, 3)))
    total.probe(needs_gradient=True)
    assert total.evaluate(pictures, prompts).total.requires_grad

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from PIL.Image import Resampling
from safetensors.torch import load_file
from torchvision.transforms.functional import to_pil_image
from torchvision.transforms.v2.functional import normalize
from transformers import CLIPImageProcessor

from diamond_diffusers.rewards.preprocessing import (
    CLIP_MEAN,
    CLIP_STD,
    ImagePreprocessing,
    LongestSidePadding,
    images_from_pil,
    images_to_pil,
    resize_like_pil,
)

FIXTURES = Path(__file__).parents[1] / "fixtures" / "rewards"
IMAGE_ORDER = json.loads((FIXTURES / "preprocessed" / "image_order.json").read_text())
OFFICIAL = load_file(FIXTURES / "preprocessed" / "pil_resize_crop_224_uint8.safetensors")["pixel_uint8"]
PADDED = load_file(FIXTURES / "preprocessed" / "hpsv2_longest_side_pad.safetensors")["pixels_official"]
PADDED_ORDER = json.loads((FIXTURES / "hpsv2" / "golden.json").read_text())["pixels_official_images"]
CLIP_224 = ImagePreprocessing([224], [224, 224])
BARE_224 = ImagePreprocessing([224], [224, 224], [0.0] * 3, [1.0] * 3)


def picture(name):
    with Image.open(FIXTURES / "images" / f"{name}.png") as image:
        return images_from_pil([image])


def eight_bits(*shape, seed=0):
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed)) / 255


class TestOfficialPipelines:
    # The official code resizes the RGBA image, with premultiplied alpha, before it drops alpha: RGB tensors cannot.
    @pytest.mark.parametrize("name", [name for name in IMAGE_ORDER if name != "rgba"])
    def test_pixels_are_pil_s_bit_for_bit(self, name):
        pixels = BARE_224(picture(name)) * 255
        assert torch.equal(pixels, OFFICIAL[IMAGE_ORDER.index(name)][None].float())

    def test_normalisation_is_clip_s(self):
        pixels = OFFICIAL[:1].float() / 255
        mean, std = (torch.tensor(values)[:, None, None] for values in (CLIP_MEAN, CLIP_STD))
        assert torch.equal(CLIP_224(pixels), (pixels - mean) / std)

    @pytest.mark.parametrize("name", PADDED_ORDER)
    def test_hps_padding(self, name):
        pixels = LongestSidePadding(224)(picture(name))
        torch.testing.assert_close(pixels, PADDED[PADDED_ORDER.index(name)][None], atol=1e-6, rtol=0)

    def test_thin_images_keep_a_row(self):
        pixels = LongestSidePadding(8, [0.0] * 3, [1.0] * 3)(torch.ones(1, 3, 1, 100))
        assert pixels[0, 0].sum(1).tolist() == pytest.approx([0, 0, 0, 8, 0, 0, 0, 0])

    @pytest.mark.parametrize("size", [(224, 180), (100, 224)])
    def test_padding_without_resizing(self, size):
        images = eight_bits(1, 3, *size)
        pixels = LongestSidePadding(224, [0.0] * 3, [1.0] * 3)(images)
        top, left = ((224 - length) // 2 for length in size)
        assert pixels.shape == (1, 3, 224, 224)
        assert torch.equal(pixels[:, :, top : top + size[0], left : left + size[1]], images)
        torch.testing.assert_close(pixels.sum(), images.sum())


class TestResampling:
    @pytest.mark.parametrize("interpolation", [Resampling.BICUBIC, Resampling.BILINEAR])
    @pytest.mark.parametrize(
        ("size", "target"),
        [((37, 211), (40, 224)), ((64, 64), (65, 130)), ((300, 170), (30, 20)), ((97, 96), (48, 96))],
    )
    def test_is_pil_s_bit_for_bit(self, size, target, interpolation):
        images = eight_bits(2, 3, *size)
        expected = [image.resize(target[::-1], interpolation) for image in images_to_pil(images)]
        assert torch.equal(resize_like_pil(images, target, interpolation), images_from_pil(expected))

    def test_differs_from_pillow_13_by_a_rounding_where_that_takes_rows_first(self):
        images = eight_bits(1, 3, 300, 60)
        (expected,) = images_to_pil(images)
        resized = resize_like_pil(images, (100, 20))
        expected = images_from_pil([expected.resize((20, 100), Resampling.BICUBIC)])
        torch.testing.assert_close(resized, expected, atol=2.1 / 255, rtol=0)

    def test_edges_saturate_as_in_pil(self):
        checkerboard = (torch.arange(64)[:, None] // 3 + torch.arange(64) // 3) % 2 * torch.ones(1, 3, 1, 1)
        (expected,) = images_to_pil(checkerboard)
        resized = resize_like_pil(checkerboard, (50, 50))
        assert torch.equal(resized, images_from_pil([expected.resize((50, 50), Resampling.BICUBIC)]))
        assert resized.min() == 0 and resized.max() == 1

    def test_images_between_levels_are_rounded_as_if_saved(self):
        images = torch.rand(1, 3, 40, 40, generator=torch.Generator().manual_seed(0))
        assert torch.equal(
            resize_like_pil(images, (32, 32)), resize_like_pil(images_from_pil(images_to_pil(images)), (32, 32))
        )

    def test_an_image_of_the_right_size_is_untouched(self):
        images = torch.rand(1, 3, 224, 224)
        assert torch.equal(CLIP_224(images), normalize(images, CLIP_MEAN, CLIP_STD))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_keeps_the_dtype(self, dtype):
        assert resize_like_pil(eight_bits(1, 3, 9, 9).to(dtype), (5, 5)).dtype == dtype


class TestGradient:
    @pytest.mark.parametrize(("size", "target"), [((40, 56), (32, 32)), ((20, 30), (32, 48))])
    def test_is_that_of_torch_s_antialiased_resize_where_nothing_saturates(self, size, target):
        """The two filters agree to PIL's 2^-22; the roundings are passed through."""
        images = (0.4 + 0.2 * eight_bits(1, 3, *size).double()).requires_grad_()
        towards = torch.randn(1, 3, *target, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        (gradient,) = torch.autograd.grad(resize_like_pil(images, target), images, towards)
        smooth = torch.nn.functional.interpolate(images, target, mode="bicubic", antialias=True)
        (expected,) = torch.autograd.grad(smooth, images, towards)
        assert expected.abs().max() > 0.1
        torch.testing.assert_close(gradient, expected, atol=1e-5, rtol=0)

    def test_is_zero_where_values_saturate(self):
        images = torch.ones(1, 3, 8, 8)
        images[:, :, :, :4] = 0
        images.requires_grad_()
        resized = resize_like_pil(images, (8, 16))
        overshoots = torch.nn.functional.interpolate(images.detach(), (8, 16), mode="bicubic", antialias=True) > 1
        assert overshoots.any()
        (gradient,) = torch.autograd.grad(resized[overshoots].sum(), images)
        assert gradient.abs().sum() == 0

    def test_serves_after_inference_mode(self):
        with torch.inference_mode():
            resize_like_pil(eight_bits(1, 3, 23, 29), (11, 13))
        images = eight_bits(1, 3, 23, 29).requires_grad_()
        resize_like_pil(images, (11, 13)).sum().backward()
        assert images.grad.abs().sum() > 0


class TestCrop:
    def test_torchvision_and_transformers_round_an_odd_margin_differently(self):
        images = eight_bits(1, 3, 4, 9)
        common = {"size": None, "crop_size": [4, 4], "mean": [0.0] * 3, "std": [1.0] * 3}
        assert torch.equal(ImagePreprocessing(**common)(images), images[..., 2:6])
        assert torch.equal(ImagePreprocessing(**common)(eight_bits(1, 3, 4, 11)), eight_bits(1, 3, 4, 11)[..., 4:8])
        assert torch.equal(
            ImagePreprocessing(**common, crop_rounding=int)(eight_bits(1, 3, 4, 11)), eight_bits(1, 3, 4, 11)[..., 3:7]
        )

    @pytest.mark.parametrize("size", [(304, 208), (301, 227), (640, 384), (180, 320), (224, 300)])
    def test_of_a_processor_is_transformers_up_to_its_own_resampling(self, size):
        """transformers rounds once, after both passes: a difference of a few levels, and much more for another crop."""
        x, y = torch.meshgrid(torch.linspace(0, 9, size[0]), torch.linspace(0, 7, size[1]), indexing="ij")
        images = ((x.sin() * y.cos() + 1) / 2 * 255).round()[None, None].expand(1, 3, -1, -1) / 255
        processor = CLIPImageProcessor(do_normalize=False)
        expected = processor([to_pil_image(images[0])], return_tensors="pt").pixel_values
        pixels = ImagePreprocessing.from_processor(processor)(images)
        torch.testing.assert_close(pixels, expected, atol=2.1 / 255, rtol=0)

    def test_a_larger_crop_is_padded_with_black(self):
        images = eight_bits(1, 3, 5, 30)
        pixels = ImagePreprocessing(None, [8, 8], [0.0] * 3, [1.0] * 3, crop_rounding=int)(images)
        assert torch.equal(pixels[:, :, 1:6], images[..., 11:19])
        assert pixels[:, :, 0].abs().sum() == pixels[:, :, 6:].abs().sum() == 0


class TestProcessors:
    def test_both_edges_and_no_crop(self):
        processor = CLIPImageProcessor(size={"height": 12, "width": 20}, do_center_crop=False, do_normalize=False)
        pixels = ImagePreprocessing.from_processor(processor)(torch.rand(1, 3, 30, 30))
        assert pixels.shape == (1, 3, 12, 20) and pixels.min() >= 0 and pixels.max() <= 1

    def test_no_resize(self):
        processor = CLIPImageProcessor(do_resize=False, crop_size={"height": 8, "width": 8})
        assert ImagePreprocessing.from_processor(processor)(torch.rand(1, 3, 9, 30)).shape == (1, 3, 8, 8)

    def test_other_filters_are_refused(self):
        with pytest.raises(ValueError, match=r"CLIPImageProcessor has resample=LANCZOS; only BICUBIC and BILINEAR"):
            ImagePreprocessing.from_processor(CLIPImageProcessor(resample=Resampling.LANCZOS))


class TestPIL:
    def test_there_and_back(self):
        images = eight_bits(2, 3, 5, 7)
        assert torch.equal(images_from_pil(images_to_pil(images)), images)

    def test_grey_becomes_rgb_and_alpha_is_dropped(self):
        assert picture("gray_L").shape[1] == 3
        (opaque,) = images_to_pil(eight_bits(1, 3, 4, 4))
        transparent = opaque.copy()
        transparent.putalpha(7)
        assert torch.equal(images_from_pil([transparent]), images_from_pil([opaque]))

    @pytest.mark.parametrize("mode", ["I;16", "I", "F"])
    def test_more_than_8_bits_are_refused(self, mode):
        with pytest.raises(ValueError, match=rf"has the mode '{mode}', of more than 8 bits; convert it"):
            images_from_pil([Image.new(mode, (4, 4))])

    def test_sizes_must_agree(self):
        images = [*images_to_pil(eight_bits(1, 3, 4, 4)), *images_to_pil(eight_bits(1, 3, 4, 5))]
        with pytest.raises(ValueError, match=r"are not of one size; score each size on its own"):
            images_from_pil(images)

import io

import numpy as np
import pytest
import torch
from PIL import Image

from diamond_diffusers.rewards import as_reward
from diamond_diffusers.rewards.jpeg_size import JPEGSize

NAMES = ["jpeg_size", "brightness", "colour", "sharpness", "symmetry"]


@pytest.fixture
def pictures():
    """Two images whose statistics differ, and a grey one."""
    noise = torch.rand(2, 3, 24, 20, generator=torch.Generator().manual_seed(0))
    return torch.cat([noise[:1], 0.2 * noise[1:], torch.full((1, 3, 24, 20), 0.5)])


def score(name, images):
    return as_reward(name)(images, [""] * len(images))


def test_brightness_is_pil_s_mean_luminance(pictures):
    pixels = (pictures * 255).round().byte().permute(0, 2, 3, 1).numpy()
    expected = [np.asarray(Image.fromarray(image).convert("L")).mean() / 255 for image in pixels]
    # Rounding to 8 bits twice.
    np.testing.assert_allclose(score("brightness", pictures), expected, atol=1 / 255)
    colours = torch.eye(3)[:, :, None, None].expand(3, 3, 4, 4)
    torch.testing.assert_close(score("brightness", colours), torch.tensor([0.299, 0.587, 0.114]))


def test_colour_is_the_published_formula_over_255(pictures):
    red, green, blue = (255 * pictures.double()).numpy().transpose(1, 0, 2, 3)
    opponents = red - green, (red + green) / 2 - blue
    spread = np.sqrt(sum(opponent.std((1, 2)) ** 2 for opponent in opponents))
    mean = np.sqrt(sum(opponent.mean((1, 2)) ** 2 for opponent in opponents))
    np.testing.assert_allclose(score("colour", pictures), (spread + 0.3 * mean) / 255, atol=5e-6)


def test_sharpness_is_the_variance_of_the_laplacian(pictures):
    grey = np.tensordot(pictures.double().numpy(), [0.299, 0.587, 0.114], (1, 0))
    inner = grey[:, 1:-1, 1:-1]
    neighbours = grey[:, :-2, 1:-1] + grey[:, 2:, 1:-1] + grey[:, 1:-1, :-2] + grey[:, 1:-1, 2:]
    np.testing.assert_allclose(score("sharpness", pictures), (neighbours - 4 * inner).var((1, 2)), atol=1e-6)


def test_symmetry():
    left = torch.rand(1, 3, 8, 5)
    halves = torch.cat([left, left.flip(-1)], -1), torch.cat([left, 1 - left.flip(-1)], -1)
    expected = torch.stack([torch.zeros(()), -(2 * left - 1).abs().mean()])
    torch.testing.assert_close(score("symmetry", torch.cat(halves)), expected)


def test_jpeg_size_is_that_of_the_file(pictures):
    expected = []
    for image in (pictures * 255).round().byte().permute(0, 2, 3, 1).numpy():
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=60)
        expected.append(len(file.getvalue()) / 1000)
    assert len(set(expected)) == 3
    torch.testing.assert_close(JPEGSize(quality=60)(pictures, [""] * 3), torch.tensor(expected))


@pytest.mark.parametrize("quality", [0, 96])
def test_no_jpeg_quality(quality):
    with pytest.raises(ValueError, match=f"quality={quality} is no JPEG quality"):
        JPEGSize(quality)


def test_a_laplacian_needs_three_pixels():
    with pytest.raises(
        ValueError, match=r"'sharpness' got images of shape \[1, 3, 2, 9\]; give at least 3 by 3 pixels"
    ):
        score("sharpness", torch.zeros(1, 3, 2, 9))


@pytest.mark.parametrize("name", NAMES[1:])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_are_finite_also_for_a_grey_image(pictures, name, dtype):
    images = pictures.to(dtype).requires_grad_()
    (gradient,) = torch.autograd.grad(score(name, images).sum(), images)
    assert gradient.isfinite().all() and gradient[0].abs().max() > 0


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_is_that_of_the_pixels_alone(pictures, name):
    rounded = pictures.bfloat16()
    torch.testing.assert_close(score(name, rounded), score(name, rounded.float()), rtol=0, atol=0)


def test_jpeg_size_is_refused_where_gradients_are_needed():
    with pytest.raises(ValueError, match="'jpeg_size' gives no gradients to the pixels; choose an alignment"):
        as_reward("jpeg_size").probe(needs_gradient=True)


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_scores_like_single_images(pictures, name):
    single = torch.cat([score(name, picture[None]) for picture in pictures])
    torch.testing.assert_close(score(name, pictures), single)


def test_they_combine_in_expressions(pictures):
    reward = as_reward("2*brightness - 0.5*jpeg-size")
    expected = 2 * score("brightness", pictures) - 0.5 * score("jpeg_size", pictures)
    torch.testing.assert_close(reward(pictures, [""] * 3), expected)

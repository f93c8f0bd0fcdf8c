import io
import math

import numpy as np
import pytest
import scipy.ndimage
import torch
from PIL import Image

from diamond_diffusers.rewards import as_reward
from diamond_diffusers.rewards.degradations import (
    JPEG,
    Blur,
    GaussianBlur,
    Grayscale,
    Inpainting,
    MotionBlur,
    SuperResolution,
)
from diamond_diffusers.rewards.inverse_problem import InverseProblem

HEIGHT, WIDTH = 8, 12
MASK = torch.rand(HEIGHT, WIDTH, generator=torch.Generator().manual_seed(1)) > 0.4
KERNEL = torch.rand(3, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
LINEAR = {
    "inpainting": Inpainting(MASK),
    "super_resolution": SuperResolution(4),
    "blur": Blur(KERNEL),
    "gaussian_blur": GaussianBlur(0.8),
    "motion_blur": MotionBlur(5, 30),
    "grayscale": Grayscale(),
}


@pytest.fixture
def images():
    return torch.rand(2, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class TestLinearOperators:
    @pytest.mark.parametrize("name", LINEAR)
    def test_adjoint_is_the_transposed_matrix(self, images, name):
        """The matrix is built column by column from basis images, so a map that is not linear fails here too."""
        operator, shape = LINEAR[name], (1, 3, HEIGHT, WIDTH)
        basis = torch.eye(3 * HEIGHT * WIDTH, dtype=torch.float64).reshape(-1, 3, HEIGHT, WIDTH)
        matrix = operator(basis).flatten(1).T
        degraded = operator(images)
        torch.testing.assert_close(degraded.flatten(1), images.flatten(1) @ matrix.T)
        measurement = torch.randn_like(degraded[:1])
        expected = (matrix.T @ measurement.flatten()).reshape(shape)
        torch.testing.assert_close(operator.adjoint(measurement, shape), expected)

    @pytest.mark.parametrize("name", LINEAR)
    def test_adjoint_under_no_grad(self, images, name):
        operator = LINEAR[name]
        with torch.no_grad():
            degraded = operator(images)
            back = operator.adjoint(degraded, images.shape)
        torch.testing.assert_close((back * images).sum(), degraded.square().sum())

    @pytest.mark.parametrize("name", ["gaussian_blur", "motion_blur", "super_resolution"])
    def test_a_flat_image_stays_flat(self, name):
        flat = torch.full((1, 3, HEIGHT, WIDTH), 0.3, dtype=torch.float64)
        degraded = LINEAR[name](flat)
        torch.testing.assert_close(degraded, torch.full_like(degraded, 0.3))


class TestAgainstOtherImplementations:
    def test_inpainting(self, images):
        degraded = Inpainting(MASK)(images)
        assert torch.equal(degraded[..., MASK], images[..., MASK])
        assert degraded[..., ~MASK].abs().max() == 0

    def test_super_resolution_is_pil_s_bicubic(self, images):
        degraded = SuperResolution(4)(images.float())
        size = (WIDTH // 4, HEIGHT // 4)
        for channel, small in zip(images[0].float().numpy(), degraded[0], strict=True):
            expected = np.asarray(Image.fromarray(channel).resize(size, Image.Resampling.BICUBIC))
            np.testing.assert_allclose(small, expected, atol=1e-5)

    def test_blur_is_a_convolution(self, images):
        expected = scipy.ndimage.convolve(images.numpy(), KERNEL.numpy()[None, None], mode="mirror")
        np.testing.assert_allclose(Blur(KERNEL)(images), expected, atol=1e-12)

    def test_gaussian_blur(self, images):
        expected = scipy.ndimage.gaussian_filter(images.numpy(), 0.8, mode="mirror", axes=(2, 3), radius=3)
        np.testing.assert_allclose(GaussianBlur(0.8)(images), expected, atol=1e-12)

    def test_grayscale(self, images):
        expected = np.tensordot(images.numpy(), [0.299, 0.587, 0.114], (1, 0))
        np.testing.assert_allclose(Grayscale()(images)[:, 0], expected, atol=1e-7)

    def test_jpeg_is_the_codec_s(self):
        image = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        for picture, decoded in zip(image, JPEG(30)(image), strict=True):
            file = io.BytesIO()
            Image.fromarray((picture * 255).round().byte().permute(1, 2, 0).numpy()).save(file, "JPEG", quality=30)
            np.testing.assert_allclose(
                decoded.permute(1, 2, 0) * 255, np.asarray(Image.open(io.BytesIO(file.getvalue()))), atol=1e-3
            )


class TestMotionBlur:
    def test_a_horizontal_line(self):
        """Sampled at both ends and between: the end pixels get half the weight of the inner ones."""
        kernel = MotionBlur(4).kernel
        assert kernel.shape == (5, 5)
        assert kernel[[0, 1, 3, 4]].abs().max() == 0
        torch.testing.assert_close(kernel[2], torch.tensor([1, 2, 2, 2, 1]).double() / 8, atol=0.02, rtol=0)

    def test_the_angle_is_anticlockwise(self):
        """Rows count downwards, so a rising line has its right end in an upper row."""
        kernel = MotionBlur(6, 45).kernel
        assert kernel[:3, 4:].sum() > 0.3 and kernel[4:, :3].sum() > 0.3
        assert kernel[:2, :2].abs().max() == 0
        torch.testing.assert_close(MotionBlur(6, 90).kernel, MotionBlur(6).kernel.T)

    @pytest.mark.parametrize(("length", "angle"), [(3, 0), (7.5, 20), (9, 60), (4, 135)])
    def test_moments(self, length, angle):
        """Of a uniform line: mean 0 and variance length^2 / 12 along it; bilinear spreading adds at most 1/4."""
        kernel = MotionBlur(length, angle).kernel
        offsets = torch.arange(len(kernel)).double() - len(kernel) // 2
        down, right = kernel.sum(1), kernel.sum(0)
        assert abs(down @ offsets) < 1e-9 and abs(right @ offsets) < 1e-9
        along = math.cos(math.radians(angle)) ** 2, math.sin(math.radians(angle)) ** 2
        for weights, share in zip((right, down), along, strict=True):
            excess = weights @ offsets**2 - share * length**2 / 12
            assert -0.02 < excess < 0.02 * length**2 + 0.25


class TestReward:
    def test_is_the_log_density_up_to_a_constant(self, images):
        operator, std = SuperResolution(4), 0.3
        measurement = operator(images)[0]
        law = torch.distributions.Normal(operator(images), std)
        expected = law.log_prob(measurement).flatten(1).sum(1)
        scores = InverseProblem(operator, measurement, std)(images, ["", ""])
        torch.testing.assert_close(scores[0] - scores[1], (expected[0] - expected[1]).float())
        assert scores[0] == 0

    @pytest.mark.parametrize("name", LINEAR)
    def test_gradient_of_the_linear_ones(self, images, name):
        operator, std = LINEAR[name], 0.2
        measurement = torch.rand_like(operator(images)[:1])
        pictures = images.clone().requires_grad_()
        scores = InverseProblem(operator, measurement, std).score(pictures, ["", ""])
        (gradient,) = torch.autograd.grad(scores.sum(), pictures)
        expected = operator.adjoint(measurement - operator(images), images.shape) / std**2
        torch.testing.assert_close(gradient, expected)

    def test_gradient_of_jpeg_passes_straight_through(self):
        pictures = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)).requires_grad_()
        operator, measurement = JPEG(20), torch.rand(3, 16, 16)
        (gradient,) = torch.autograd.grad(InverseProblem(operator, measurement, 0.5)(pictures, [""]).sum(), pictures)
        expected = (measurement - operator(pictures.detach())) / 0.5**2
        torch.testing.assert_close(gradient, expected)

    def test_own_callable(self, images):
        reward = InverseProblem(lambda x: x.mean((2, 3)), torch.full((3,), 0.5), 0.1)
        expected = -((images.mean((2, 3)) - 0.5) ** 2).sum(1) / 0.02
        torch.testing.assert_close(reward(images, ["", ""]), expected.float())
        reward.probe(needs_gradient=True)

    def test_a_black_box_is_refused_where_gradients_are_needed(self):
        rounded = InverseProblem(lambda x: x.detach().round(), torch.zeros(3, 64, 64), 1, differentiable=False)
        rounded.probe()
        with pytest.raises(ValueError, match="gives no gradients"):
            rounded.probe(needs_gradient=True)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Inpainting(torch.ones(3, 4, 4)), r"mask has shape \[3, 4, 4\]; give \[H, W\]"),
        (lambda: Inpainting(torch.full((4, 4), 0.5)), "mask has values other than 0 and 1"),
        (lambda: Inpainting(torch.ones(4, 4))(torch.ones(1, 3, 8, 8)), r"mask has shape \[4, 4\], but images"),
        (lambda: SuperResolution(1), "factor=1 does not reduce"),
        (lambda: SuperResolution(3)(torch.ones(1, 3, 8, 9)), "factor=3 does not divide the images' sides 8 and 9"),
        (lambda: Blur(torch.ones(4, 3)), r"kernel has shape \[4, 3\]"),
        (lambda: GaussianBlur(0), "std=0 is no standard deviation"),
        (lambda: GaussianBlur(4)(torch.ones(1, 3, 8, 8)), "reaches beyond images"),
        (lambda: MotionBlur(math.nan), "length=nan is no length"),
        (lambda: JPEG(100), "quality=100 is no JPEG quality"),
        (lambda: as_reward("inverse_problem"), "needs operator and measurement and noise_std, so its name alone"),
        (lambda: InverseProblem(Grayscale(), torch.ones(1, 4, 4), 0), "noise_std=0; give a positive"),
        (
            lambda: InverseProblem(Grayscale(), torch.ones(3, 4, 4), 1)(torch.ones(2, 3, 4, 4), ["", ""]),
            r"measurement of shape \[3, 4, 4\], but its operator maps images of shape \[2, 3, 4, 4\] to \[2, 1, 4, 4\]",
        ),
    ],
)
def test_bad_input(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()

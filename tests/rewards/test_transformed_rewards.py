import math

import pytest
import torch

from diamond_diffusers.rewards import (
    CallableReward,
    ClippedReward,
    PlacedReward,
    Reward,
    StandardisedReward,
)

PROMPTS = ["one", "two", "three", "four"]


class Brightness(Reward):
    name = "brightness"
    licence = "free"
    source = "here"

    def __init__(self):
        self.layer = torch.nn.Linear(1, 1, bias=False).requires_grad_(False)
        self.layer.weight.fill_(10.0)

    def score(self, images, prompts):
        return self.layer(images.to(self.layer.weight).mean((1, 2, 3))[:, None])[:, 0]


@pytest.fixture
def images():
    """Of brightness 0, 1/4, 1/2 and 1."""
    return torch.tensor([0.0, 0.25, 0.5, 1.0])[:, None, None, None].expand(4, 3, 2, 2).clone()


def slopes(reward, images):
    images = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(reward(images, PROMPTS).sum(), images)
    return gradient.sum((1, 2, 3))


class TestTransforms:
    @pytest.mark.parametrize(
        ("reward", "scores", "slope"),
        [
            (StandardisedReward(Brightness(), 5, 2), [-2.5, -1.25, 0, 2.5], [5.0] * 4),
            (ClippedReward(Brightness(), 1, 6), [1, 2.5, 5, 6], [0.0, 10, 10, 0]),
            (ClippedReward(Brightness(), highest=6), [0, 2.5, 5, 6], [10.0, 10, 10, 0]),
            (Brightness() / 4, [0, 0.625, 1.25, 2.5], [2.5] * 4),
        ],
    )
    def test_scores_and_slopes(self, images, reward, scores, slope):
        torch.testing.assert_close(reward(images, PROMPTS), torch.tensor(scores))
        torch.testing.assert_close(slopes(reward, images), torch.tensor(slope))

    def test_the_scores_within_are_reported(self, images):
        reward = 2 * ClippedReward(Brightness(), 1, 6) + Brightness() / 4
        output = reward.evaluate(images, PROMPTS)
        raw = Brightness()(images, PROMPTS)
        assert list(output.terms) == ["brightness", "brightness_2"]
        torch.testing.assert_close(output.terms["brightness_2"], raw)
        torch.testing.assert_close(output.total, 2 * raw.clamp(1, 6) + raw / 4)
        assert reward.name == "2*clipped(brightness) + 0.25*brightness"
        assert (reward.licence, reward.source) == ("free", "here")

    def test_fitted(self, images):
        reward = StandardisedReward.fitted(Brightness(), images, PROMPTS)
        scores = reward(images, PROMPTS)
        torch.testing.assert_close((scores.mean(), scores.std()), (torch.tensor(0.0), torch.tensor(1.0)))

    def test_of_a_sum(self, images):
        reward = ClippedReward(Brightness() + Brightness(), highest=6)
        assert reward(images, PROMPTS).tolist() == [0, 5, 6, 6]
        reward.probe(needs_gradient=True)
        reward.to(dtype=torch.float64)
        assert all(part.layer.weight.dtype == torch.float64 for part in reward.rewards[0].rewards)

    def test_of_a_black_box(self, images):
        black_box = CallableReward(lambda images, prompts: images.numpy().mean((1, 2, 3)), name="mean")
        reward = ClippedReward(black_box, highest=0.3)
        assert not reward.differentiable
        assert not reward(images.requires_grad_(), PROMPTS).requires_grad
        with pytest.raises(ValueError, match=r"'mean' gives no gradients to the pixels"):
            reward.probe(needs_gradient=True)

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda: ClippedReward(Brightness(), 2, 1), r"lowest=2 and highest=1; give lowest < highest"),
            (lambda: ClippedReward(Brightness(), math.nan), r"lowest=nan"),
            (lambda: Brightness() / 0, r"'brightness' is divided by 0; give a finite number other than 0"),
            (lambda: Brightness() / math.inf, r"'brightness' is divided by inf; give"),
            (lambda: StandardisedReward(Brightness(), 0, -1), r"standard_deviation=-1 of reward"),
            (lambda: StandardisedReward(Brightness(), math.nan, 1), r"mean=nan of reward 'brightness' is not finite"),
            (
                lambda: StandardisedReward.fitted(Brightness(), torch.rand(1, 3, 2, 2), ["a"]),
                r"needs more than 1 images; give at least two",
            ),
            (
                lambda: StandardisedReward.fitted(Brightness(), torch.zeros(2, 3, 2, 2), ["a", "b"]),
                r"standard_deviation=0.0 of reward 'brightness' is not a positive number",
            ),
        ],
    )
    def test_bad_input(self, make, message):
        with pytest.raises(ValueError, match=message):
            make()


class Tracked(Brightness):
    """Notes where it is sent and whether it was there when it scored; "cpu:1" stands in for a second device."""

    def __init__(self):
        super().__init__()
        self.log = []

    def to(self, device=None, dtype=None):
        self.log.append(str(device))
        return super().to(dtype=dtype)

    def score(self, images, prompts, latents=None):
        self.log.append("score" + (" with graph" if torch.is_grad_enabled() else ""))
        scores = super().score(images, prompts)
        return scores if latents is None else scores + latents.square().sum(1)


class TestPlaced:
    def test_stays_where_it_is_put(self, images):
        reward = Tracked()
        placed = PlacedReward(reward, "cpu")
        placed.to("meta", torch.float64)
        torch.testing.assert_close(placed(images, PROMPTS), Brightness()(images, PROMPTS))
        assert reward.log == ["cpu", "None", "score"]
        assert reward.layer.weight.dtype == torch.float64
        assert (placed.name, placed.licence) == ("brightness", "free")

    def test_is_there_only_to_score_and_again_for_the_gradient(self, images):
        reward = Tracked()
        placed = PlacedReward(reward, "cpu:0", rest_device="cpu")
        images.requires_grad_()
        output = placed.evaluate(images, PROMPTS)
        assert reward.log == ["cpu", "cpu:0", "score", "cpu"]
        (gradient,) = torch.autograd.grad((torch.arange(4.0) * output.total).sum(), images)
        assert reward.log[4:] == ["cpu:0", "score with graph", "cpu"]
        expected = Brightness()(images, PROMPTS)
        torch.testing.assert_close(output.total, expected)
        torch.testing.assert_close(gradient, torch.autograd.grad((torch.arange(4.0) * expected).sum(), images)[0])
        assert not output.terms["brightness"].requires_grad

    def test_keeps_nothing_between_the_passes(self, images):
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
            PlacedReward(Tracked(), "cpu:0", rest_device="cpu")(images.requires_grad_(), PROMPTS)
        assert [tensor.shape for tensor in saved] == [images.shape]

    def test_gradients_reach_the_latents(self, images):
        latents = torch.randn(4, 2, generator=torch.Generator().manual_seed(0)).requires_grad_()
        placed = PlacedReward(Tracked(), "cpu:0", rest_device="cpu")
        placed(images, PROMPTS, latents=latents).sum().backward()
        torch.testing.assert_close(latents.grad, 2 * latents.detach())

    def test_takes_part_in_sums_and_probes(self, images):
        total = 2 * PlacedReward(Tracked(), "cpu:0", rest_device="cpu") + Brightness()
        total.probe(needs_gradient=True)
        torch.testing.assert_close(slopes(total, images), torch.full((4,), 30.0))

    @pytest.mark.parametrize("rest_device", [None, "cpu"])
    def test_is_probed_where_it_scores(self, rest_device):
        reward, seen = Tracked(), []

        def score(images, prompts):
            seen.append(str(images.device))
            return images.mean((1, 2, 3))

        reward.score = score
        placed = PlacedReward(reward, "cpu:0", rest_device)
        reward.log.clear()
        # The device of a run, on which nothing could be scored.
        placed.probe("meta", needs_gradient=True)
        assert seen == ["cpu"]
        assert reward.log == ([] if rest_device is None else ["cpu:0", "cpu"])

    def test_leaves_after_an_error(self, images):
        reward = Tracked()
        placed = PlacedReward(reward, "cpu:0", rest_device="cpu")
        with pytest.raises(ValueError, match=r"3 prompts for 4 images"):
            placed(images, PROMPTS[:3])
        assert reward.log[-1] == "cpu"

import numpy
import pytest
import torch
from torchvision.transforms.functional import to_pil_image

from diamond_diffusers.rewards import CallableReward, Reward, RewardOutput, WeightedSum

NAMES = ["one", "two", "three"]


class Brightness(Reward):
    name = "brightness"

    def score(self, images, prompts):
        return images.mean((1, 2, 3))


class Contrast(Reward):
    name = "contrast"

    def score(self, images, prompts):
        return images.double().std((1, 2, 3))


class BlackBox(Reward):
    name = "black_box"
    differentiable = False

    def score(self, images, prompts):
        return torch.from_numpy(images.cpu().numpy().max((1, 2, 3)))


def batch(requires_grad=False):
    images = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return images.requires_grad_(requires_grad), NAMES


def always(result, **options):
    return CallableReward(lambda images, prompts: result, name="always", **options)


@pytest.mark.parametrize("size", [0, -1, 1.5])
def test_bad_batch_sizes(size):
    images, prompts = batch()
    with pytest.raises(ValueError, match=rf"'always' has max_batch_size={size}; give a positive number, or None"):
        always(torch.zeros(3), max_batch_size=size)(images, prompts)


def test_a_reward_without_a_name_has_its_class_s():
    class Nameless(Reward):
        def score(self, images, prompts):
            return images.mean((1, 2, 3))

    assert (2 * Nameless()).name == "2*Nameless"
    renamed = Nameless()
    renamed.name = "other"
    assert list(renamed.evaluate(*batch()).terms) == ["other"]


class TestArithmetic:
    def test_total_is_the_weighted_sum_and_terms_are_unweighted(self):
        a, b, c = Brightness(), Contrast(), BlackBox()
        images, prompts = batch()
        output = (2 * a + b - 0.5 * c).evaluate(images, prompts)
        assert isinstance(output, RewardOutput)
        assert list(output.terms) == ["brightness", "contrast", "black_box"]
        for reward in (a, b, c):
            torch.testing.assert_close(output.terms[reward.name], reward(images, prompts))
        torch.testing.assert_close(output.total, 2 * a(images, prompts) + b(images, prompts) - c(images, prompts) / 2)
        assert output.total.dtype == torch.float32 and output.total.shape == (3,)

    def test_scaling_distributes_over_sums(self):
        a, b = Brightness(), Contrast()
        reward = -3 * (a - b * 2)
        assert isinstance(reward, WeightedSum) and reward.weights == [-3.0, 6.0] and reward.rewards == [a, b]

    def test_builtin_sum(self):
        assert sum([Brightness(), Contrast()]).weights == [1.0, 1.0]

    @pytest.mark.parametrize(
        ("make", "name"),
        [
            (lambda a, b: 2 * a + b, "2*brightness + contrast"),
            (lambda a, b: -a - 0.01 * b, "-brightness - 0.01*contrast"),
            (lambda a, b: b + 1e-7 * a, "contrast + 1e-07*brightness"),
        ],
    )
    def test_name_is_the_expression(self, make, name):
        assert make(Brightness(), Contrast()).name == name

    def test_same_name_twice_gets_a_suffix(self):
        images, prompts = batch()
        terms = (Brightness() + 2 * Brightness() + Brightness()).evaluate(images, prompts).terms
        assert list(terms) == ["brightness", "brightness_2", "brightness_3"]

    def test_licences_and_sources_are_listed_once(self):
        a, b = Brightness(), Contrast()
        a.licence, b.licence = "MIT", "Apache-2.0"
        assert (a + b + a).licence == "MIT, Apache-2.0"

    @pytest.mark.parametrize("make", [lambda a: a + 1, lambda a: 1 + a, lambda a: a - 1, lambda a: a * a])
    def test_only_rewards_add_and_only_numbers_scale(self, make):
        with pytest.raises(TypeError):
            make(Brightness())

    def test_a_weight_must_be_finite(self):
        with pytest.raises(ValueError, match=r"'brightness' got the weight nan; give a finite"):
            float("nan") * Brightness()

    def test_a_sum_needs_terms(self):
        with pytest.raises(ValueError, match=r"terms=\[\]; give at least one"):
            WeightedSum([])


class TestGradients:
    def test_total_carries_the_graph_and_terms_do_not(self):
        images, prompts = batch(requires_grad=True)
        output = (2 * Brightness() + Contrast()).evaluate(images, prompts)
        (gradient,) = torch.autograd.grad(output.total.sum(), images)
        (first,) = torch.autograd.grad(Brightness()(images, prompts).sum(), images)
        (second,) = torch.autograd.grad(Contrast()(images, prompts).sum(), images)
        torch.testing.assert_close(gradient, 2 * first + second)
        single = Brightness().evaluate(images, prompts)
        assert single.total.requires_grad
        assert not any(term.requires_grad for term in (output.terms | single.terms).values())

    def test_one_black_box_makes_the_sum_a_black_box(self):
        images, prompts = batch(requires_grad=True)
        reward = Brightness() + BlackBox()
        assert not reward.differentiable
        assert not reward.evaluate(images, prompts).total.requires_grad
        assert reward.score(images.detach(), prompts).shape == (3,)

    def test_no_graph_without_need(self):
        images, prompts = batch(requires_grad=True)
        with torch.no_grad():
            assert not Brightness()(images, prompts).requires_grad

    def test_a_missing_gradient_is_an_error(self):
        images, prompts = batch(requires_grad=True)
        with pytest.raises(ValueError, match=r"'always' declares itself differentiable, but its scores carry no grad"):
            always(torch.zeros(3), differentiable=True)(images, prompts)


class TestMove:
    def test_casts_held_modules_through_sums(self):
        class Linear(Brightness):
            def __init__(self):
                self.layer = torch.nn.Linear(1, 1)

        class Scorer(torch.nn.Linear):
            def forward(self, images, prompts):
                return super().forward(images.mean((1, 2, 3))[:, None])[:, 0]

        held, function = Linear(), CallableReward(Scorer(1, 1))
        moved = (held + 2 * function).to(dtype=torch.float64)
        assert isinstance(moved, WeightedSum)
        assert held.layer.weight.dtype == function.function.weight.dtype == torch.float64


@pytest.mark.parametrize("reward", [Brightness(), Brightness() + Contrast()], ids=["single", "sum"])
@pytest.mark.parametrize(
    ("images", "prompts", "error", "message"),
    [
        (
            torch.zeros(2, 3, 8, 8, dtype=torch.uint8),
            ["a", "b"],
            TypeError,
            "images of dtype torch.uint8; give a float",
        ),
        ([1.0], ["a"], TypeError, "images of list; give a floating"),
        (torch.zeros(3, 8, 8), ["a"], ValueError, r"shape \[3, 8, 8\]; give \[B, 3, H, W\]"),
        (torch.zeros(2, 4, 8, 8), ["a", "b"], ValueError, r"shape \[2, 4, 8, 8\]; give \[B, 3, H, W\]"),
        (torch.zeros(2, 3, 8, 8), ["a"], ValueError, "1 prompts for 2 images; give one prompt per image"),
        (torch.zeros(2, 3, 8, 8), "ab", TypeError, "prompts='ab'; give a list of strings"),
        (torch.zeros(2, 3, 8, 8), None, TypeError, "prompts=None; give a list of strings"),
        (torch.zeros(2, 3, 8, 8), ["a", 2], TypeError, r"prompts=\['a', 2\]; give a list of strings"),
        (torch.zeros(0, 3, 8, 8), [], ValueError, r"shape \[0, 3, 8, 8\]; give at least one pixel"),
        (torch.full((1, 3, 8, 8), 1.01), ["a"], ValueError, r"from 1.01 to 1.01; give values in \[0, 1\]"),
        (torch.linspace(-1, 1, 192).view(1, 3, 8, 8), ["a"], ValueError, r"from -1 to 1; give values in \[0, 1\]"),
        (torch.full((1, 3, 8, 8), torch.nan), ["a"], ValueError, r"from nan to nan; give values in \[0, 1\]"),
    ],
)
def test_bad_batches(reward, images, prompts, error, message):
    with pytest.raises(error, match=r"'brightness.*" + message):
        reward.evaluate(images, prompts)


def test_a_rounding_outside_the_range_is_no_error():
    images = torch.tensor([-5e-4, 1.0005]).expand(1, 3, 8, 2)
    assert Brightness()(images, ["a"]).isfinite().all()


@pytest.mark.parametrize(
    ("scores", "error", "message"),
    [
        (1.0, ValueError, r"a float \(1.0\) for 3 images; return one score per image"),
        (torch.zeros(3, 2), ValueError, r"scores of shape \[3, 2\] for 3 images; return shape \[3\]"),
        (torch.tensor(0.0), ValueError, r"scores of shape \[\] for 3 images"),
        (torch.tensor([0, torch.nan, torch.inf]), ValueError, r"nan for image 1 \(prompt 'two'\)"),
    ],
)
def test_bad_scores(scores, error, message):
    images, prompts = batch()
    with pytest.raises(error, match=r"'always' returned " + message):
        (Brightness() + always(scores)).evaluate(images, prompts)


class TestProbe:
    def test_accepts_good_rewards(self):
        Brightness().probe(image_size=(8, 6), needs_gradient=True)
        (Brightness() + BlackBox()).probe()

    def test_sees_the_size_and_the_prompt_of_the_run(self):
        seen = []
        CallableReward(lambda images, prompts: seen.append((images.shape, prompts)) or images.mean((1, 2, 3))).probe(
            "cpu", (8, 6), "a star"
        )
        assert seen[-1] == ((1, 3, 8, 6), ["a star"])

    def test_leaves_the_global_generator_alone(self):
        before = torch.get_rng_state()
        Brightness().probe()
        assert torch.equal(before, torch.get_rng_state())

    @pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
    def test_differentiates_inside_gradient_free_code(self, mode):
        with mode():
            Brightness().probe(needs_gradient=True)

    def test_names_the_black_box_and_the_alternative(self):
        with pytest.raises(
            ValueError,
            match=r"'black_box' gives no gradients.*'best_of_n' or 'smc' or guidance with gradient='tilted_mean'",
        ):
            (Brightness() + BlackBox()).probe(needs_gradient=True)

    def test_finds_a_gradient_that_is_not_finite(self):
        reward = CallableReward(lambda images, prompts: (images - images).sqrt().sum((1, 2, 3)), name="root")
        with pytest.raises(ValueError, match=r"'root' .* a gradient that is not finite"):
            reward.probe(needs_gradient=True)

    def test_finds_a_gradient_that_stops_before_the_pixels(self):
        weight = torch.ones(1, requires_grad=True)
        reward = CallableReward(lambda images, prompts: weight * len(images), name="stops", differentiable=True)
        with pytest.raises(ValueError, match=r"'stops' .* gives no gradient to the pixels"):
            reward.probe(needs_gradient=True)

    def test_finds_nan_and_wrong_shapes(self):
        with pytest.raises(ValueError, match=r"nan"):
            always(torch.tensor([torch.nan])).probe()
        with pytest.raises(ValueError, match=r"shape \[2\] for 1 images"):
            always(torch.zeros(2)).probe()


def sharpness(images, prompts):
    return images.diff(dim=-1).abs().mean((1, 2, 3))


def numpy_max(images, prompts):
    return images.numpy().max((1, 2, 3))


def colours(images, prompts):
    return [len(to_pil_image(image).getcolors(10**6)) for image in images]


class TestCallables:
    @pytest.mark.parametrize(("function", "differentiable"), [(sharpness, True), (numpy_max, False), (colours, False)])
    def test_detects_gradients_and_takes_the_function_s_name(self, function, differentiable):
        reward = CallableReward(function)
        assert reward.name == function.__name__
        assert reward.differentiable is differentiable
        images, prompts = batch(requires_grad=True)
        total = reward(images, prompts)
        assert total.requires_grad is differentiable and total.dtype == torch.float32
        numpy.testing.assert_allclose(total.detach(), function(images.detach(), prompts), rtol=1e-6)

    def test_the_given_flag_wins(self):
        images, prompts = batch(requires_grad=True)
        assert not CallableReward(sharpness, differentiable=False)(images, prompts).requires_grad

    def test_tries_only_once(self):
        calls = []
        reward = CallableReward(lambda images, prompts: calls.append(1) or images.mean((1, 2, 3)))
        reward.probe()
        tried = len(calls)
        assert reward.differentiable and len(calls) == tried

    def test_an_error_of_the_function_is_not_hidden(self):
        def broken(images, prompts):
            raise RuntimeError("out of order")

        with pytest.raises(RuntimeError, match=r"out of order"):
            CallableReward(broken).probe()

    def test_gradients_of_weights_alone_do_not_count(self):
        weight = torch.ones(1, requires_grad=True)
        assert not CallableReward(lambda images, prompts: weight * len(images)).differentiable

    def test_an_object_is_named_by_its_class(self):
        class Judge:
            def __call__(self, images, prompts):
                return images.mean((1, 2, 3))

        assert CallableReward(Judge()).name == "Judge"
        assert CallableReward(Judge(), name="judge").name == "judge"

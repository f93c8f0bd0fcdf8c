"""What a reward returns is understood where it can only mean one score for each image, else refused in a sentence."""

import asyncio
from collections import OrderedDict, UserDict, namedtuple
from dataclasses import dataclass
from fractions import Fraction
from functools import partial

import numpy
import pytest
import torch
from transformers.utils import ModelOutput

from diamond_diffusers.rewards import CallableReward, Reward, as_reward, register_reward
from diamond_diffusers.rewards.registry import REWARDS

PROMPTS = ["one", "two", "three"]
SCORES = torch.tensor([0.5, -1.0, 2.0])
Named = namedtuple("Named", ["scores", "info"])


@dataclass
class Output(ModelOutput):
    logits: torch.Tensor | None = None
    embeddings: torch.Tensor | None = None


@dataclass
class Plain:
    rating: torch.Tensor
    label: str = "good"


class Series:
    """What another library's column is."""

    def __array__(self, dtype=None, copy=None):
        return numpy.array([0.5, -1.0, 2.0])


def images(count=3, **options):
    return torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(0)).requires_grad_(**options)


def always(returned, **options):
    return CallableReward(lambda images, prompts: returned, name="always", **{"differentiable": False, **options})


@pytest.mark.parametrize(
    "returned",
    [
        SCORES,
        SCORES[:, None],
        SCORES.double(),
        SCORES.half(),
        SCORES.bfloat16(),
        (SCORES, {"seconds": 0.1}),
        (SCORES, None),
        (SCORES, ["a", "b", "c"]),
        (SCORES[:, None], torch.rand(3, 5)),
        [SCORES, {}],
        SCORES.tolist(),
        tuple(SCORES.tolist()),
        [Fraction(1, 2), -1, numpy.float32(2)],
        list(SCORES),
        tuple(SCORES[:, None]),
        [[0.5], [-1.0], [2.0]],
        [torch.tensor(0.5), -1.0, numpy.array([2.0])],
        SCORES.numpy(),
        SCORES.numpy()[:, None],
        SCORES.numpy()[::-1].copy()[::-1],
        numpy.array([0.5, -1, 2], dtype=object),
        numpy.array([0.5, -1, 2], dtype=numpy.float16),
        Series(),
        {"score": SCORES},
        {"score": SCORES.tolist(), "seconds": 0.1, "model": "judge"},
        OrderedDict(scores=SCORES, embeddings=torch.rand(3, 4)),
        UserDict(scores=SCORES),
        Output(logits=SCORES[:, None], embeddings=torch.rand(3, 4)),
        Output(logits=SCORES),
        Plain(SCORES),
        Named(SCORES, {"seconds": 0.1}),
    ],
)
def test_forms_of_the_same_scores(returned):
    total = always(returned)(images(), PROMPTS)
    assert total.dtype == torch.float32
    assert total.tolist() == SCORES.tolist()


@pytest.mark.parametrize("returned", [torch.tensor([2, 0, 1]), torch.tensor([2, 0, 1], dtype=torch.uint8), [2, 0, 1]])
def test_whole_numbers(returned):
    assert always(returned)(images(), PROMPTS).tolist() == [2, 0, 1]


@pytest.mark.parametrize(
    "returned", [torch.tensor([True, False, True]), [True, False, True], numpy.array([1, 0, 1]) > 0]
)
def test_truths(returned):
    assert always(returned)(images(), PROMPTS).tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    "returned",
    [
        0.5,
        torch.tensor(0.5),
        torch.full((1, 1, 1), 0.5),
        numpy.float16(0.5),
        numpy.array(0.5),
        [0.5],
        (0.5, {}),
        {"score": 0.5},
        {"score": [0.5], "seconds": 3.0},
    ],
)
def test_one_image_has_one_number(returned):
    assert always(returned)(images(1), ["one"]).tolist() == [0.5]
    # One at a time, as many images as there are.
    assert always(returned, max_batch_size=1)(images(), PROMPTS).tolist() == [0.5] * 3


@pytest.mark.parametrize(
    "form",
    [
        lambda scores: scores[:, None],
        lambda scores: (scores, {}),
        lambda scores: {"scores": scores.double()},
        lambda scores: list(scores),
        lambda scores: Output(logits=scores),
    ],
)
def test_the_graph_is_kept(form):
    given = images(requires_grad=True)
    reward = CallableReward(lambda images, prompts: form(images.mean((1, 2, 3))))
    assert reward.differentiable
    (gradient,) = torch.autograd.grad(reward(given, PROMPTS).sum(), given)
    torch.testing.assert_close(gradient, torch.full_like(gradient, 1 / 192))


@pytest.mark.parametrize(
    ("returned", "error", "message"),
    [
        (None, TypeError, r"None; .* its last line may lack a `return`"),
        ("0.5", TypeError, r"the text '0.5'; return a tensor with one score per image, of shape \[3\], such as"),
        (torch.empty(3, device="meta"), TypeError, "a meta tensor, which holds no numbers; load its weights"),
        (SCORES.to(torch.complex64), TypeError, r"scores of torch.complex64; return real numbers, such as `scores.r"),
        (SCORES.to_sparse(), TypeError, r"scores of layout torch.sparse_coo .*; return a dense tensor"),
        (numpy.array(["a", "b", "c"]), TypeError, r"an array of dtype <U1; return real numbers of shape \[3\]"),
        (numpy.array([1j, 2, 3]), TypeError, r"an array of dtype complex128; return real numbers"),
        (1j, TypeError, "a complex; return a tensor with one score per image"),
        ({0.5, 1.0, 2.0}, TypeError, "a set; return a tensor with one score per image"),
        ((score for score in [0.5, 1.0, 2.0]), TypeError, "a generator, which yields .*; return `list"),
        (map(float, "123"), TypeError, "a map, which yields one thing after another; return `list"),
        (0.5, ValueError, r"a float \(0.5\) for 3 images; return one score per image, or set its max_batch_size to 1"),
        (torch.tensor(0.5), ValueError, r"scores of shape \[\] for 3 images; return shape \[3\], or set its max_batch"),
        (torch.zeros(2), ValueError, r"scores of shape \[2\] for 3 images; return shape \[3\]"),
        (torch.zeros(3, 2), ValueError, r"scores of shape \[3, 2\] for 3 images"),
        (torch.zeros(1, 3), ValueError, r"scores of shape \[1, 3\] for 3 images"),
        (numpy.zeros(4), ValueError, r"scores of shape \[4\] for 3 images"),
        ([0.5, 1.0], ValueError, "a list of 2 entries for 3 images; return one number per image"),
        ([0.5, None, 1.0], TypeError, "a list with None for image 1; return one number per image"),
        ([0.5, "bad", 1.0], TypeError, "a list with 'bad' for image 1; return one number per image"),
        ((SCORES, SCORES), ValueError, "a tuple of two tensors that can both be the scores; return one of them"),
        ({"a": SCORES, "b": SCORES}, ValueError, r"a dict whose entries 'a' and 'b' can all be the scores; .*\['a'\]"),
        ({"label": "good"}, ValueError, r"a dict with the entries 'label', none of which has one score per image"),
        (Output(torch.zeros(3), torch.zeros(3)), ValueError, "an Output whose entries 'logits' and 'embeddings' can"),
        ([0.5, numpy.nan, 1.0], ValueError, r"nan for image 1 \(prompt 'two'\); scores must be finite"),
        (torch.tensor([0.5, 1.0, 1e300], dtype=torch.float64), ValueError, r"inf for image 2 \(prompt 'three'\)"),
    ],
)  # fmt: skip
def test_what_is_not_plain_is_refused(returned, error, message):
    with pytest.raises(error, match=f"^Reward 'always' returned {message}"):
        always(returned)(images(), PROMPTS)
    with pytest.raises(error, match=f"^Reward 'always' returned {message}"):
        (as_reward("brightness") + 2 * always(returned)).evaluate(images(), PROMPTS)


async def remote(images, prompts):
    await asyncio.sleep(0)
    return [0.5] * len(images)


class Remote:
    async def __call__(self, images, prompts):
        return [0.5] * len(images)


def yielding(images, prompts):
    yield 0.5


async def trickling(images, prompts):
    yield 0.5


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (remote, "'remote' is an asynchronous function, .* such as `lambda images, prompts: asyncio.run"),
        (partial(remote), "is an asynchronous function"),
        (Remote(), "'Remote' is an asynchronous function"),
        (yielding, "'yielding' is a generator, .*; collect its scores in a list"),
        (trickling, "'trickling' is a generator"),
    ],
)
def test_functions_that_do_not_return_are_refused_when_they_are_given(function, message):
    with pytest.raises(TypeError, match=message):
        as_reward(function)


@pytest.mark.filterwarnings("error")
def test_a_coroutine_is_refused_without_a_warning_of_python():
    class Awaited(Reward):
        async def score(self, images, prompts):
            return images.mean((1, 2, 3))

    with pytest.raises(TypeError, match="'Awaited' returned a coroutine; wait for it in a plain function"):
        Awaited()(images(), PROMPTS)


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setattr(REWARDS, "_entries", dict(REWARDS._entries))
    register_reward("pair_of_test")(lambda images, prompts: (images.mean((1, 2, 3)), {"seconds": 1.0}))
    register_reward("text_of_test")(lambda images, prompts: "good")
    register_reward("async_of_test")(remote)


def test_rewards_by_name_and_in_expressions(registered):
    given = images()
    expected = given.mean((1, 2, 3)).detach() * 2 + as_reward("brightness")(given.detach(), PROMPTS)
    torch.testing.assert_close(as_reward("2*pair_of_test + brightness")(given.detach(), PROMPTS), expected)
    with pytest.raises(TypeError, match="'text_of_test' returned the text 'good'"):
        as_reward("brightness - text_of_test")(given, PROMPTS)
    with pytest.raises(TypeError, match="'async_of_test' is an asynchronous function"):
        as_reward("brightness + async_of_test")


class TestProbe:
    def test_it_says_how_many_images_it_scored(self):
        seen = []

        def counting(images, prompts):
            seen.append(len(images))
            return images.mean((1, 2, 3))

        given = CallableReward(counting, differentiable=True)
        assert given.probe() == sum(seen) == 1
        assert (2 * given + given).probe() == 1
        seen.clear()
        tried = CallableReward(counting)
        assert tried.probe() == sum(seen) == 2
        assert tried.probe() == 1
        seen.clear()
        asked = CallableReward(counting)
        assert asked.differentiable
        assert asked.probe() == sum(seen) == 3
        assert asked.probe() == 1

    def test_one_number_is_tried_on_two_images(self):
        """The mean of a batch is no score of its images; how a list of one is squeezed is."""
        seen = []

        def average(images, prompts):
            seen.append(len(images))
            return images.mean()

        with pytest.raises(
            ValueError, match=r"'average' returned scores of shape \[\] for 2 images; .* max_batch_size"
        ):
            CallableReward(average, differentiable=True).probe()
        seen.clear()
        assert CallableReward(average, differentiable=True, max_batch_size=1).probe() == sum(seen) == 1
        seen.clear()
        squeezed = CallableReward(lambda images, prompts: seen.append(len(images)) or images.mean((1, 2, 3)).squeeze())
        assert squeezed.probe(needs_gradient=True) == sum(seen) == 4

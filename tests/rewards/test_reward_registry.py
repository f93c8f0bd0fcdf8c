import pytest
import torch

from diamond_diffusers.rewards import (
    REWARDS,
    CallableReward,
    HPSv21Reward,
    MiniatureReward,
    Reward,
    WeightedSum,
    as_reward,
    available_rewards,
    register_reward,
    registered_reward,
)
from diamond_diffusers.rewards.expressions import parse_expression

from ..plug_ins import install


@pytest.fixture
def toys(empty_registry):
    """Registers `mean` and `peak`, two classes that count their instances."""
    made = []

    @register_reward("mean")
    class Mean(Reward):
        name = "mean"

        def __init__(self):
            made.append(self.name)

        def score(self, images, prompts):
            return images.mean((1, 2, 3))

    @register_reward("peak")
    class Peak(Mean):
        name = "peak"

        def score(self, images, prompts):
            return images.amax((1, 2, 3))

    return made


@pytest.mark.parametrize(
    ("expression", "terms"),
    [
        ("clip", [(1, "clip")]),
        ("imagereward + 5*hpsv2 - 0.01*clip", [(1, "imagereward"), (5, "hpsv2"), (-0.01, "clip")]),
        ("-0.2*jpeg_size", [(-0.2, "jpeg_size")]),
        ("  +2. * a-.5*b+1e-3*c ", [(2, "a"), (-0.5, "b"), (1e-3, "c")]),
        ("2e*a", None),
        ("", None),
        ("a +", None),
        ("a b", None),
        ("5", None),
        ("5 a", None),
        ("a*5", None),
        ("a - -b", None),
        ("a / b", None),
        ("(a)", None),
        ("un-known.1", None),
        ("hps-v2.1", [(1, "hpsv2_1")]),
        ("2*hps-v2-3*hpsv2.1 + .5*hps-v2.1", [(2, "hpsv2"), (-3, "hpsv2_1"), (0.5, "hpsv2_1")]),
        ("hps-v23", [(1, "hps"), (-1, "v23")]),
        ("hps-v2.2", None),
        ("a-b", [(1, "a"), (-1, "b")]),
        ("a, b < 1", [(1, "a"), (1, "b")]),
        ("a > -1, 2*b - c", [(1, "a"), (2, "b"), (-1, "c")]),
        ("a, b", None),
        ("a < b", None),
        ("1 < a", None),
        ("a < 1 < 2", None),
        ("a == 1", None),
        ("a < 1,", None),
        (", a", None),
    ],
)
def test_expressions(expression, terms, monkeypatch):
    monkeypatch.setattr(REWARDS, "aliases", {"hps-v2": "hpsv2", "hps-v2.1": "hpsv2_1", "hpsv2.1": "hpsv2_1"})
    if terms is None:
        with pytest.raises(ValueError, match=r"was expected; write it like 'imagereward"):
            parse_expression(expression)
    else:
        assert parse_expression(expression) == terms


def test_the_place_of_a_mistake_is_named():
    with pytest.raises(ValueError, match=r"'a \+ 2 b' has 'b' at position 6 where '\*' was expected"):
        parse_expression("a + 2 b")
    with pytest.raises(ValueError, match=r"'a -' has the end where a reward name was expected"):
        parse_expression("a -")
    with pytest.raises(ValueError, match=r"'a, b' has the end where a comparison such as '< 0.2' \(join .* by '\+'\)"):
        parse_expression("a, b")
    with pytest.raises(ValueError, match=r"'a < ' has the end where a number was expected"):
        parse_expression("a < ")
    # Before anything that it names is made.
    with pytest.raises(ValueError, match=r"'1e400\*a' has '1e400' at position 0 where a finite number was expected"):
        parse_expression("1e400*a")
    with pytest.raises(ValueError, match=r"'a < -1e400' has '1e400' at position 5 where a finite number was expected"):
        parse_expression("a < -1e400")
    with pytest.raises(ValueError, match=r"'a, b < 1 2' has '2' at position 9 where ',' was expected"):
        parse_expression("a, b < 1 2")


class TestAsReward:
    def test_a_reward_is_returned_as_it_is(self, toys):
        reward = as_reward("mean")
        assert as_reward(reward) is reward

    def test_a_name_is_that_reward_and_an_expression_a_sum(self, toys):
        assert type(as_reward("mean")) is registered_reward("mean")
        reward = as_reward("2*mean - peak")
        assert isinstance(reward, WeightedSum) and reward.weights == [2, -1]
        assert as_reward(reward.name).weights == reward.weights
        images = torch.rand(2, 3, 4, 4)
        expected = 2 * images.mean((1, 2, 3)) - images.amax((1, 2, 3))
        torch.testing.assert_close(reward(images, ["a", "b"]), expected)

    def test_a_callable_is_wrapped(self):
        reward = as_reward(lambda images, prompts: images.mean((1, 2, 3)))
        assert isinstance(reward, CallableReward)

    def test_names_are_instantiated_when_used_and_after_all_names_are_known(self, toys):
        assert available_rewards() == ["mean", "peak"] and toys == []
        with pytest.raises(ValueError, match=r"reward is 'unknown'; choose one of mean, peak"):
            as_reward("mean + unknown")
        assert toys == []
        as_reward("peak")
        assert toys == ["peak"]

    def test_a_class_is_refused(self, toys):
        with pytest.raises(
            TypeError, match=r"reward=MiniatureReward is a class; give an instance, MiniatureReward\(\)"
        ):
            as_reward(MiniatureReward)

    def test_anything_else_is_refused(self):
        with pytest.raises(TypeError, match=r"reward=3 is no reward; give a Reward, a callable"):
            as_reward(3)


class TestRegistration:
    def test_a_function_is_a_reward_in_three_lines(self, empty_registry):
        @register_reward("brightness")
        def mean_of_pixels(images, prompts):
            return images.mean((1, 2, 3))

        assert available_rewards() == ["brightness"]
        assert as_reward("brightness").name == "brightness"
        images = torch.rand(2, 3, 4, 4)
        torch.testing.assert_close(as_reward("2*brightness")(images, ["a", "b"]), 2 * mean_of_pixels(images, []))

    def test_a_class_of_another_kind_is_instantiated_and_wrapped(self, empty_registry):
        @register_reward("judge")
        class Judge:
            def __call__(self, images, prompts):
                return images.mean((1, 2, 3))

        images = torch.rand(2, 3, 4, 4)
        output = as_reward("2*judge").evaluate(images, ["a", "b"])
        torch.testing.assert_close(output.terms["judge"], images.mean((1, 2, 3)))

    def test_an_instance_is_itself(self, empty_registry):
        reward = register_reward("zero")(CallableReward(lambda images, prompts: torch.zeros(len(images)), "zero"))
        assert as_reward("zero") is reward

    def test_a_name_has_one_owner_but_its_definition_can_be_repeated(self, empty_registry):
        def define():
            @register_reward("mine")
            def mine(images, prompts):
                return images.mean((1, 2, 3))

        define()
        define()
        with pytest.raises(ValueError, match=r"'mine' belongs to .*define.<locals>.mine; choose another"):
            register_reward("mine")(lambda images, prompts: None)

    @pytest.mark.parametrize("name", ["hps-v2", "2clip", "", "a b"])
    def test_a_name_is_an_identifier(self, name):
        with pytest.raises(ValueError, match=r"the reward name .* is no identifier; use letters"):
            register_reward(name)

    @pytest.mark.parametrize("alias", ["2x", "a--b", "a b", "-a", "a*b", ""])
    def test_an_alias_reads_as_one_word(self, alias):
        with pytest.raises(ValueError, match=r"is malformed; use letters, digits"):
            register_reward("mine", aliases=[alias])

    def test_an_alias_is_the_whole_name(self, empty_registry):
        @register_reward("contrast_ratio", aliases=["contrast-ratio", "contrast.ratio"])
        def contrast_ratio(images, prompts):
            return images.std((1, 2, 3))

        for word in ("contrast_ratio", "contrast-ratio", "contrast.ratio"):
            assert registered_reward(word) is contrast_ratio
            assert as_reward(f"2*{word}").name == "2*contrast_ratio"
        assert available_rewards() == ["contrast_ratio"]
        with pytest.raises(ValueError, match=r"'contrast-ratio' belongs to .*; choose another"):
            register_reward("other", aliases=["contrast-ratio"])(lambda images, prompts: None)

    def test_the_package_s_own(self):
        assert {"clip", "miniature", "pickscore", "hpsv2", "hpsv2_1", "aesthetic", "aesthetic_v1"} <= set(
            available_rewards()
        )
        assert registered_reward("hps-v2.1") is registered_reward("hpsv2_1") is HPSv21Reward


@pytest.fixture
def plug_in(tmp_path, monkeypatch):
    """An installed distribution that offers two rewards, one of which cannot be imported."""
    (tmp_path / "reward_plug_in.py").write_text("def redness(images, prompts):\n    return images[:, 0].mean((1, 2))\n")
    entries = "redness = reward_plug_in:redness\nbroken = reward_plug_in.absent:score\n"
    entries += "dashed-name = reward_plug_in:redness\n"
    install(monkeypatch, tmp_path, "reward-plug-in", f"[diamond_diffusers.rewards]\n{entries}")


class TestPlugIns:
    def test_are_listed_and_used_by_name(self, toys, plug_in):
        assert available_rewards() == ["broken", "dashed-name", "mean", "peak", "redness"]
        images = torch.rand(2, 3, 4, 4)
        output = as_reward("3*redness - mean").evaluate(images, ["a", "b"])
        torch.testing.assert_close(output.terms["redness"], images[:, 0].mean((1, 2)))

    def test_a_broken_one_is_named(self, toys, plug_in):
        with pytest.raises(ImportError, match=r"'broken' .* 'reward_plug_in.absent:score', .*; mend or uninstall"):
            as_reward("mean + broken")
        assert toys == []

    def test_a_name_that_no_expression_can_hold_is_refused(self, toys, plug_in):
        with pytest.raises(ImportError, match=r"'dashed-name' of an entry point .* is no identifier, .*; rename it"):
            registered_reward("dashed-name")

"""Trees of denoising states against the tilted mixture: what they return, what they cost, and how they grow."""

import math
from random import Random

import pytest
import torch

from diamond_diffusers import (
    BestOfN,
    DiffusionTreeSampling,
    DiffusionTreeSearch,
    GlassTransition,
    NoAlignment,
    ODETransition,
)
from diamond_diffusers.alignment import denoising_tree
from diamond_diffusers.alignment.budget import fit_to_budget
from diamond_diffusers.alignment.denoising_tree import DenoisingTree, Node, log_mean_exp
from diamond_diffusers.alignment.named import as_method
from diamond_diffusers.core.model import Conditions
from diamond_diffusers.rewards import Constraint

from ..core.exact_transition import ExactTransition
from ..core.mixture import make_mixture, standard_error
from ..core.mixture_model import LINEAR, MixtureModel, QuadraticReward, law_of, make_law
from .runs import COARSE_LEVELS, ENDED, falling_levels, run

MIXTURE = make_mixture(3)
EXACT = ExactTransition(MIXTURE)
STEPS = len(COARSE_LEVELS) - 1
NARROW = {"widening": 1.0, "widening_exponent": 0.5}
KINDS = (DiffusionTreeSampling, DiffusionTreeSearch)


def shares(law, z):
    """The probability `[..., C]` that a sample belongs to each cluster; its mean is the cluster's weight."""
    clusters = torch.distributions.MultivariateNormal(law.means, law.covariances)
    return (clusters.log_prob(z.unsqueeze(-2)) + law.log_weights).softmax(-1)


def errors(num_rollouts, num_images):
    """Of 16 samples of each tree: of their mean `[B, 3]` and of the clusters' shares `[B, C]`; of `log Z`, `[B]`."""
    tilted, evidence = LINEAR.tilt(MIXTURE)
    method = DiffusionTreeSampling(EXACT, 16, num_rollouts=num_rollouts)
    result = run(method, make_law(MIXTURE, LINEAR, num_images=num_images))
    z = result.latents.double()
    of_shares = shares(tilted, z).mean(1) - tilted.log_weights.exp()
    return z.mean(1) - tilted.mean, of_shares, result.log_evidence - evidence


def test_sampling_draws_from_the_tilted_law():
    """The tilt moves the means by .44, .51 and .23, and one twice as strong by up to .34 more.

    Trees so small are a little biased: whatever is unlucky at first is seldom visited again.
    """
    of_mean, of_shares, of_evidence = errors(40, 60)
    assert (of_mean.mean(0).abs() < 4 * standard_error(of_mean) + 0.03).all()
    assert (of_shares.mean(0).abs() < 4 * standard_error(of_shares) + 0.02).all()
    assert standard_error(of_mean).max() < 0.05 and standard_error(of_shares).max() < 0.03
    assert of_evidence.mean().abs() < 0.12 and standard_error(of_evidence) < 0.03


class Watched(DiffusionTreeSampling):
    """Shows its trees."""

    def returned(self, tree, random):
        GROWN[id(tree)] = tree
        return super().returned(tree, random)


GROWN = {}


def errors_of_laws(num_rollouts, num_images):
    """As `errors`, of the law that a tree draws from in place of some draws."""
    tilted, evidence = LINEAR.tilt(MIXTURE)
    GROWN.clear()
    result = run(Watched(EXACT, num_rollouts=num_rollouts), make_law(MIXTURE, LINEAR, num_images=num_images))
    means, of_shares = [], []
    for tree in GROWN.values():
        z = torch.stack([leaf.sample.latents[leaf.row] for leaf in tree.leaves]).double()
        chosen = [
            math.prod(
                math.exp(node.value - node.parent.value) / len(node.parent.children)
                for node in leaf.path
                if node.parent is not None
            )
            for leaf in tree.leaves
        ]
        assert len(z) == num_rollouts and math.isclose(sum(chosen), 1)
        chosen = torch.tensor(chosen, dtype=torch.float64)
        means.append(chosen @ z)
        of_shares.append(chosen @ shares(tilted, z))
    assert len(means) == num_images
    of_shares = torch.stack(of_shares) - tilted.log_weights.exp()
    return torch.stack(means) - tilted.mean, of_shares, result.log_evidence - evidence


@pytest.mark.slow
def test_larger_trees_are_nearer_to_the_tilted_law():
    """The root mean square of the errors of a tree's law falls, if not quite as that of independent samples, by .32.

    So does the spread of `log Z`, from .16 to .05. Its mean is .14 too low in the larger trees: whatever is unlucky
    at first is seldom visited again.
    """
    *few, few_evidences = errors_of_laws(40, 24)
    *many, evidences = errors_of_laws(400, 24)
    for less, more in zip(few, many, strict=True):
        assert more.square().mean().sqrt() < 0.7 * less.square().mean().sqrt()
    assert evidences.std() < 0.7 * few_evidences.std()
    assert evidences.mean().abs() < 0.2


def test_a_narrow_search_finds_more_than_the_best_of_as_many_evaluations():
    levels, found = falling_levels(8), []
    for method in (as_method("narrow_tree_search"), BestOfN(GlassTransition())):
        law = make_law(MIXTURE, LINEAR, num_images=60, reward_scale=3.0)
        result = run(fit_to_budget(method, law, levels, 100), law, levels)
        assert law.cost.network_evaluations <= 60 * 100
        found.append(result.rewards.double().amax(1))
    search, best = found
    assert search.mean() - best.mean() > 2 * math.hypot(standard_error(search), standard_error(best))


# Of two images, by the number of rollouts that all start at the root.
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("transition", "whole"), [(GlassTransition(), STEPS), (GlassTransition(2), 2 * STEPS)])
def test_rollouts_from_the_root_cost_plain_samples(kind, transition, whole):
    family, offsets = MixtureModel(MIXTURE), {"offset": torch.zeros(2, 1)}
    reward = QuadraticReward({"": (1.0, 0.0, 0.0)})
    law = law_of(family, Conditions(offsets, offsets, 2.0), [""] * 2, reward)
    run(kind(transition, num_rollouts=3), law)
    assert law.cost.network_evaluations == family.evaluations == 2 * 2 * 3 * whole
    assert law.cost.decodes == family.decoded == law.cost.reward_calls == reward.calls == 2 * 3


# What a further child of the last state that branches costs, with its prediction known, is an evaluation.
@pytest.mark.parametrize("budget", [5, 6, 23, *(pytest.param(budget, marks=pytest.mark.slow) for budget in (9, 61))])
def test_a_budget_is_spent_to_the_last_evaluation(budget):
    for kind in KINDS:
        law = make_law(MIXTURE, LINEAR, num_images=2, reward_scale=2.0)
        method = fit_to_budget(kind(**NARROW), law, COARSE_LEVELS, budget)
        result = run(method, law, seed=[1, 2])
        assert law.cost.network_evaluations == law.model.evaluations == 2 * budget
        assert len(result.trace.steps) == method.num_stages(law, COARSE_LEVELS)


def test_budgets_bound_evaluations_and_scores():
    law = make_law(MIXTURE, LINEAR, num_images=2)
    with pytest.raises(ValueError, match="max_network_evaluations is 4, but an image of DiffusionTreeSearch takes at"):
        fit_to_budget(DiffusionTreeSearch(), law, COARSE_LEVELS, 4)
    # The first rollouts are those of the particles, so that a single one costs what two do.
    for count in (3, 20):
        paired = DiffusionTreeSearch(num_particles=2, num_rollouts=7)
        assert fit_to_budget(paired, law, COARSE_LEVELS, max_reward_calls=count).num_rollouts == count
    scored = fit_to_budget(DiffusionTreeSearch(), law, COARSE_LEVELS, max_reward_calls=7)
    assert scored == DiffusionTreeSearch(num_rollouts=7)
    both = fit_to_budget(DiffusionTreeSearch(**NARROW), law, COARSE_LEVELS, 60, 4)
    run(both, law)
    assert law.cost.reward_calls == 2 * 4 and law.cost.network_evaluations <= 2 * 60
    # Each particle begins with a plain sample.
    with pytest.raises(ValueError, match="takes at least 10 in 5 steps"):
        fit_to_budget(DiffusionTreeSampling(num_particles=2), law, COARSE_LEVELS, 9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_particles", [1, 2])
def test_a_reward_scale_of_zero_returns_the_plain_samples(kind, num_particles):
    plain = run(NoAlignment(GlassTransition(), num_particles), make_law(MIXTURE, LINEAR, num_images=2), seed=[1, 2])
    law = make_law(MIXTURE, LINEAR, num_images=2, reward_scale=0.0)
    method = kind(num_particles=num_particles, num_rollouts=6, **NARROW)
    assert torch.equal(run(method, law, seed=[1, 2]).latents, plain.latents)


@pytest.mark.parametrize("budget", [None, 33])
def test_trees_do_not_depend_on_their_batch(budget):
    """Though rollouts of other trees start at other levels, and other trees end earlier."""
    method = DiffusionTreeSampling(num_rollouts=10, num_particles=2, round_size=2, **NARROW).within(budget, None)

    def drawn(*seeds):
        law = make_law(MIXTURE, LINEAR, num_images=len(seeds), reward_scale=2.0, particle_batch_size=2)
        return run(method, law, seed=seeds)

    together, alone = drawn(1, 2, 3), drawn(3)
    assert torch.equal(together.latents[2:], alone.latents) and torch.equal(together.images[2:], alone.images)
    assert torch.equal(together.log_evidence[2:], alone.log_evidence)


def test_rounds_are_evaluated_together_and_may_end_a_run():
    law = make_law(MIXTURE, LINEAR, num_images=2)
    method = DiffusionTreeSearch(num_rollouts=6, round_size=4)
    seen = []
    result = run(method, law, on_step=lambda index, x: seen.append(len(x)))
    assert seen == [2, 2 * 4, 2 * 1] and method.num_stages(law, COARSE_LEVELS) == 3
    assert law.model.largest_batch == 2 * 4
    assert torch.equal(result.trace.steps[-1].log_evidence, result.log_evidence)
    expected = law.rows(result.latents[:, 0]).evaluate(result.latents[:, 0])
    torch.testing.assert_close(result.rewards[:, 0], expected.total)
    torch.testing.assert_close(result.images[:, 0], expected.images)
    ended = run(method, make_law(MIXTURE, LINEAR), on_step=lambda index, x: ENDED)
    assert len(ended.trace.steps) == 1 and ended.rewards.shape == (1, 1)
    with pytest.raises(ValueError, match="callback_on_step_end returned other latents"):
        run(method, make_law(MIXTURE, LINEAR), on_step=lambda index, x: x)


@pytest.mark.parametrize("kind", [DiffusionTreeSampling, pytest.param(DiffusionTreeSearch, marks=pytest.mark.slow)])
def test_of_leaves_that_hold_a_constraint_one_is_returned(kind):
    def bounded(bound):
        reward = LINEAR + Constraint(QuadraticReward({"": (0.0, 0.0, 1.0)}), ">", bound)
        return run(kind(EXACT, num_rollouts=12), make_law(MIXTURE, reward, num_images=4))

    held, none = bounded(0.0), bounded(50.0)
    assert (held.violation == 0).all() and torch.isfinite(held.log_evidence).all()
    assert (none.violation > 0).all() and torch.isneginf(none.log_evidence).all()


def test_a_value_of_infinity_is_refused():
    law = make_law(MIXTURE, QuadraticReward({"": (0.0, 0.0, 0.0)}), reward_scale=10.0)
    law.reward.score = lambda images, prompts: torch.full((len(images),), torch.finfo(torch.float32).max)
    with pytest.raises(ValueError, match=r"the largest value is inf.*lower reward_scale"):
        run(DiffusionTreeSampling(), law)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_rollouts": 0}, "num_rollouts is 0; give a whole number of at least 1"),
        ({"round_size": 0}, "round_size is 0"),
        ({"max_evaluations": 0}, "max_evaluations is 0"),
        ({"num_branchings": -1}, "num_branchings is -1; give a whole number of at least 0, or None"),
        ({"widening": 0.0}, r"widening is 0\.0; give a number above 0"),
        ({"widening_exponent": 1.0}, r"widening_exponent is 1\.0; give a number between 0 and 1"),
        ({"transition": ODETransition()}, "which draws no noise, so that the children"),
        ({"exploration": -1.0}, r"exploration is -1\.0; give a number of at least 0"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        DiffusionTreeSearch(**options)


def grown(kind, num_rollouts, widening=1.0, widening_exponent=0.5, depth=3):
    """A tree of random values, each rollout of which makes the states of all further levels."""
    tree, random = DenoisingTree(widening, widening_exponent), Random(0)
    method = kind(num_particles=3)
    for _ in range(num_rollouts):
        start = tree.start(lambda node: method.choose(node, random))
        states = [Node(level) for level in range(start.level + 1, depth)]
        tree.add(start, [*states, Node(depth, sample=object())], random.gauss(0.0, 2.0))
    return tree, method


def below(node):
    return [node, *(state for child in node.children for state in below(child))]


@pytest.mark.parametrize("kind", KINDS)
def test_a_tree_widens_with_its_visits_and_backs_its_values_up(kind):
    tree, _ = grown(kind, 200)
    states = below(tree.root)
    assert sum(node.sample is not None for node in states) == len(tree.leaves) == 200
    for node in states:
        if node.sample is None:
            values = torch.tensor([child.value for child in node.children], dtype=torch.float64)
            assert node.value == pytest.approx(values.logsumexp(0).item() - math.log(len(values)))
            # The last child came when there was room for it, and the next one will when there is.
            assert len(node.children) < node.visits**0.5 + 1
            assert node.visits >= 1 + len(node.children)
    assert len(tree.root.children) > 10 and max(len(node.children) for node in states if node.level == 2) > 2
    assert tree.best_value == max(leaf.value for leaf in tree.leaves)


def test_a_tree_that_is_too_narrow_to_grow_grows_where_it_may(monkeypatch):
    monkeypatch.setattr(denoising_tree, "MAX_PASSES", 5)
    tree, _ = grown(DiffusionTreeSampling, 8, widening=0.1, widening_exponent=0.1)
    assert len(tree.leaves) == 8 and len(tree.root.children) == 1


def test_sampling_goes_down_in_proportion_to_exponentiated_values():
    node = Node(0, children=[Node(1, value=value) for value in (0.3, -1.0, 1.2, -math.inf)])
    random, count = Random(0), 20_000
    chosen = [node.children.index(DiffusionTreeSampling().choose(node, random)) for _ in range(count)]
    expected = torch.tensor([0.3, -1.0, 1.2, -math.inf]).double().softmax(0)
    found = torch.bincount(torch.tensor(chosen), minlength=4) / count
    assert ((found - expected).abs() <= 4 * (expected * (1 - expected) / count).sqrt()).all()
    for child in node.children:
        child.value = -math.inf
    assert {DiffusionTreeSampling().choose(node, random).value for _ in range(9)} == {-math.inf}


def test_search_grows_by_upper_confidence_bounds_and_returns_by_values():
    node = Node(0, visits=10, children=[Node(1, value=1.0, visits=6), Node(1, value=0.5, visits=1)])
    first, second = node.children
    # 0.5 + c sqrt(log 10) passes 1 + c sqrt(log 10 / 6) at c = 0.557.
    assert DiffusionTreeSearch(exploration=0.55).choose(node, Random(0)) is first
    assert DiffusionTreeSearch(exploration=0.56).choose(node, Random(0)) is second
    tree, method = grown(DiffusionTreeSearch, 60)
    returned = method.returned(tree, Random(0))
    leaf = tree.root
    while leaf.children:
        leaf = max(leaf.children, key=lambda child: child.value)
    assert returned[0] is leaf and len({id(each) for each in returned}) == 3
    assert log_mean_exp([0.0, math.log(3.0)]) == pytest.approx(math.log(2.0))
    assert log_mean_exp([-math.inf, -math.inf]) == -math.inf

"""What an image receives depends on its own prompt, conditions and generator; not on its neighbours, nor on chunks."""

import pytest
import torch

from diamond_diffusers import (
    SMC,
    AncestralTransition,
    BeamSearch,
    BestOfN,
    DiffusionTreeSampling,
    DiffusionTreeSearch,
    GlassPosterior,
    GlassTransition,
    Guidance,
    Guide,
    NoAlignment,
    PathSearch,
    RandomSearch,
    RolloverSearch,
    ValueDecoding,
    ZeroOrderSearch,
)
from diamond_diffusers.alignment.random_source import RandomSource
from diamond_diffusers.core.model import Conditions

from ..core.mixture import make_mixture, seeded
from ..core.mixture_model import MixtureModel, QuadraticReward, at_rows, law_of, make_law, unconditional
from ..products import diagonal
from .runs import COARSE_LEVELS, run

MIXTURE = make_mixture(3)
DIRECTIONS = {"right": (3.0, 0.0, 0.0), "down": (0.0, -3.0, 1.0), "nowhere": (0.0, 0.0, 0.0)}
PROMPTS = ["right", "down", "nowhere", "right"]
OFFSETS = torch.tensor([[0.0, 0.0, 0.0], [2.0, 0.0, -1.0], [0.0, 1.0, 0.0], [-3.0, 0.5, 1.0]])
SEEDS = [11, 12, 13, 14]
LOOK_AHEADS = GlassPosterior(3, 4)

METHODS = {
    "none": NoAlignment(AncestralTransition(), num_particles=3),
    "best_of_n": BestOfN(num_particles=3),
    "smc": SMC(4, LOOK_AHEADS, GlassTransition(2), resampling_threshold=0.9),
    "guided smc": SMC(4, LOOK_AHEADS, GlassTransition(2), guide=Guide("pathwise")),
    "guidance": Guidance(LOOK_AHEADS, Guide("pathwise"), transition=GlassTransition(2), num_particles=2),
    "tilted mean": Guidance(LOOK_AHEADS, Guide("tilted_mean"), num_particles=2),
    "beam_search": BeamSearch(2, 3, LOOK_AHEADS, GlassTransition(2)),
    "path_search": PathSearch(2, 2, LOOK_AHEADS),
    "rollover_search": RolloverSearch(2, 3, LOOK_AHEADS, GlassTransition(2)),
    "value_decoding": ValueDecoding(2, 3, LOOK_AHEADS, GlassTransition(2), block_size=2),
    "random_search": RandomSearch(AncestralTransition(), 2, num_candidates=5, round_size=2),
    "diffusion_tree_sampling": DiffusionTreeSampling(num_particles=2, num_rollouts=7, widening=1.0),
    "diffusion_tree_search": DiffusionTreeSearch(num_rollouts=6, widening=1.0, widening_exponent=0.5, round_size=2),
    "zero_order_search": ZeroOrderSearch(num_particles=2, num_candidates=5, round_size=2),
}


def run_images(alignment, images, negative=False, **options):
    """The images of these indices, each with its own prompt, conditions and generator."""
    negative_features = {"offset": -OFFSETS[images]} if negative else None
    conditions = Conditions({"offset": OFFSETS[images]}, negative_features, 1.5)
    prompts = [PROMPTS[image] for image in images]
    law = law_of(MixtureModel(MIXTURE), conditions, prompts, QuadraticReward(DIRECTIONS, 0.1), 2.0, **options)
    return run(alignment, law, seed=[SEEDS[image] for image in images]), law


def fields(result):
    """Everything that a result says of its images, image by image."""
    tensors = [result.latents, result.log_weights, result.rewards, result.images, *result.reward_terms.values()]
    if result.log_evidence is not None:
        tensors.append(result.log_evidence)
    for step in result.trace.steps:
        figures = (getattr(step, name) for name in result.trace.figures())
        tensors += [figure for figure in figures if figure is not None]
    return tensors


def assert_same(first, second, index=slice(None), **tolerance):
    for one, other in zip(fields(first), fields(second), strict=True):
        torch.testing.assert_close(one[index], other, **tolerance)


@pytest.mark.parametrize("name", METHODS)
def test_images_are_the_same_in_a_batch_and_alone(name):
    together, _ = run_images(METHODS[name], [0, 1, 2, 3])
    for image in range(4):
        alone, _ = run_images(METHODS[name], [image])
        assert_same(together, alone, slice(image, image + 1), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", METHODS)
def test_permuting_the_images_permutes_the_results(name):
    order = [2, 0, 3, 1]
    plain, _ = run_images(METHODS[name], [0, 1, 2, 3])
    permuted, _ = run_images(METHODS[name], order)
    assert_same(plain, permuted, order, atol=1e-4, rtol=1e-4)
    if isinstance(METHODS[name], SMC):
        assert any(step.resampled.any() and not step.resampled.all() for step in plain.trace.steps[:-1])


@pytest.mark.parametrize(("name", "batch_size"), diagonal([*METHODS], [1, 5, 1000]))
def test_the_batch_size_of_particles_changes_nothing_but_memory(name, batch_size):
    whole, law = run_images(METHODS[name], [0, 1, 2], negative=True)
    chunked, chunked_law = run_images(METHODS[name], [0, 1, 2], negative=True, particle_batch_size=batch_size)
    assert_same(whole, chunked, atol=1e-4, rtol=1e-4)
    # Look-aheads of one particle stay together where they are differentiated.
    assert chunked_law.model.largest_batch <= batch_size
    costs = [{**counted.cost.as_dict(), "seconds": 0} for counted in (law, chunked_law)]
    assert costs[0] == costs[1]


def test_a_batch_size_below_one_is_refused():
    with pytest.raises(ValueError, match="particle_batch_size is 0"):
        make_law(MIXTURE, particle_batch_size=0)


def test_rewards_and_conditions_belong_to_the_image_that_owns_the_particle():
    result, law = run_images(METHODS["smc"], [0, 1, 2, 3])
    reward = law.reward
    for image, prompt in enumerate(PROMPTS):
        z = result.latents[image]
        expected = z.double() @ reward.linear[prompt] - 0.05 * z.double().square().sum(1)
        torch.testing.assert_close(result.rewards[image].double(), expected, atol=1e-5, rtol=1e-5)
    # The unrewarded image stays around its own mean.
    plain, _ = run_images(NoAlignment(num_particles=400), [0, 1, 2, 3])
    expected = OFFSETS + MIXTURE.mean.float()
    torch.testing.assert_close(plain.latents.mean(1), expected, atol=0.2, rtol=0)


def test_classifier_free_guidance_weighs_the_two_predictions():
    conditions = Conditions({"offset": OFFSETS[1:2]}, {"offset": OFFSETS[3:4]}, 1.5)
    law = law_of(MixtureModel(MIXTURE), conditions, [""])
    x = torch.randn(1, 3, generator=seeded(0))
    both = at_rows(law, 1).network.predict(x, 1.0)
    positive, negative = (
        MixtureModel(MIXTURE).denoise(x, 1.0, Conditions({"offset": offset})) for offset in (OFFSETS[1:2], OFFSETS[3:4])
    )
    torch.testing.assert_close(both, negative + 1.5 * (positive - negative))


@pytest.mark.parametrize("name", METHODS)
def test_latents_may_have_any_shape(name):
    """Images of `[1, 3, 1]` numbers are drawn as their flat counterparts are."""
    law = make_law(MIXTURE, QuadraticReward({"": (1.0, 0.0, -1.0)}), num_images=2)
    flat, shaped = (run(METHODS[name], law, seed=[1, 2], shape=shape) for shape in [(3,), (1, 3, 1)])
    assert shaped.latents.shape == (2, METHODS[name].num_particles, 1, 3, 1)
    torch.testing.assert_close(shaped.latents.flatten(2), flat.latents)
    torch.testing.assert_close(shaped.rewards, flat.rewards)


@pytest.mark.parametrize("name", METHODS)
def test_a_run_repeats_itself_with_the_same_seed(name):
    first, _ = run_images(METHODS[name], [0, 1])
    again, _ = run_images(METHODS[name], [0, 1])
    assert_same(first, again, atol=0, rtol=0)
    law = make_law(MIXTURE, QuadraticReward({"": (1.0, 0.0, -1.0)}), num_images=2)
    one_generator, another = run(METHODS[name], law, seed=1), run(METHODS[name], law, seed=2)
    assert torch.equal(one_generator.latents, run(METHODS[name], law, seed=1).latents)
    assert not torch.equal(one_generator.latents, another.latents)


def test_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    run_images(METHODS["guided smc"], [0, 1])
    assert torch.equal(torch.get_rng_state(), before)


def test_a_wrong_number_of_generators_is_refused():
    with pytest.raises(ValueError, match="generator holds 2 generators for 3 images"):
        RandomSource([seeded(0), seeded(1)], 3)
    one_in_a_list, alone = RandomSource([seeded(0)], 3), RandomSource(seeded(0), 3)
    assert torch.equal(one_in_a_list.normal(2, (3,)), alone.normal(2, (3,)))


def test_models_without_conditions_of_their_own_share_the_law():
    law = law_of(MixtureModel(MIXTURE), unconditional(2), ["", ""])
    result = run(NoAlignment(), law, COARSE_LEVELS, seed=[5, 5])
    torch.testing.assert_close(result.latents[0], result.latents[1])
    assert result.rewards is None and result.images is None and result.log_evidence is None

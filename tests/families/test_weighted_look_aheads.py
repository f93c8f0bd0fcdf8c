"""The Weighted Diamond Map on every family: by the ODE of ordinary models and by few-step maps with a score model."""

import pytest
import torch

from diamond_diffusers import DiamondMapPipeline, Guidance, Guide, WeightedPosterior

from ..conftest import redness
from .all_families import FAMILIES, family_of

NUM_SAMPLES = 2
PROMPT = "a red circle"


def guided(pipe, family, **options):
    alignment = Guidance(WeightedPosterior(NUM_SAMPLES, **options), Guide("pathwise"))
    generator = torch.Generator().manual_seed(0)
    return pipe(PROMPT, reward=redness, alignment=alignment, generator=generator, output_type="pt", **family.call)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_takes_weighted_look_aheads(name):
    family = family_of(name)
    runs = []
    few_step = DiamondMapPipeline(family.build(), few_step=True)
    with pytest.raises(ValueError, match="needs the posterior mean"):
        guided(few_step, family, weights="consistent")
    runs.append(guided(few_step, family, weights="likelihood"))
    if name != "sana_sprint":
        ordinary = DiamondMapPipeline(family.build(), few_step=False)
        with pytest.raises(ValueError, match="num_map_steps is 1"):
            guided(ordinary, family, num_map_steps=1)
        runs.append(guided(ordinary, family, num_map_steps=2))
        few_step.score_model = ordinary
        runs.append(guided(few_step, family))
    for out in runs:
        assert out.images.isfinite().all()
        for step in out.trace.steps:
            size = step.look_ahead_effective_sample_size
            assert (size >= 1 - 1e-5).all() and (size <= NUM_SAMPLES + 1e-5).all()
            assert step.gradient_norm.isfinite().all()
        assert out.trace.steps[-1].gradient_norm > 0

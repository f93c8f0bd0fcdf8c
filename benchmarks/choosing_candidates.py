"""The methods that are tried in the cells of `alignment="auto"`, for `benchmarks.choosing`."""

from __future__ import annotations

from diamond_diffusers import (
    BeamSearch,
    BestOfN,
    DiamondPosterior,
    DiamondTransition,
    GlassPosterior,
    GlassTransition,
    Guidance,
    Guide,
    PosteriorResampling,
    PosteriorSMC,
    WeightedPosterior,
)
from diamond_diffusers.alignment.automatic import Cell
from diamond_diffusers.alignment.base import Method
from diamond_diffusers.alignment.methods.smc import SMC
from diamond_diffusers.alignment.named import as_method

_BLACK_BOX: dict[str, Method | str] = {
    "best_of_n": BestOfN(),
    "zero_order_search": "zero_order_search",
    "path_search": "path_search",
    "beam_search": BeamSearch(branching=2),
    "smc": "smc",
    "best_of_smc": SMC(default_selection="best"),
    "best_of_smc_once": SMC(num_valuations=1, default_selection="best"),
    "fk_steering": "fk_steering",
    "value_decoding": "value_decoding",
    "rollover_search": "rollover_search",
    "diffusion_tree_search": "diffusion_tree_search",
}
_DENOISER: dict[str, Method | str] = {
    "glass_smc": SMC(transition=GlassTransition(num_inner_steps=2), default_selection="best"),
    "glass_tilted_mean": Guidance(GlassPosterior(num_samples=4), Guide("tilted_mean")),
}
_FLOW_MAP: dict[str, Method | str] = {
    "weighted_tilted_mean": Guidance(WeightedPosterior(num_samples=4), Guide("tilted_mean")),
    "weighted_resampling": PosteriorResampling(posterior=WeightedPosterior(num_samples=4)),
}
_DIFFERENTIABLE: dict[str, Method | str] = {
    "guidance": Guidance(),
    "guidance_of_4": Guidance(num_particles=4),
    "pathwise_guidance": Guidance(guide=Guide("pathwise")),
    "best_of_guided_smc": SMC(guide=Guide(), default_selection="best"),
    "fmrg": "fmrg",
    "weighted_diamond_map": "weighted_diamond_map",
}
CANDIDATES: dict[str, dict[str, Method | str]] = {
    "base": {**_BLACK_BOX, **_DENOISER, **_DIFFERENTIABLE},
    "few_step": {**_BLACK_BOX, **_FLOW_MAP, **_DIFFERENTIABLE},
    "both": {**_BLACK_BOX, **_DENOISER, **_FLOW_MAP, **_DIFFERENTIABLE},
    "map": {
        **_BLACK_BOX,
        **_DIFFERENTIABLE,
        "diamond_best_of_n": BestOfN(transition=DiamondTransition()),
        "diamond_beam_search": BeamSearch(posterior=DiamondPosterior(1), transition=DiamondTransition(), branching=2),
        "posterior_smc": "posterior_smc",
        "best_of_posterior_smc": PosteriorSMC(default_selection="best"),
        "best_of_guided_posterior_smc": PosteriorSMC(guide=Guide(), default_selection="best"),
        "diamond_resampling": PosteriorResampling(posterior=DiamondPosterior(2)),
        "diamond_guided_resampling": "diamond_guided_resampling",
        "diamond_guidance": Guidance(DiamondPosterior(1), transition=DiamondTransition()),
    },
}
"""By what a model has: the methods that are tried, by names of their own."""


def candidates_of(cell: Cell) -> dict[str, Method | str]:
    """The candidates of a cell by name."""
    has_gradient = cell.reward == "differentiable"
    return {
        name: form
        for name, form in CANDIDATES[cell.model].items()
        if has_gradient or not as_method(form).needs_reward_gradient
    }

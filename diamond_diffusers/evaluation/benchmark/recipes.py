"""The compared methods, and how each spends a budget.

Registered methods and presets are compared under their own names. The table `RECIPES` holds the methods whose settings
were made for the comparison. A recipe is a method, a number of steps, and the names of the numbers that grow with the
budget.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

from ...alignment.base import Method
from ...alignment.guide import Guide
from ...alignment.methods import METHODS
from ...alignment.methods.beam_search import BeamSearch
from ...alignment.methods.best_of_n import BestOfN
from ...alignment.methods.guidance import Guidance
from ...alignment.methods.noise_evolution import NoiseEvolution
from ...alignment.methods.noise_optimization import NoiseOptimization
from ...alignment.methods.none import NoAlignment
from ...alignment.methods.path_search import PathSearch
from ...alignment.methods.posterior_resampling import PosteriorResampling
from ...alignment.methods.posterior_smc import PosteriorSMC
from ...alignment.methods.random_search import RandomSearch
from ...alignment.methods.smc import SMC
from ...alignment.methods.zero_order_search import ZeroOrderSearch
from ...alignment.named import as_method
from ...alignment.presets import PRESETS
from ...core.model import Model
from ...core.registry import Registry
from ...posteriors import POSTERIORS
from ...posteriors.base import PosteriorSampler
from ...posteriors.denoiser import DenoiserPoint
from ...posteriors.diamond import DiamondPosterior
from ...posteriors.flow_map import FlowMapPoint
from ...posteriors.glass import GlassPosterior
from ...posteriors.weighted import WeightedPosterior
from ...transitions import TRANSITIONS
from ...transitions.base import Transition
from ...transitions.diamond import DiamondTransition
from ...transitions.flow_map import FlowMapTransition

STEPS = "num_inference_steps"

Part = TypeVar("Part")


@dataclass(frozen=True)
class Recipe:
    """How a method spends a budget.

    Attributes:
        alignment: the method, or a function that makes it for a model; the numbers that grow are replaced.
        num_inference_steps: number of steps; None for the model's own.
        grows: names of the numbers that are raised to spend the budget, in this order: `num_inference_steps`, or any
            number of the method. By default (None) this is the number that `Method.grows` names (such as particles) at
            the given number of steps, and then the steps. If one particle at that number of steps exceeds the budget,
            fewer steps are taken. A method that does not grow is compared as it is.
    """

    alignment: Method | Callable[[Model | None], Method]
    num_inference_steps: int | None = None
    grows: tuple[str, ...] | None = None

    def alignment_for(self, model: Model | None) -> Method:
        """The method on a model, on which its settings may depend."""
        return self.alignment if isinstance(self.alignment, Method) else self.alignment(model)

    def growth_of(self, alignment: Method) -> tuple[str, ...]:
        """The names of a method's numbers that are raised to spend the budget."""
        if self.grows is not None:
            return self.grows
        return () if alignment.grows is None else (alignment.grows, STEPS)


@dataclass(frozen=True)
class LookAheads:
    """A column of the grid: a posterior sampler, and the transition that goes with it.

    Attributes:
        posterior: posterior sampler of methods that draw one look-ahead a particle, or as many as its weights need.
        several: posterior sampler of methods that choose among look-aheads; None for a point, of which there is one.
        transition: the transition; None for the model's own.
    """

    posterior: PosteriorSampler
    several: PosteriorSampler | None = None
    transition: Transition | None = None


LOOK_AHEADS = {
    "point": LookAheads(DenoiserPoint()),
    "flow_map": LookAheads(FlowMapPoint()),
    "glass": LookAheads(GlassPosterior(), GlassPosterior(num_samples=2)),
    "weighted": LookAheads(WeightedPosterior(2), WeightedPosterior(2)),
    "diamond": LookAheads(DiamondPosterior(1), DiamondPosterior(2), DiamondTransition()),
}
"""The columns of the grid."""


def own_look_aheads() -> dict[str, LookAheads]:
    """A column for each posterior sampler and each transition of a user's own, under its name.

    A posterior sampler comes with the model's transition, and a transition with the denoiser's point, unless there is
    one of each under the same name. What cannot be made without options is no column; a preset can compare it.
    """
    posteriors, transitions = _added(POSTERIORS), _added(TRANSITIONS)
    columns = {}
    for name in sorted({*posteriors, *transitions}):
        posterior = posteriors.get(name, DenoiserPoint())
        columns[name] = LookAheads(posterior, _several(posterior), transitions.get(name))
    return columns


def _added(registry: Registry[type[Part]]) -> dict[str, Part]:
    """The parts that users have added to a registry, with their defaults; without those of an option that has none."""
    made = {}
    for name in registry.added_names():
        with suppress(TypeError):
            made[name] = registry.get(name)()
    return made


def _several(posterior: PosteriorSampler) -> PosteriorSampler | None:
    """The same posterior sampler with at least two look-aheads; None for one that refuses, as a point does."""
    if posterior.num_samples > 1:
        return posterior
    try:
        return replace(posterior, num_samples=2)
    except (TypeError, ValueError):
        return None


def cells_of(ahead: LookAheads) -> dict[str, Method]:
    """The cells of a column: every method that looks ahead, with these look-aheads."""
    options: dict[str, Any] = {"posterior": ahead.posterior, "transition": ahead.transition}
    inner = Guide()
    cells: dict[str, Method] = {
        "beam_search": BeamSearch(branching=2, **options),
        "smc": SMC(**options),
        "guidance": Guidance(**options),
        "guided_smc": SMC(**options, guide=inner),
    }
    if ahead.several is not None:
        cells["resampling"] = PosteriorResampling(posterior=ahead.several)
        if not ahead.posterior.is_weighted:
            cells["posterior_smc"] = PosteriorSMC(posterior=ahead.posterior)
            cells["guided_posterior_smc"] = PosteriorSMC(posterior=ahead.posterior, guide=inner)
    return cells


GRID: dict[str, Recipe] = {
    f"{column}_{method}": Recipe(cell)
    for column, ahead in LOOK_AHEADS.items()
    for method, cell in cells_of(ahead).items()
}

# Samples are differentiated whole, so that they have few steps.
NOISE_STEPS = 4

RECIPES: dict[str, Recipe] = {
    "plain": Recipe(NoAlignment()),
    "best_of_n": Recipe(BestOfN()),
    "random_search": Recipe(RandomSearch()),
    "zero_order_search": Recipe(ZeroOrderSearch()),
    "path_search": Recipe(PathSearch(1, branching=2, num_backward_steps=1)),
    "noise_evolution": Recipe(NoiseEvolution(num_perturbations=1), NOISE_STEPS),
    "reno": Recipe(PRESETS.get("reno"), NOISE_STEPS),
    **GRID,
    "diamond_best_of_n": Recipe(BestOfN(transition=DiamondTransition())),
    "diamond_reno": Recipe(NoiseOptimization(transition=FlowMapTransition()), NOISE_STEPS),
}


def grid_cells() -> dict[str, tuple[str, str]]:
    """Look-aheads and method of each cell of the grid, by the cell's name; columns of a user's own among them."""
    return {
        f"{column}_{method}": (column, method)
        for column, ahead in (LOOK_AHEADS | own_look_aheads()).items()
        for method in cells_of(ahead)
    }


def names_in(text: str) -> list[str]:
    """The names in a text, separated by commas, each once; `grid` stands for the grid's cells, `presets` for presets.

    Example:
        >>> names_in("plain, grid")[:3]
        ['plain', 'point_beam_search', 'point_smc']
    """
    groups = {"grid": list(grid_cells()), "presets": PRESETS.names()}
    given = [name.strip() for name in text.split(",")]
    return [name for each in given for name in groups.get(each, [each])]


def all_recipes() -> dict[str, Recipe]:
    """All that can be compared: `RECIPES`, and what is registered beside it.

    That is every preset, every method of which `RECIPES` holds no other settings, and the grid's columns of a user's
    own parts; a preset or a method that has the name of such a cell comes before it.
    """
    compared = {type(recipe.alignment_for(None)) for recipe in RECIPES.values()}
    methods = [name for name in METHODS.names() if METHODS.get(name) not in compared]
    registered = [name for name in (*PRESETS.names(), *methods) if name not in RECIPES]
    own_cells = {
        f"{column}_{method}": Recipe(cell)
        for column, ahead in own_look_aheads().items()
        for method, cell in cells_of(ahead).items()
    }
    named = RECIPES | {name: Recipe(partial(as_method, name)) for name in registered}
    return named | {name: recipe for name, recipe in own_cells.items() if name not in named}

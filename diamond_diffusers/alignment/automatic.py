"""`alignment="auto"`: the method that suits a model, a reward and a budget, by one small table.

The table is also that of `docs/choosing.md`. `python -m benchmarks.choosing --cells base/black_box/small` measures a
cell: its candidates on captions to choose on, and on others whether what stands here is within an interval of the best.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import Any

from ..core.model import Model
from ..posteriors.diamond import DiamondPosterior
from ..rewards.base import Reward
from ..transitions.diamond import DiamondTransition
from .base import Method
from .methods.beam_search import BeamSearch
from .methods.best_of_n import BestOfN
from .methods.guidance import Guidance
from .named import as_method

MODELS = {
    "base": "an ordinary model",
    "few_step": "a few-step model",
    "both": "a few-step model and its denoiser",
    "map": "a Diamond Map",
}
"""What a model has."""

REWARDS = {"differentiable": "differentiable", "black_box": "a black box", "dear": "dear"}
"""What a reward is: one that is slow or paid is dear, whether or not it is differentiable."""

BUDGETS = {"none": "no budget", "small": "a small budget", "large": "a large budget"}
"""How many network evaluations a call allows."""

LARGE_BUDGET = 8
"""Evaluations for each step of the sampler from which a budget is large: four plain images under classifier-free
guidance, or eight without it."""


@dataclass(frozen=True)
class Cell:
    """A place in the table.

    Attributes:
        model: a key of `MODELS`.
        reward: a key of `REWARDS`.
        budget: a key of `BUDGETS`.

    Example:
        >>> Cell("few_step", "black_box", "small").name
        'few_step/black_box/small'
    """

    model: str
    reward: str
    budget: str

    @property
    def name(self) -> str:
        """By which `python -m benchmarks.choosing --cells` knows it."""
        return f"{self.model}/{self.reward}/{self.budget}"

    @classmethod
    def of(
        cls,
        model: Model,
        reward: Reward,
        num_inference_steps: int,
        max_network_evaluations: int | None = None,
        max_reward_calls: int | None = None,
        with_map: bool = True,
        with_gradient: bool = True,
    ) -> Cell:
        """The place of a call.

        Args:
            model: to be sampled.
            reward: of the call. Where it may be asked for `max_reward_calls` scores alone, it is dear.
            num_inference_steps: of the sampler.
            max_network_evaluations: for an image; None for no budget.
            max_reward_calls: for an image; None for no limit.
            with_map: whether a Diamond Map of the model can be used.
            with_gradient: whether the model can be differentiated.
        """
        if model.has_diamond_map and with_map:
            kind = "map"
        elif model.has_flow_map:
            kind = "both" if model.has_denoiser else "few_step"
        else:
            kind = "base"
        is_dear = reward.is_dear or max_reward_calls is not None
        rewarded = "dear" if is_dear else "differentiable" if reward.differentiable and with_gradient else "black_box"
        if max_network_evaluations is None:
            return cls(kind, rewarded, "none")
        is_large = max_network_evaluations >= LARGE_BUDGET * num_inference_steps
        return cls(kind, rewarded, "large" if is_large else "small")

    def __str__(self) -> str:
        return f"{MODELS[self.model]}, a reward that is {REWARDS[self.reward]}, and {BUDGETS[self.budget]}"


DIAMOND_BEST_OF_N = BestOfN(transition=DiamondTransition())
DIAMOND_BEAM_SEARCH = BeamSearch(posterior=DiamondPosterior(1), transition=DiamondTransition(), branching=2)

TABLE: Mapping[str, Mapping[str, tuple[Method | str, Method | str, Method | str]]] = {
    "base": {
        "differentiable": (Guidance(num_particles=4), Guidance(), Guidance()),
        "black_box": (BeamSearch(branching=2), BestOfN(), BeamSearch(branching=2)),
        "dear": (BestOfN(), BestOfN(), BestOfN()),
    },
    "few_step": {
        "differentiable": (Guidance(num_particles=4), Guidance(), Guidance()),
        "black_box": (BestOfN(), BestOfN(), BestOfN()),
        "dear": (BestOfN(), BestOfN(), BestOfN()),
    },
    "both": {
        "differentiable": (Guidance(num_particles=4), Guidance(), Guidance()),
        "black_box": (BestOfN(), BestOfN(), BestOfN()),
        "dear": (BestOfN(), BestOfN(), BestOfN()),
    },
    "map": {
        "differentiable": ("diamond_guided_resampling", "diamond_guided_resampling", "fmrg"),
        "black_box": (DIAMOND_BEST_OF_N, DIAMOND_BEST_OF_N, DIAMOND_BEAM_SEARCH),
        "dear": (DIAMOND_BEST_OF_N, DIAMOND_BEST_OF_N, DIAMOND_BEST_OF_N),
    },
}
"""By what a model has and what its reward is: the methods without a budget, with a small and with a large one."""


@dataclass(frozen=True)
class Choice:
    """A method, and why it was chosen.

    Attributes:
        cell: of the table.
        method: with its own count, which a budget replaces.
        note: what else has led to it; empty where nothing has.
    """

    cell: Cell
    method: Method
    note: str = ""

    @property
    def reason(self) -> str:
        """In one sentence."""
        note = f" ({self.note})" if self.note else ""
        return f"alignment 'auto' has chosen {call_of(method_of(self.cell))} for {self.cell}{note}"


def method_of(cell: Cell) -> Method | str:
    """What stands in a cell: a method, or the name of one."""
    return TABLE[cell.model][cell.reward][list(BUDGETS).index(cell.budget)]


def choose(model: Model, cell: Cell, note: str = "") -> Choice:
    """The method of a cell on a model, on which its settings may depend."""
    return Choice(cell, as_method(method_of(cell), model), note)


def call_of(part: Any) -> str:
    """A method or a part of one as the Python expression that makes it; a name in double quotes.

    Example:
        >>> call_of(BestOfN(transition=DiamondTransition())), call_of("fk_steering")
        ('BestOfN(transition=DiamondTransition())', '"fk_steering"')
    """
    if isinstance(part, str):
        return f'"{part}"'
    if not is_dataclass(part) or isinstance(part, type):
        return repr(part)
    given = {}
    for field in fields(part):
        default = field.default if field.default_factory is MISSING else field.default_factory()
        if (value := getattr(part, field.name)) != default:
            given[field.name] = call_of(value)
    return f"{type(part).__name__}({', '.join(f'{name}={value}' for name, value in given.items())})"


def table_of(model: str) -> str:
    """The rows of one kind of model as a table of Markdown, which is that of `docs/choosing.md`."""
    lines = [f"| reward | {' | '.join(BUDGETS.values())} |", f"|---|{'---|' * len(BUDGETS)}"]
    for reward, called in REWARDS.items():
        methods = (f"`{call_of(method)}`" for method in TABLE[model][reward])
        lines.append(f"| {called} | {' | '.join(methods)} |")
    return "\n".join(lines)

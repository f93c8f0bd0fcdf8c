"""`alignment="auto"`: one table, which is that of the page, and what a call makes of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import diamond_diffusers
from diamond_diffusers import DiamondMapPipeline, Reward
from diamond_diffusers.alignment import AUTO
from diamond_diffusers.alignment.automatic import BUDGETS, MODELS, REWARDS, TABLE, Cell, call_of, choose, table_of
from diamond_diffusers.alignment.base import Method
from diamond_diffusers.alignment.named import as_method
from diamond_diffusers.rewards.callable_reward import CallableReward
from diamond_diffusers.transitions.sampled_model import SampledModel

from ..conftest import redness
from ..core.mixture import make_mixture
from ..core.mixture_model import MixtureMapFamily, MixtureModel
from ..core.test_diamond import DiamondMixture

PAGE = (Path(__file__).parents[2] / "docs" / "choosing.md").read_text(encoding="utf-8")
MIXTURE = make_mixture(3)
OF_KIND: dict[str, Callable[[], SampledModel]] = {
    "base": lambda: MixtureModel(MIXTURE),
    "few_step": lambda: MixtureMapFamily(MIXTURE),
    "both": lambda: MixtureMapFamily(MIXTURE, MixtureModel(MIXTURE)),
    "map": lambda: DiamondMixture(MIXTURE),
}


def judge(**options: Any) -> Reward:
    return CallableReward(redness, **options)


REWARD_OF_KIND = {
    "differentiable": judge(differentiable=True),
    "black_box": judge(differentiable=False),
    "dear": judge(differentiable=True, is_dear=True),
}
CELLS = [Cell(model, reward, budget) for model in MODELS for reward in REWARDS for budget in BUDGETS]


@pytest.mark.parametrize("model", MODELS)
def test_the_page_has_the_table_of_the_code(model: str) -> None:
    assert table_of(model) in PAGE


def test_the_table_is_complete() -> None:
    assert set(TABLE) == set(MODELS)
    for rows in TABLE.values():
        assert set(rows) == set(REWARDS) and all(len(methods) == len(BUDGETS) for methods in rows.values())


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.name)
def test_a_cell_holds_a_method_that_its_model_and_its_reward_allow(cell: Cell) -> None:
    model, reward = OF_KIND[cell.model](), REWARD_OF_KIND[cell.reward]
    limits = {"none": None, "small": 4 * 12, "large": 8 * 12}
    found = Cell.of(model, reward, 12, limits[cell.budget])
    assert found == cell
    choice = choose(model, found, "a note")
    choice.method.check(reward)
    choice.method.resolve(model)
    assert choice.method.needs_reward and choice.method.grows is not None
    assert not (cell.reward != "differentiable" and choice.method.needs_reward_gradient)
    assert choice.reason == f"alignment 'auto' has chosen {shown(cell)} for {cell} (a note)"


def shown(cell: Cell) -> str:
    return call_of(TABLE[cell.model][cell.reward][list(BUDGETS).index(cell.budget)])


def test_what_is_printed_makes_the_method() -> None:
    public = {name: getattr(diamond_diffusers, name) for name in diamond_diffusers.__all__}
    for rows in TABLE.values():
        for form in (form for methods in rows.values() for form in methods):
            made = eval(call_of(form), public)
            assert made == form and isinstance(as_method(made), Method)


def test_where_classes_meet() -> None:
    model, reward = MixtureModel(MIXTURE), REWARD_OF_KIND["black_box"]
    assert Cell.of(model, reward, 10, 79).budget == "small" and Cell.of(model, reward, 10, 80).budget == "large"
    # Who bounds the scores holds them dear.
    assert Cell.of(model, reward, 10, None, 5) == Cell("base", "dear", "none")
    assert Cell.of(model, REWARD_OF_KIND["differentiable"], 10, with_gradient=False).reward == "black_box"
    assert Cell.of(DiamondMixture(MIXTURE), reward, 10, with_map=False).model == "base"


def test_sums_are_as_dear_as_their_dearest_part() -> None:
    from diamond_diffusers.rewards import as_reward

    assert (as_reward("brightness") + judge(is_dear=True)).is_dear
    assert not (as_reward("brightness") + judge()).is_dear


CALL = {"num_inference_steps": 2, "output_type": "latent"}


def called(pipe: DiamondMapPipeline, **options: Any) -> Any:
    generator = torch.Generator().manual_seed(0)
    return pipe("a star", **{"reward": judge(differentiable=True), "generator": generator, **CALL, **options})


def test_a_call_says_what_was_chosen_and_why(shared_pipe: DiamondMapPipeline) -> None:
    named = called(shared_pipe, alignment=TABLE["base"]["differentiable"][0])
    for options in ({}, {"alignment": AUTO}):
        out = called(shared_pipe, **options)
        assert torch.equal(out.images, named.images) and out.alignment == named.alignment
        assert out.choice == (
            f"alignment 'auto' has chosen {shown(Cell('base', 'differentiable', 'none'))} for an ordinary model, a "
            "reward that is differentiable, and no budget"
        )
    assert named.choice is None and "choice" not in named
    # Eight evaluations of two steps.
    dear = called(shared_pipe, max_network_evaluations=16, max_reward_calls=2)
    assert "for an ordinary model, a reward that is dear, and a large budget" in dear.choice
    assert dear.alignment.num_particles == 2


def test_a_model_s_own_method_is_honoured_unless_auto_is_asked_for(shared_pipe: DiamondMapPipeline) -> None:
    own = DiamondMapPipeline.from_pipe(shared_pipe.pipeline, defaults={**shared_pipe.defaults, "alignment": "guidance"})
    assert called(own).choice is None and called(own).alignment.num_particles == 1
    assert called(own, alignment=AUTO).choice is not None
    # A black box cannot be followed by its gradient.
    assert "a black box" in called(own, reward=judge(differentiable=False)).choice
    open_one = DiamondMapPipeline.from_pipe(shared_pipe.pipeline, defaults={**shared_pipe.defaults, "alignment": AUTO})
    assert called(open_one).choice is not None
    assert open_one("a star", **CALL).choice is None


def test_particles_that_start_from_the_same_latents_part(shared_pipe: DiamondMapPipeline) -> None:
    shape = shared_pipe.prepare("a star", **CALL)
    latents = torch.randn_like(shape.family.prepare_latents(shape.arguments, shape.conditions, 1, torch.Generator()))
    out = called(shared_pipe, latents=latents)
    assert out.alignment.transition.is_stochastic and "from the same latents" in out.choice


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alignment": AUTO, "reward": None}, "reward is None"),
        ({"alignment": {"name": AUTO, "num_particles": 2}}, "alignment is 'auto', which stands for a method"),
    ],
)
def test_auto_is_refused(shared_pipe: DiamondMapPipeline, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        called(shared_pipe, **options)

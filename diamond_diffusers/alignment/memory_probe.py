"""What one row of a run takes, counted while it is really evaluated."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from ..core.attention import differentiable_attention
from ..core.levels import as_level
from ..core.memory_errors import want_of_memory
from ..core.memory_use import memory_use, peak_bytes
from ..rewards.base import Reward
from .execution import Checkpointing, Execution
from .graph_demand import GraphDemand
from .law import Law, LawAtRows
from .memory_plan import PartName, RowUse
from .reward_errors import is_of_reward
from .reward_of_each_image import rewards_and_images


@dataclass
class MemoryProbe:
    """Evaluates network, decoder and reward at one row, to count what that takes; see `memory_use`.

    Args:
        law: of the run, whose cost counts what is evaluated here.
        x: particles of the run, `[N, ...]`, of which the first is evaluated.
        noise_to_signal: their level.
        demand: of the method; what it does not differentiate has no graph.

    Example:
        The uses are those that `plan_memory` asks for::

            uses = MemoryProbe(law, x, levels[0], demand).uses()
    """

    law: Law
    x: Tensor
    noise_to_signal: float
    demand: GraphDemand

    def uses(self) -> dict[PartName, RowUse]:
        """The uses of all parts that the run has, as if each were evaluated again as a whole."""
        rows, demand, level = self._rows(Checkpointing()), self.demand, self.noise_to_signal
        predict = partial(rows.network.predict, noise_to_signal=level)
        uses: dict[PartName, RowUse] = {}
        with differentiable_attention() if demand.scored else nullcontext():
            uses["network"], z = row_use(predict, self.x[:1], demand.network > 0)
            if self.law.score_model is not None:
                scoring, _ = row_use(partial(rows.network.denoise, noise_to_signal=level), z, demand.network > 0)
                graph, working = (
                    max(scoring.graph, uses["network"].graph),
                    max(scoring.working, uses["network"].working),
                )
                uses["network"] = RowUse.as_a_whole(graph, working)
            decoded = demand.decoder if self.has_preview else demand.scored
            uses["decoder"], images = row_use(rows.decode, z, decoded > 0)
            uses["preview"] = uses["decoder"]
            if self.has_preview:
                uses["preview"], images = row_use(partial(rows.decode, preview=True), z, demand.preview > 0)
            # What is not differentiated may be another's, who counts its calls.
            if self.law.reward is not None and demand.scored:
                uses["reward"] = self._of_reward(images, z)
        return uses

    def evaluated_again(
        self, part: Literal["network", "decoder"], uses: Mapping[PartName, RowUse]
    ) -> dict[PartName, RowUse]:
        """The uses with that of a part where it is checkpointed, measured by one row's forward and backward pass."""
        rows, measured = self._rows(Checkpointing.of_all(True)), dict(uses)
        with differentiable_attention():
            if part == "network":
                predict = partial(rows.network.predict, noise_to_signal=self.noise_to_signal)
                measured["network"] = checkpointed_use(predict, self.x[:1], uses["network"])
                return measured
            if self.demand.decoder or not self.has_preview:
                measured["decoder"] = checkpointed_use(rows.decode, self.x[:1], uses["decoder"])
            if self.demand.preview and self.has_preview:
                decode = partial(rows.decode, preview=True)
                measured["preview"] = checkpointed_use(decode, self.x[:1], uses["preview"])
        if not self.has_preview:
            measured["preview"] = measured["decoder"]
        return measured

    @property
    def has_preview(self) -> bool:
        """Whether look-aheads have a decoder of their own."""
        return self.law.model.parts(preview=True)[1] is not self.law.model.parts()[1]

    def _rows(self, checkpointing: Checkpointing) -> LawAtRows:
        law = self.law.of_images(torch.zeros(1, dtype=torch.long, device=self.x.device))
        execution = Execution(gradient_checkpointing=checkpointing, cost=self.law.cost)
        return replace(law, execution=execution).rows(self.x[:1])

    def _of_reward(self, images: Tensor, z: Tensor) -> RowUse:
        """The use of the reward, or what the largest uses of several ones come to."""
        found = [self._of_one_reward(*each, images, z) for each in rewards_and_images(self.law.reward)]
        graph, working = (max(getattr(use, name) for use in found) for name in ("graph", "working"))
        return found[0] if len(found) == 1 else RowUse.as_a_whole(graph, working)

    def _of_one_reward(self, reward: Reward, image: int, images: Tensor, z: Tensor) -> RowUse:
        law = self.law
        prompts = law.prompts[image : image + 1]
        evaluate = partial(reward.evaluate, prompts=prompts, latents=z, noise_to_signal=as_level(self.noise_to_signal))
        law.cost.reward_calls += 1
        try:
            with law.execution.around_reward():
                return row_use(lambda images: evaluate(images).total, images, True)[0]
        except Exception as error:
            # The run says what becomes of it, as it does of all failures of a reward.
            if law.reward_errors.action == "raise" or not is_of_reward(error):
                raise
            return RowUse()


def row_use(function: Callable[[Tensor], Tensor], rows: Tensor, has_graph: bool) -> tuple[RowUse, Tensor]:
    """What a part takes for rows, as if it were evaluated again as a whole; and its result, without a graph.

    Args:
        function: evaluates the part, once.
        rows: its argument.
        has_graph: whether the rows require gradients.
    """
    results: list[Tensor] = []
    rows = rows.detach().requires_grad_(has_graph)
    with torch.set_grad_enabled(has_graph):
        counted = memory_use(lambda rows: results.append(function(rows).detach()), rows)
    return RowUse.as_a_whole(counted.graph, counted.working), results[0]


def checkpointed_use(function: Callable[[Tensor], Tensor], rows: Tensor, use: RowUse) -> RowUse:
    """The use of a part with what it takes where it is checkpointed.

    Args:
        function: evaluates the part, checkpointed; it is evaluated and differentiated.
        rows: its argument.
        use: as of `row_use`, which is kept where memory does not suffice to measure.
    """

    def differentiate(rows: Tensor) -> None:
        result = function(rows)
        torch.autograd.grad(result, rows, torch.zeros_like(result))

    rows = rows.detach().requires_grad_()
    with torch.enable_grad():
        held = memory_use(function, rows).graph
        try:
            peak = peak_bytes(differentiate, rows)
        except (RuntimeError, MemoryError) as error:
            if want_of_memory(error) is None:
                raise
            return use
    return replace(use, checkpointed=held, again=max(0, peak - held - use.working))

"""What one row of a run takes, counted while it is really evaluated."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..core.attention import differentiable_attention
from ..core.memory_errors import want_of_memory
from ..core.memory_use import memory_use, peak_bytes
from .execution import Checkpointing, Execution
from .graph_demand import GraphDemand
from .law import Law, LawAtRows
from .memory_plan import PartName, RowUse
from .reward_errors import is_of_reward


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
        rows, demand = self._rows(Checkpointing()), self.demand
        is_differentiated = demand.network + demand.scored > 0
        uses: dict[PartName, RowUse] = {}
        with differentiable_attention() if is_differentiated else nullcontext():
            network, z = _use(rows.network.predictor, self.x[:1], demand.network, self.noise_to_signal)
            if self.law.score_model is not None:
                scoring, _ = _use(rows.network.denoise, self.x[:1], demand.network, self.noise_to_signal)
                network = RowUse.as_a_whole(max(network.graph, scoring.graph), max(network.working, scoring.working))
            uses["network"] = network
            decoded = demand.decoder if self.has_preview else demand.scored
            uses["decoder"], images = _use(rows.decode, z, decoded)
            if self.has_preview:
                uses["preview"], images = _use(rows.decode, z, demand.preview, True)
            if self.law.reward is not None:
                uses["reward"] = self._of_reward(images, z)
        if not self.has_preview:
            uses["preview"] = uses["decoder"]
        return uses

    def by_blocks(self, uses: dict[PartName, RowUse]) -> dict[PartName, RowUse]:
        """The uses with those of the decoders where they are checkpointed, measured by a forward and a backward pass."""
        rows, z = self._rows(Checkpointing(decoder=True)), self.x[:1]
        measured = dict(uses)
        with differentiable_attention():
            if self.demand.decoder or not self.has_preview:
                measured["decoder"] = _checkpointed(lambda z: rows.decode(z), z, uses["decoder"])
            if self.has_preview and self.demand.preview:
                measured["preview"] = _checkpointed(lambda z: rows.decode(z, True), z, uses["preview"])
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
        reward, prompts, context = self.law.reward, self.law.prompts[:1], {"noise_to_signal": self.noise_to_signal}
        assert reward is not None, "the caller has looked"
        self.law.cost.reward_calls += 1
        try:
            return _use(lambda images: reward.evaluate(images, prompts, latents=z, **context).total, images, self.demand.scored)[0]
        except Exception as error:
            # The run says what becomes of it, as it does of all failures of a reward.
            if self.law.reward_errors.action == "raise" or not is_of_reward(error):
                raise
            return RowUse()


def _use(function: Callable[..., Tensor], rows: Tensor, num_held: int, *options: float) -> tuple[RowUse, Tensor]:
    """What evaluating rows takes, with a graph if any are held, and the result without one."""
    results: list[Tensor] = []
    rows = rows.detach().requires_grad_(num_held > 0)
    with torch.set_grad_enabled(num_held > 0):
        counted = memory_use(lambda rows: results.append(function(rows, *options).detach()), rows)
    return RowUse.as_a_whole(counted.graph, counted.working), results[0]


def _checkpointed(function: Callable[[Tensor], Tensor], z: Tensor, use: RowUse) -> RowUse:
    """A use with what is held, and made again, where the part is checkpointed."""

    def differentiate(z: Tensor) -> None:
        images = function(z)
        torch.autograd.grad(images, z, torch.zeros_like(images))

    z = z.detach().requires_grad_()
    with torch.enable_grad():
        held = memory_use(function, z).graph
        try:
            peak = peak_bytes(differentiate, z)
        except (RuntimeError, MemoryError) as error:
            if want_of_memory(error) is None:
                raise
            # As a whole, of which the run may find out too.
            return use
    return replace(use, checkpointed=held, again=max(0, peak - held - use.working))

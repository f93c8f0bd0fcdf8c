"""Plans how a call fits into the memory of its device, where the caller leaves that open."""

from __future__ import annotations

import threading
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Literal
from weakref import WeakKeyDictionary

from diffusers import DiffusionPipeline
from diffusers.utils import logging
from torch import Tensor

from ..alignment.base import Method
from ..alignment.execution import Checkpointing
from ..alignment.free_memory import ACCELERATORS, free_memory
from ..alignment.graph_demand import GraphDemand, graph_demand
from ..alignment.law import Law
from ..alignment.memory_plan import CHECKPOINTINGS, ENOUGH_ROWS, USED_SHARE, MemoryPlan, RunSize, plan_memory
from ..alignment.memory_probe import MemoryProbe
from .call import Call
from .modules import is_offloaded

logger = logging.get_logger(__name__)

AUTO: Literal["auto"] = "auto"


@dataclass(frozen=True)
class MemoryOptions:
    """What a call says of its use of memory.

    Attributes:
        particle_batch_size: as of `Execution`, or `"auto"`.
        checkpointings: the choices of what is evaluated again on the backward pass, of which there may be one.
    """

    particle_batch_size: int | Literal["auto"] | None
    checkpointings: Sequence[Checkpointing]

    @classmethod
    def of_call(
        cls,
        call: Call,
        particle_batch_size: int | Literal["auto"] | None,
        gradient_checkpointing: bool | Literal["auto"] | None,
    ) -> MemoryOptions:
        """Fills in what a call leaves open: a plan on accelerators; elsewhere all rows at once, each evaluated once."""
        offloaded, plans = is_offloaded(call.family.pipeline), call.device.type in ACCELERATORS
        if particle_batch_size is None and plans:
            particle_batch_size = AUTO
        if gradient_checkpointing is None:
            gradient_checkpointing = AUTO if plans else offloaded
        if gradient_checkpointing != AUTO:
            return cls(particle_batch_size, (Checkpointing.of_all(bool(gradient_checkpointing)),))
        # The graphs of what is offloaded would hold its weights on the device.
        return cls(particle_batch_size, (Checkpointing.of_all(True),) if offloaded else CHECKPOINTINGS)

    @property
    def is_open(self) -> bool:
        """Whether there is anything to plan."""
        return self.particle_batch_size == AUTO or len(self.checkpointings) > 1


@dataclass
class _Plans:
    """The plans of one pipeline, by what they depend on."""

    made: dict[Hashable, MemoryPlan] = field(default_factory=dict)
    # A reward that is tried for a plan may itself call the pipeline.
    lock: threading.RLock = field(default_factory=threading.RLock)


_plans: WeakKeyDictionary[DiffusionPipeline, _Plans] = WeakKeyDictionary()
_lock = threading.Lock()


def with_plan(
    options: MemoryOptions, pipeline: DiffusionPipeline, method: Method, law: Law, x: Tensor, levels: Sequence[float]
) -> tuple[Law, MemoryPlan | None]:
    """The law of a call, whose execution follows the plan that is made where its options leave something open.

    A pipeline plans once for each kind of call, so that calls which are alike have alike chunks, and thereby images
    that are the same bit for bit, in whichever thread. Processes that share a call follow the least of their plans.

    Args:
        options: of the call.
        pipeline: whose plans are kept.
        method: resolved for the model.
        law: what the method will run on; one row of it is evaluated, and counted in its cost.
        x: particles at the first level, `[N, ...]`.
        levels: of the run.
    """
    if not options.is_open:
        return law, None
    demand = graph_demand(method, law, levels)
    if not demand.scored and law.num_images * demand.rows == 1:
        # A single row without a graph can be evaluated in one way alone.
        return law, None
    with _lock:
        plans = _plans.setdefault(pipeline, _Plans())
    with plans.lock:
        key = _key(options, law, x, demand)
        if key not in plans.made:
            plans.made[key] = _planned(options, law, x, levels[0], demand)
        plan = plans.made[key]
    if law.execution.shards is not None:
        plan = reduce(MemoryPlan.within, law.execution.shards.everyones(plan))
    logger.info("Memory: %s.", plan)
    execution = replace(
        law.execution,
        particle_batch_size=plan.particle_batch_size,
        gradient_checkpointing=plan.gradient_checkpointing,
    )
    return replace(law, execution=execution), plan


def _planned(options: MemoryOptions, law: Law, x: Tensor, level: float, demand: GraphDemand) -> MemoryPlan:
    probe = MemoryProbe(law, x, level, demand)
    uses = probe.uses()
    free = int(USED_SHARE * free_memory(x.device))
    num_images = -(-law.num_images // law.execution.num_processes)
    run = RunSize(demand, uses, num_images, probe.has_preview)
    plan = plan_memory(run, free, options.particle_batch_size, options.checkpointings)
    # What blocks take is worth an evaluation only where they may have to be checkpointed.
    if demand.scored and plan.gradient_checkpointing.decoder:
        run = replace(run, uses=probe.evaluated_again("decoder", run.uses))
        plan = plan_memory(run, free, options.particle_batch_size, options.checkpointings)
    is_short = plan.particle_batch_size is not None and plan.particle_batch_size < min(ENOUGH_ROWS, demand.rows)
    if demand.network and (is_short or plan.gradient_checkpointing.network) and options.checkpointings[-1].network:
        run = replace(run, uses=probe.evaluated_again("network", run.uses))
        plan = plan_memory(run, free, options.particle_batch_size, options.checkpointings)
    return plan


def _key(options: MemoryOptions, law: Law, x: Tensor, demand: GraphDemand) -> Hashable:
    """What the plan of a call depends on, but for how much memory is free when the first such call is made."""
    networks = [model.parts()[0] for model in (law.model, *([law.score_model.model] if law.score_model else []))]
    return (
        (options.particle_batch_size, tuple(options.checkpointings)),
        (x.device, x.dtype, tuple(x.shape[1:]), law.num_images, law.conditions.negative_features is None),
        tuple(str(getattr(network, "dtype", None)) for network in networks),
        (law.model.parts(preview=True)[1] is law.model.parts()[1],),
        () if law.reward is None else tuple(law.reward.term_names),
        demand,
    )

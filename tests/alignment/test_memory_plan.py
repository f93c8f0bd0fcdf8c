"""Plans fit into the memory that they are given, and evaluate no more twice than they must."""

import itertools
from dataclasses import replace

import pytest
import torch

from diamond_diffusers.alignment.execution import Checkpointing
from diamond_diffusers.alignment.free_memory import free_memory
from diamond_diffusers.alignment.graph_demand import GraphDemand
from diamond_diffusers.alignment.memory_plan import CHECKPOINTINGS, MemoryPlan, RowUse, RunSize, plan_memory

GB = 10**9
PATHWISE = GraphDemand(rows=16, copies=1, network=1, preview=1)
USES = {
    "network": RowUse.as_a_whole(3 * GB, GB // 10),
    "decoder": RowUse(15 * GB, 2 * GB, GB, GB),
    "preview": RowUse(15 * GB, 2 * GB, GB, GB),
    "reward": RowUse.as_a_whole(GB // 5, GB // 10),
}
RUN = RunSize(PATHWISE, USES)
"""Like SANA-Sprint at 1024 pixels."""
NONE, DECODER, _, ALL = CHECKPOINTINGS


def test_much_memory_evaluates_nothing_twice():
    plan = plan_memory(RUN, 400 * GB)
    assert (plan.particle_batch_size, plan.gradient_checkpointing) == (None, NONE)
    # Three graphs and the work of the largest part, of each of sixteen rows.
    assert plan.num_bytes == 16 * (3 + 15 + 2) * GB + 16 * GB // 5


def test_less_memory_has_smaller_chunks_and_then_evaluates_the_decoder_again():
    plans = {free: plan_memory(RUN, free * GB) for free in (170, 85, 70, 30)}
    chosen = {free: (plan.particle_batch_size, plan.gradient_checkpointing) for free, plan in plans.items()}
    assert chosen == {170: (8, NONE), 85: (4, NONE), 70: (8, DECODER), 30: (4, DECODER)}


def test_little_memory_evaluates_everything_again_row_by_row():
    plan = plan_memory(RUN, 7.5 * GB)
    assert plan.fits and (plan.particle_batch_size, plan.gradient_checkpointing) == (1, DECODER)
    plan = plan_memory(RUN, 5 * GB)
    assert plan.fits and (plan.particle_batch_size, plan.gradient_checkpointing) == (1, ALL)


@pytest.mark.parametrize("demand", [PATHWISE, GraphDemand(12, 4, 13, 0, 4), GraphDemand(3, 1, 20, 1), GraphDemand(9)])
@pytest.mark.parametrize("num_images", [1, 3])
def test_no_plan_asks_for_more_than_is_free(demand: GraphDemand, num_images: int):
    run = RunSize(demand, USES, num_images)
    least = plan_memory(run, 0).num_bytes
    previous = 0
    for free in range(0, 1200 * GB, 7 * GB):
        plan = plan_memory(run, free)
        assert plan.fits == (free >= least)
        assert plan.num_bytes <= max(free, least)
        if plan.fits and plan.gradient_checkpointing == ALL:
            # More memory never makes chunks smaller, as long as as much is evaluated twice.
            rows = plan.particle_batch_size or num_images * demand.rows
            assert rows >= previous
            previous = rows
    assert plan.particle_batch_size is None and plan.gradient_checkpointing == NONE


def test_where_nothing_fits_the_plan_takes_the_least():
    plan = plan_memory(RUN, GB)
    assert not plan.fits
    assert (plan.particle_batch_size, plan.gradient_checkpointing) == (1, ALL)
    sizes = [RUN.num_bytes(rows, each) for rows, each in itertools.product((1, 2, 16), CHECKPOINTINGS)]
    assert plan.num_bytes == min(sizes)


def test_chunks_are_equally_large():
    """Nine and seven particles take as many chunks as eight and eight, and more memory."""
    assert plan_memory(RUN, 9 * 20.2 * GB).particle_batch_size == 8
    looking = replace(RUN, demand=GraphDemand(20, 4, 4, 0, 4))
    sizes = list(looking.sizes())
    assert sizes == [20, 12, 8, 4, 3, 2, 1]


def test_look_aheads_of_a_particle_are_held_together():
    one, four = (RunSize(GraphDemand(16, copies, copies, 0, copies), USES) for copies in (1, 4))
    assert one.num_bytes(4, NONE) == four.num_bytes(4, NONE)
    # Fewer rows at once only spare what they work with.
    assert four.num_bytes(4, NONE) - four.num_bytes(1, NONE) == 3 * 2 * GB


def test_what_is_given_is_kept():
    plan = plan_memory(RUN, 70 * GB, 4)
    assert (plan.particle_batch_size, plan.gradient_checkpointing) == (4, DECODER)
    plan = plan_memory(RUN, 70 * GB, None)
    assert (plan.particle_batch_size, plan.gradient_checkpointing) == (None, ALL)
    plan = plan_memory(RUN, 70 * GB, "auto", (NONE,))
    assert (plan.particle_batch_size, plan.gradient_checkpointing) == (3, NONE)


def test_processes_follow_the_least_of_their_plans():
    first = MemoryPlan(None, Checkpointing(decoder=True), False, 3, 10)
    second = MemoryPlan(4, Checkpointing(reward=True), False, 5, 8)
    assert first.within(second) == MemoryPlan(4, Checkpointing(decoder=True, reward=True), False, 5, 8)
    assert second.within(first) == first.within(second)


def test_a_plan_is_one_line():
    assert str(MemoryPlan(1, ALL, True, 3 * GB, 7 * GB)) == (
        "chunks of 1 row, network, decoder and reward evaluated again on the backward pass, look-aheads by the preview "
        "decoder: 3.0 GB of 7.0 GB"
    )
    assert str(MemoryPlan(None, NONE, False, 0, 0)) == "all rows at once, nothing evaluated twice: 0.0 GB of 0.0 GB"


def test_the_memory_of_the_machine_is_told():
    assert free_memory(torch.device("cpu")) > 2**20
    with pytest.raises(ValueError, match="does not tell the free memory of 'meta' devices"):
        free_memory(torch.device("meta"))

"""What a run does where memory runs out: it evaluates what failed again, in chunks of half as many rows."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import TypeVar

import torch
from diffusers.utils import logging

from ..core.memory_errors import want_of_memory
from .execution import Execution
from .random_source import RandomSource

logger = logging.get_logger(__name__)

Result = TypeVar("Result")


def with_smaller_chunks(
    execution: Execution, function: Callable[[], Result], random: RandomSource | None = None
) -> Result:
    """The result of a function, which is called again where memory runs out, with at most half as many rows at once.

    The rows are halved until memory holds them, and stay so for the rest of the run, which a warning tells. Every call
    draws the same. What was evaluated in vain has been counted, like everything that is evaluated. Within a function
    that is called so, others are called as they are: the outermost is called again as a whole.

    Processes that share a run do not call again, since one of them alone would wait for the others forever.

    Args:
        execution: of all that the function evaluates.
        function: changes nothing but what `random` draws from and what the execution counts.
        random: what it draws from, if it does.

    Raises:
        torch.OutOfMemoryError, RuntimeError, MemoryError: memory does not hold a single row; a note names the remedy.
    """
    memory = execution.memory
    if memory.is_watched:
        return function()
    restore_draws = None if random is None else random.snapshot()
    failed_at = None
    while True:
        memory.is_watched, memory.largest = True, 0
        try:
            result = function()
        except (RuntimeError, MemoryError) as error:
            if want_of_memory(error) is None:
                raise
            size = min(memory.largest, memory.max_rows or memory.largest)
            if size <= 1 or execution.shards is not None:
                error.add_note(_remedy(execution, size))
                raise
        else:
            if failed_at is not None:
                logger.warning(
                    "Memory did not hold %d rows at once, so that they were evaluated again, and the rest of the run "
                    "is, at most %d at a time; the cost includes what was evaluated in vain. To save that, give "
                    "particle_batch_size=%d, or fewer prompts a call.",
                    failed_at,
                    memory.max_rows,
                    memory.max_rows,
                )
            return result
        finally:
            memory.is_watched = False
        # Only here, where the error is gone, is what its frames held.
        failed_at = failed_at or size
        memory.max_rows = size // 2
        if restore_draws is not None:
            restore_draws()
        _free_caches()


def _remedy(execution: Execution, size: int) -> str:
    checkpointing = "set gradient_checkpointing=True if the method differentiates"
    ways = [] if execution.gradient_checkpointing.is_complete else [checkpointing]
    ways += ["draw smaller images", "load the model in bfloat16", "offload components (enable_model_cpu_offload)"]
    if execution.shards is None:
        return f"Memory does not hold a single row; {', '.join(ways[:-1])}, or {ways[-1]}."
    lower = f"give a particle_batch_size below {size}" if size > 1 else "a single row is too large"
    return (
        f"Processes that share a call do not run a step again in smaller chunks; {lower}, {', '.join(ways[:-1])}, or "
        f"{ways[-1]}."
    )


def _free_caches() -> None:
    """Gives back what torch keeps for later, so that it is not held in pieces that are too small."""
    gc.collect()
    for device in (torch.cuda, torch.mps, torch.xpu):
        if device.is_available():
            device.empty_cache()

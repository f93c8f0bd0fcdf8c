"""Calls that succeed, fail, are interrupted, or are begun and dropped, leave nothing behind; in threads they part."""

from __future__ import annotations

import gc
import os
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from diamond_diffusers import DiamondMapPipeline

from ..conftest import redness
from .judging import Tally

METHODS = ("none", "smc", "best_of_n", "guidance", "beam_search")
CALL = {"reward": redness, "num_inference_steps": 2, "output_type": "pt"}


def draw(pipe: DiamondMapPipeline, alignment: str = "smc") -> torch.Tensor:
    return pipe("a ring", alignment=alignment, generator=torch.Generator().manual_seed(1), **CALL).images


def refused(pipe: DiamondMapPipeline) -> None:
    with pytest.raises(ValueError):
        pipe("a ring", **{**CALL, "reward_scale": float("nan")})


def interrupted(pipe: DiamondMapPipeline) -> None:
    def callback(own: DiamondMapPipeline, *_: object) -> dict[str, torch.Tensor]:
        own._interrupt = True
        return {}

    pipe("a ring", callback_on_step_end=callback, alignment="smc", **CALL)


def dropped(pipe: DiamondMapPipeline) -> None:
    next(pipe.iterate("a ring", alignment="smc", **CALL))


def closed(pipe: DiamondMapPipeline) -> None:
    with pipe.iterate("a ring", alignment="guidance", **CALL) as run:
        next(run)


KINDS: tuple[Callable[[DiamondMapPipeline], object], ...] = (draw, refused, interrupted, dropped, closed)


def held(pipe: DiamondMapPipeline) -> dict[str, int]:
    """What a process holds."""
    gc.collect()
    modules = [
        module for part in pipe.components.values() if isinstance(part, torch.nn.Module) for module in part.modules()
    ]
    return {
        "tensors": sum(issubclass(type(found), torch.Tensor) for found in gc.get_objects()),
        "modules": len(modules),
        "hooks": sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in modules),
        "files": len(os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
        "temporary files": len(os.listdir(tempfile.gettempdir())),
    }


def resident() -> float:
    """MiB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
@pytest.mark.parametrize("num_calls", [120, pytest.param(200, marks=pytest.mark.slow)])
def test_many_calls_without_growth(tiny_pipe: DiamondMapPipeline, tally: Tally, num_calls: int) -> None:
    for kind in KINDS * 3:
        kind(tiny_pipe)
    gc.unfreeze()
    images = draw(tiny_pipe)
    first, memory = held(tiny_pipe), resident()
    for number in range(num_calls):
        KINDS[number % len(KINDS)](tiny_pipe)
    last = held(tiny_pipe)
    for name, count in first.items():
        if name != "temporary files":
            tally.count(
                "understood",
                None if last[name] <= count else f"{count} became {last[name]}",
                f"{name} of {num_calls} calls",
            )
    # Calls that each kept their images and trace alone would take more.
    tally.count(
        "understood", None if resident() < memory + num_calls / 5 else f"{resident() - memory:.0f} MiB more", "memory"
    )
    assert torch.equal(draw(tiny_pipe), images)
    tally.check()


def test_threads(tiny_pipe: DiamondMapPipeline, tally: Tally) -> None:
    """Methods mixed in four threads, with refused and dropped calls among them, draw what they draw alone."""
    alone = {alignment: draw(tiny_pipe, alignment) for alignment in METHODS}

    def task(number: int) -> bool:
        if number % 4 == 3:
            (dropped if number % 8 == 7 else refused)(tiny_pipe)
        alignment = METHODS[number % len(METHODS)]
        return torch.equal(draw(tiny_pipe, alignment), alone[alignment])

    with ThreadPoolExecutor(4) as threads:
        for number, is_same in enumerate(threads.map(task, range(24))):
            tally.count("understood", None if is_same else "another image", f"call {number} of four threads")
    tally.check()

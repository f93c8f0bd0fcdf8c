"""On CUDA the host waits for the device once in a guided step at most: where weights are read, or at its end."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch

from diamond_diffusers import SMC, Guidance, Guide
from diamond_diffusers.alignment.base import Method

from ..families.all_families import FAMILIES, family_of
from ..families.family import PROMPTS, brightness, generators
from .calls import fresh

pytestmark = pytest.mark.gpu

METHODS: dict[str, Method] = {
    "isotropic": Guidance(),
    "pathwise": Guidance(guide=Guide("pathwise")),
    "smc": SMC(num_particles=3, num_valuations=None),
}
# Where weights are read to resample by, and where the checks of a whole step are settled at its end.
MAY_WAIT = ("smc.py", "resampling.py", "deferred.py")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_waits_once_at_most(family: str, method: str, gpu: torch.device) -> None:
    if gpu.type != "cuda":
        pytest.skip("only CUDA tells where it is waited for")
    pipe = fresh(family, gpu)
    call = {**family_of(family).call, "num_inference_steps": 4}
    before = torch.cuda.get_sync_debug_mode()
    with pipe.iterate(
        list(PROMPTS), reward=brightness, alignment=METHODS[method], generator=generators(), **call
    ) as run:
        # The first step fills caches.
        next(run)
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as waits:
                warnings.simplefilter("always")
                next(run)
        finally:
            torch.cuda.set_sync_debug_mode(before)
    places = [f"{Path(wait.filename).name}:{wait.lineno}" for wait in waits if "synchronizing" in str(wait.message)]
    assert [place for place in places if not place.startswith(MAY_WAIT)] == []
    assert len(places) <= 1

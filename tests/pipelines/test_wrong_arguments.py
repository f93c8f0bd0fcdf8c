"""Arguments of a call are understood or refused by their names, before anything is encoded or sampled."""

from __future__ import annotations

import datetime
import decimal
import math
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.zoo.flux import build_tiny_flux
from benchmarks.zoo.pixart_sigma import build_tiny_pixart_sigma
from benchmarks.zoo.sana import build_tiny_sana
from benchmarks.zoo.stable_diffusion import build_tiny_stable_diffusion
from diamond_diffusers import SMC, DiamondMapPipeline, GlassPosterior
from diamond_diffusers.families.base import Family
from diamond_diffusers.pipelines.argument_types import call_parameters

BUILDERS = {
    "flux": build_tiny_flux,
    "stable_diffusion": build_tiny_stable_diffusion,
    "sana": build_tiny_sana,
    "pixart_sigma": build_tiny_pixart_sigma,
}
CALL = {"height": 16, "width": 16, "num_inference_steps": 2}
OWN = (
    "reward",
    "alignment",
    "reward_scale",
    "max_network_evaluations",
    "final_selection",
    "particle_batch_size",
    "gradient_checkpointing",
    "distributed_state",
    "reward_prompt",
    "return_dict",
)
VALUES: dict[str, Any] = {
    "true": True,
    "zero": 0,
    "negative": -8,
    "huge": 10**400,
    "fraction": 2.5,
    "nan": math.nan,
    "infinity": math.inf,
    "complex": 1j,
    "decimal": decimal.Decimal("1.5"),
    "empty text": "",
    "number as text": "3",
    "unknown name": "PIL",
    "bytes": b"4",
    "empty list": [],
    "rising list": [0.1, 0.5],
    "negative list": [0.5, -0.5],
    "nan in a list": [math.nan, 0.5],
    "list of others": [1, "a"],
    "set": {1},
    "mapping": {"no_such_name": 1},
    "wrong form": {"name": 3},
    "class": SMC,
    "part": GlassPosterior(),
    "object": object(),
    "date": datetime.date(2026, 1, 1),
    "function of none": lambda: None,
    "numpy whole number": np.int64(16),
    "numpy nan": np.float32("nan"),
    "numpy array": np.zeros((1, 4, 8, 8)),
    "numpy text": np.array("4"),
    "tensor of whole numbers": torch.zeros(1, 4, dtype=torch.long),
    "complex tensor": torch.zeros(1, 4, dtype=torch.complex64),
    "tensor of nan": torch.full((1, 4, 8, 8), math.nan),
    "meta tensor": torch.zeros(1, 4, 8, 8, device="meta"),
    "number in a tensor": torch.tensor(16),
    "generator": torch.Generator(),
    "generators": [torch.Generator(), torch.Generator()],
}


class EncodedError(Exception):
    """The call has come as far as its prompts."""


@pytest.fixture(scope="module", params=BUILDERS)
def pipe(request: pytest.FixtureRequest) -> DiamondMapPipeline:
    with torch.random.fork_rng():
        pipe = DiamondMapPipeline(BUILDERS[request.param]())
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def nothing_is_encoded(pipe: DiamondMapPipeline, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever passes all checks ends here, before any work."""

    def encode(self: Family, arguments: Any) -> None:
        raise EncodedError

    monkeypatch.setattr(type(pipe.family), "encode", encode)
    return


def names_of(pipe: DiamondMapPipeline) -> list[str]:
    stock = call_parameters(type(pipe.pipeline))
    return [name for name in (*stock, *OWN) if name not in pipe.family.refused_arguments]


@pytest.mark.usefixtures("nothing_is_encoded")
def test_a_value_is_understood_or_refused_by_the_argument_s_name(pipe: DiamondMapPipeline) -> None:
    for name in names_of(pipe):
        for description, value in VALUES.items():
            case = f"{name}, {description}"
            try:
                pipe(**{"prompt": "a star", **CALL, name: value})
            except EncodedError:
                continue
            except (TypeError, ValueError) as error:
                text = str(error)
                assert re.search(rf"\b{name}\b|no_such_name|[Rr]eward", text), f"{case}: {text}"
                assert "\n" not in text and len(text) < 600, f"{case}: {text}"

"""`--device auto` and `--dtype auto` know the accelerators of torch."""

from __future__ import annotations

import pytest
import torch

from diamond_diffusers.cli.options import usable_device, weights_dtype


@pytest.mark.parametrize(
    ("found", "taken"), [(None, "cpu"), ("cuda", "cuda"), ("xpu", "xpu"), ("mps", "mps"), ("hpu", "cpu")]
)
def test_a_gpu_is_taken_where_there_is_one(monkeypatch: pytest.MonkeyPatch, found: str | None, taken: str) -> None:
    device = None if found is None else torch.device(found)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: device)
    assert usable_device("auto") == taken
    assert weights_dtype("auto", taken) == (torch.float32 if taken == "cpu" else torch.bfloat16)
    assert weights_dtype("float16", taken) == torch.float16


@pytest.mark.parametrize("device", ["mps", "xpu:1", "hpu"])
def test_a_device_that_is_not_here_is_refused_by_name(device: str) -> None:
    with pytest.raises(ValueError, match=rf"--device is '{device}', which is not usable here; take cpu or auto"):
        usable_device(device)

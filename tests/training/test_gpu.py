"""The trainer on a GPU: every loss in every precision, and rows in the memory of the device."""

from __future__ import annotations

import pytest
import torch

from diamond_diffusers.training.data.pool import DevicePool, DiskPool, open_pool
from diamond_diffusers.training.losses import LOSSES
from diamond_diffusers.training.trainer import Trainer

from .runs import weights_of
from .test_cache import CPU, filled, teacher  # noqa: F401

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.accelerator.is_available(), reason="there is no GPU")]


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
@pytest.mark.parametrize("loss", LOSSES.names())
def test_the_embedded_map_is_distilled(options, loss, precision):
    caching = ["--cache_trajectories"] if loss == "trajectories" else []
    given = ["--pretrained_model_name_or_path", "miniature", "--loss", loss, "--mixed_precision", precision, *caching]
    run = Trainer(options(*given, "--max_train_steps", 12, "--ema_decay", 0, "--num_validation_images", 1))
    before = weights_of(run)
    run.run()
    assert run.parameters[0].device.type == run.accelerator.device.type
    assert run.skipped.total < 12
    assert all(weight.isfinite().all() for weight in run.parameters)
    assert any((old != new).any() for old, new in zip(before, run.parameters, strict=True))


def test_rows_on_the_device_are_those_of_the_files(teacher, tmp_path):  # noqa: F811
    cache, device = filled(tmp_path, teacher), torch.accelerator.current_accelerator()
    found, expected = open_pool(cache, device, "auto", 0), DiskPool(cache, CPU)
    assert isinstance(found, DevicePool)
    places = [torch.tensor([4, 0, 3]), torch.tensor([1, 1])]
    for batch, same in zip(found.batches(places), expected.batches(places), strict=True):
        for name, kept in batch.items():
            assert kept.device.type == ("cpu" if kept.dtype == torch.float64 else device.type)
            assert torch.equal(kept.cpu(), same[name])

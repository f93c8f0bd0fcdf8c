import mmap

import pytest
import torch

from diamond_diffusers.evaluation import memory
from diamond_diffusers.evaluation.memory import peak_memory

CPU = torch.device("cpu")


@pytest.mark.skipif(not memory._FORGET.exists(), reason="only Linux forgets the peak")
def test_the_peak_is_that_of_the_work_within():
    size = 64 * 2**20
    with peak_memory(CPU) as before:
        pass
    # Pages that are new for certain: the allocator may hand out memory that an earlier test has left resident.
    with peak_memory(CPU) as during, mmap.mmap(-1, size) as pages:
        pages.write(b"1" * size)
    with peak_memory(CPU) as after:
        pass
    assert during.bytes - before.bytes > 0.9 * size
    # What an earlier piece of work held is forgotten.
    assert during.bytes - after.bytes > 0.9 * size


def test_a_system_that_does_not_tell(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "_FORGET", tmp_path / "missing" / "clear_refs")
    with peak_memory(CPU) as peak:
        pass
    assert peak.bytes is None

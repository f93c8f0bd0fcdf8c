"""Rows that are computed once: in whole shards, only those that the run sees, as many at once as memory holds."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from diamond_diffusers.training.data import pool
from diamond_diffusers.training.data.batches import Order
from diamond_diffusers.training.data.cache import ShardedCache, rows_of_shard
from diamond_diffusers.training.data.encoding import TeacherBatches, TrajectoryEncoder, default_batch_size
from diamond_diffusers.training.data.images import Preparation
from diamond_diffusers.training.data.loading import load_rows
from diamond_diffusers.training.data.miniature import MiniatureWorld
from diamond_diffusers.training.data.pool import DevicePool, DiskPool, open_pool, size_in_memory
from diamond_diffusers.training.data.sources import cached_trajectories, open_source
from diamond_diffusers.training.errors import TrainingError
from diamond_diffusers.training.losses.trajectories import TrajectoryLoss
from diamond_diffusers.training.teacher import Teacher

from ..maps.tiny_maps import perturb, tiny_family
from .test_losses import tiny_map

ROWS = MiniatureWorld(5)
PREPARE = Preparation(16)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def teacher():
    return Teacher(tiny_family("flux"), {"max_sequence_length": 12}, 16)


def order(process: int = 0, processes: int = 1) -> Order:
    return Order(len(ROWS), 2, process, processes, seed=3)


def filled(folder, teacher, num_rows: int = 5, processes: int = 1, shard_size: int = 2, **encoder) -> ShardedCache:
    cache = ShardedCache(folder, num_rows, shard_size)
    for process in reversed(range(processes)):
        cache.fill(ROWS, PREPARE, TrajectoryEncoder(teacher, **{"batch_size": 2, **encoder}), order(process, processes))
    return cache


def contents(cache: ShardedCache) -> list[bytes]:
    return [cache.file(shard).read_bytes() for shard in range(cache.num_shards)]


def rows_of(cache: ShardedCache) -> dict[str, torch.Tensor]:
    shards = [cache.read(shard) for shard in range(cache.num_shards)]
    return {name: torch.cat([shard[name] for shard in shards]) for name in shards[0]}


def test_shards_do_not_depend_on_interruptions_or_processes(teacher, tmp_path):
    whole = filled(tmp_path / "whole", teacher)
    assert [file.name for file in sorted(whole.folder.iterdir())] == [
        f"0000000{place}.safetensors" for place in (0, 2, 4)
    ]
    broken = filled(tmp_path / "broken", teacher, processes=2)
    assert contents(broken) == contents(whole)
    broken.file(1).unlink()
    (broken.folder / ".00000002.safetensors.partial").write_bytes(b"half")
    filled(broken.folder, teacher)
    assert contents(broken) == contents(whole)
    assert len(list(broken.folder.iterdir())) == 3


def test_what_is_there_is_not_computed_again(teacher, tmp_path):
    cache = filled(tmp_path, teacher)
    cache.fill(ROWS, PREPARE, lambda *arguments: pytest.fail("computed again"), order())


def test_a_longer_run_keeps_the_rows_and_adds_to_them(teacher, tmp_path):
    short = filled(tmp_path, teacher, num_rows=3)
    before = rows_of(short)
    assert len(before["trajectories.x"]) == 3
    first = short.file(0).read_bytes()
    longer = filled(tmp_path, teacher, num_rows=5)
    assert longer.file(0).read_bytes() == first
    after = rows_of(longer)
    assert len(after["trajectories.x"]) == 5
    torch.testing.assert_close({name: kept[:3] for name, kept in after.items()}, before)


def test_only_rows_that_the_run_sees_are_computed(options, teacher):
    """In the order of the first epoch, whatever the number of processes that share them."""
    for steps, count in ((1, 4), (2, 5)):
        given = options("--cache_latents", "--max_train_steps", steps, output=f"{steps} steps")
        sources = [
            open_source(given, load_rows(given.data), teacher, lambda rows, p=p: order(p, 2), 0, lambda: None)
            for p in range(2)
        ]
        (folder,) = (given.output.output_dir / "cache").iterdir()
        assert len(load_file(folder / "00000000.safetensors")["latents.mean"]) == count
        assert [len(list(source)) for source in sources] == [steps, steps]


def test_shards_are_smaller_for_larger_images():
    assert [rows_of_shard(side) for side in (64, 512, 1024, 2048, 16_384)] == [1024, 256, 64, 16, 1]
    assert default_batch_size(CPU, 1024) < default_batch_size(torch.device("cuda"), 1024) == 1024


def test_trajectories_do_not_depend_on_how_many_rows_are_evaluated_at_once(teacher, tmp_path):
    one, many = (rows_of(filled(tmp_path / str(size), teacher, shard_size=5, batch_size=size)) for size in (1, 5))
    torch.testing.assert_close(one, many)
    assert len(one["trajectories.x"].unique(dim=0)) == len(one["trajectories.noise_to_signal"].unique()) == 5


def test_rows_are_halved_until_memory_holds_them(teacher, tmp_path, monkeypatch, caplog):
    expected = rows_of(filled(tmp_path / "enough", teacher, shard_size=3, num_rows=3, batch_size=1))
    encode_images, sizes = teacher.family.encode_images, []

    def encode(images):
        sizes.append(len(images))
        if len(images) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 GiB.")
        return encode_images(images)

    monkeypatch.setattr(teacher.family, "encode_images", encode)
    found = rows_of(filled(tmp_path / "scarce", teacher, shard_size=3, batch_size=4, num_rows=3))
    # What is at once too much is not tried again.
    assert sizes == [3, 1, 1, 1]
    assert "memory did not hold 3 rows of the teacher at once; going on with 1" in caplog.text
    torch.testing.assert_close(found, expected)


def test_a_single_row_that_is_too_large_is_told():
    def evaluate(rows):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 GiB.")

    with pytest.raises(
        TrainingError, match=r"^memory does not hold .* a single row \(CUDA out of memory: Tried to all"
    ):
        TeacherBatches(4)(evaluate, 5)
    with pytest.raises(RuntimeError, match="a bug"):
        TeacherBatches(4)(lambda rows: (_ for _ in ()).throw(RuntimeError("a bug")), 5)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_pools_on_the_device_and_on_the_disk_hold_the_same(teacher, tmp_path, num_workers):
    cache = filled(tmp_path, teacher)
    expected = rows_of(cache)
    places = [torch.tensor(batch) for batch in ([0, 1], [4, 0, 3], [2, 2])]
    pools = DevicePool(cache, CPU), DiskPool(cache, CPU, num_workers)
    for batches in zip(*(each.batches(places) for each in pools), places, strict=True):
        *found, index = batches
        assert all(torch.equal(batch[name], kept[index]) for batch in found for name, kept in expected.items())
        assert found[0].keys() == found[1].keys() == expected.keys()
    assert size_in_memory(cache) == sum(kept.nbytes for kept in expected.values())


def test_a_pool_is_where_there_is_room(teacher, tmp_path, monkeypatch):
    cache = filled(tmp_path, teacher)
    assert isinstance(open_pool(cache, CPU, "auto", 0), DiskPool)
    assert isinstance(open_pool(cache, CPU, "device", 0), DevicePool)
    size = size_in_memory(cache)
    for free, kind in ((2 * size, DevicePool), (2 * size - 1, DiskPool)):
        monkeypatch.setattr(pool, "free_memory", lambda device, free=free: free)
        assert isinstance(open_pool(cache, CPU, "auto", 0), kind)
        assert isinstance(open_pool(cache, CPU, "disk", 0), DiskPool)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.accelerator.is_available(), reason="there is no GPU")
def test_rows_on_a_gpu_are_those_of_the_files(teacher, tmp_path):
    """But for the levels, which stay on the CPU."""
    cache, device = filled(tmp_path, teacher), torch.accelerator.current_accelerator()
    found, expected = open_pool(cache, device, "auto", 0), DiskPool(cache, CPU)
    assert isinstance(found, DevicePool)
    places = [torch.tensor([4, 0, 3]), torch.tensor([1, 1])]
    for batch, same in zip(found.batches(places), expected.batches(places), strict=True):
        for name, kept in batch.items():
            assert kept.device.type == ("cpu" if kept.dtype == torch.float64 else device.type)
            assert torch.equal(kept.cpu(), same[name])


def test_a_pool_that_the_device_does_not_hold_is_told(teacher, tmp_path, monkeypatch):
    cache = filled(tmp_path, teacher)

    def fail(cache, device):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 GiB.")

    monkeypatch.setattr(pool, "DevicePool", fail)
    message = (
        r"^--cache_location is device, .* not hold 0.00 GB of cached rows \(CUDA out of .*\); take auto or disk, or"
    )
    with pytest.raises(TrainingError, match=message):
        open_pool(cache, CPU, "device", 0)


def test_a_shard_that_is_damaged_is_named(tmp_path):
    cache = ShardedCache(tmp_path, 5, 2)
    cache.file(1).write_bytes(b"no tensors")
    for use in (lambda: cache.read(1), lambda: cache.fill(ROWS, PREPARE, None, order(1, 3))):
        with pytest.raises(
            TrainingError, match=r"00000002.safetensors' cannot be read .*; delete it, so that it is mad"
        ):
            use()


def gradient_of(cache: ShardedCache, teacher: Teacher) -> torch.Tensor:
    """Of the loss of all cached trajectories, for a map that is not at rest."""
    diamond_map = tiny_map("flux")
    perturb(diamond_map)
    data, features = next(cached_trajectories(DiskPool(cache, CPU).batches([torch.arange(5)])))()
    torch.manual_seed(0)
    loss, _ = TrajectoryLoss()(diamond_map, data, teacher.conditions(features), 0)
    return torch.cat([gradient.flatten() for gradient in torch.autograd.grad(loss, diamond_map.trained_parameters())])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_takes_half_the_room_and_teaches_the_same(teacher, tmp_path, dtype):
    """Gradients of the trajectory loss point the same way; levels and captions are kept as they are."""
    full = filled(tmp_path / "full", teacher, shard_size=5)
    half = filled(tmp_path / "half", teacher, shard_size=5, dtype=getattr(torch, dtype))
    exact, rounded = full.read(0), half.read(0)
    for name in exact:
        kept = name in ("trajectories.x", "trajectories.states")
        assert rounded[name].nbytes * (2 if kept else 1) == exact[name].nbytes
        assert torch.equal(rounded[name], exact[name].to(rounded[name].dtype))
    first, second = (gradient_of(cache, teacher) for cache in (full, half))
    assert torch.nn.functional.cosine_similarity(first, second, dim=0) > 0.9999

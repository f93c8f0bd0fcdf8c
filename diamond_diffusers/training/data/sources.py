"""Where the clean latents of a batch come from, and the prompts that go with them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .batches import Order, batches_from
from .cache import ShardedCache, identity, rows_of_shard
from .encoding import Encoder, LatentEncoder, TrajectoryEncoder, default_batch_size
from .images import Preparation, Prepare, caption_alone, choose_caption
from .pool import open_pool
from .rows import Captioned
from .trajectories import Trajectories, TrajectoryDraws

if TYPE_CHECKING:
    from ..options.records import Options
    from ..teacher import Teacher

Source = Iterator[Callable[[], tuple[Tensor | Trajectories, dict[str, Tensor]]]]
"""Endless batches; each is drawn when it is called, as what is learnt from, clean latents `[B, ...]` or trajectories,
and the features of their captions."""


def open_source(
    options: Options,
    rows: Any,
    teacher: Teacher,
    order: Callable[[int], Order],
    first_batch: int,
    barrier: Callable[[], None],
    evaluate: Callable[..., Any] | None = None,
) -> Source:
    """The batches of rows, starting at a batch: clean latents, or trajectories of the teacher's inner flow.

    Args:
        options: options of the whole run, since cached files depend on many of them.
        rows: the rows, as from `load_rows`.
        order: the order of the rows.
        barrier: waits for all processes.
        evaluate: the `DistilledModule`, through which a distributed network has to be evaluated; needed for
            trajectories, None for latents.
    """
    cached = options.preparation.cache_trajectories
    source = _open_rows(options, rows, teacher, order, first_batch, barrier)
    return (
        source if evaluate is None or cached else with_trajectories(source, teacher, options.trajectory_draws, evaluate)
    )


def _open_rows(
    options: Options,
    rows: Any,
    teacher: Teacher,
    order: Callable[[int], Order],
    first_batch: int,
    barrier: Callable[[], None],
) -> Source:
    """The batches of clean latents of rows, or of trajectories if these are cached."""
    streaming, preparation = options.data.streaming, options.preparation
    row_order, num_workers = order(0 if streaming else len(rows)), preparation.dataloader_num_workers
    if options.learns_from_samples and not preparation.keeps_rows:
        captions = batches_from(rows, _caption, row_order, first_batch, num_workers, streaming)
        return teacher_source(captions, teacher, preparation.teacher_num_inference_steps)
    if not preparation.keeps_rows:
        prepare = _preparation(options, teacher)
        images = batches_from(rows, prepare, row_order, first_batch, num_workers, streaming)
        return image_source(images, teacher)
    cache = fill_cache(options, rows, teacher, row_order)
    barrier()
    pool = open_pool(cache, teacher.family.device, preparation.cache_location, num_workers)
    places = _places(row_order, first_batch, options.updates.num_batches)
    read = cached_trajectories if preparation.cache_trajectories else cached_latents
    return read(pool.batches(places))


def _preparation(options: Options, teacher: Teacher) -> Prepare:
    """What is done with a row before it is encoded."""
    if options.learns_from_samples:
        return caption_alone
    preparation = options.preparation
    return Preparation(teacher.resolution, preparation.center_crop, preparation.random_flip)


def fill_cache(options: Options, rows: Any, teacher: Teacher, order: Order) -> ShardedCache:
    """The rows that the run is going to see, after this process has computed its share of those not in files yet.

    Arguments as of `open_source`.
    """
    preparation, device = options.preparation, teacher.family.device
    shard_size = rows_of_shard(teacher.resolution)
    num_visited = options.updates.num_batches * order.batch_size * order.num_processes
    folder = options.output.output_dir / "cache" / identity(options, rows, teacher, order, shard_size)
    cache = ShardedCache(folder, min(len(rows), num_visited), shard_size)
    batch_size = preparation.teacher_batch_size or default_batch_size(device, shard_size)
    num_inference_steps = preparation.teacher_num_inference_steps if options.learns_from_samples else None
    given = teacher, batch_size, getattr(torch, preparation.cache_dtype), num_inference_steps
    keeps_trajectories = preparation.cache_trajectories
    encode: Encoder = (
        TrajectoryEncoder(*given, draws=options.trajectory_draws) if keeps_trajectories else LatentEncoder(*given)
    )
    cache.fill(rows, _preparation(options, teacher), encode, order, preparation.dataloader_num_workers)
    return cache


def _places(order: Order, first_batch: int, num_batches: int) -> Iterator[Tensor]:
    """The places of the rows of each batch in the first epoch, `[B]`."""
    place = order.permutation(0).argsort()
    for rows in islice(order.rows(first_batch), max(0, num_batches - first_batch)):
        yield place[rows]


def image_source(batches: Iterator[list[tuple[Tensor, str]]], teacher: Teacher) -> Source:
    """Encodes images and captions batch by batch."""
    for batch in batches:
        images, captions = zip(*batch, strict=True)

        def draw(images: Sequence[Tensor] = images, captions: Sequence[str] = captions) -> Any:
            mean, deviation = teacher.family.encode_images(torch.stack(list(images)))
            return (mean + deviation * torch.randn_like(mean)).float(), teacher.features(captions)

        yield draw


def teacher_source(batches: Iterator[list[str]], teacher: Teacher, num_inference_steps: int) -> Source:
    """Samples the teacher at captions."""
    for captions in batches:

        def draw(captions: Sequence[str] = captions) -> Any:
            generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
            return teacher.sample(captions, num_inference_steps, generator), teacher.features(captions)

        yield draw


def _caption(row: Captioned, rng: random.Random) -> str:
    return choose_caption(row, rng)


def with_trajectories(source: Source, teacher: Teacher, draws: TrajectoryDraws, evaluate: Callable[..., Any]) -> Source:
    """Runs the teacher's inner flow from the clean latents of a source.

    Args:
        draws: how many, and of which observations.
        evaluate: the `DistilledModule`, through which a distributed network has to be evaluated.
    """
    for draw_latents in source:

        def draw(draw_latents: Callable[..., Any] = draw_latents) -> Any:
            z, features = draw_latents()
            with torch.no_grad():
                conditions = teacher.conditions(features)
                drawn = evaluate(lambda _: Trajectories.draw(teacher.family, z, conditions, draws))
            return drawn, features

        yield draw


def cached_latents(batches: Iterator[dict[str, Tensor]]) -> Source:
    """Draws the latents whose means and deviations `LatentEncoder` has kept."""
    for features in batches:

        def draw(features: dict[str, Tensor] = features) -> Any:
            mean, deviation = (features.pop(f"latents.{name}", None) for name in ("mean", "deviation"))
            assert mean is not None, "it is kept of every row"
            # Samples of the teacher have no deviation.
            z = mean.float()
            return z if deviation is None else z + deviation.float() * torch.randn_like(z), features

        yield draw


def cached_trajectories(batches: Iterator[dict[str, Tensor]]) -> Source:
    """The trajectories that `TrajectoryEncoder` has kept."""
    for features in batches:

        def draw(features: dict[str, Tensor] = features) -> Any:
            names = ("x", "noise_to_signal", "states")
            x, level, states = (features.pop(f"trajectories.{name}") for name in names)
            return Trajectories(x.float(), level, states.float()), features

        yield draw

"""Where the clean latents of a batch come from, and the prompts that go with them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .batches import Order, batches_from
from .cache import RowCache, identity, latent_encoder, trajectory_encoder
from .images import Preparation, choose_caption
from .rows import Captioned
from .trajectories import Trajectories

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
    return source if evaluate is None or cached else with_trajectories(source, teacher, evaluate)


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
    row_order = order(0 if streaming else len(rows))
    open_batches = partial(
        batches_from, order=row_order, first_batch=first_batch, num_workers=preparation.dataloader_num_workers
    )
    if options.learns_from_samples:
        captions = open_batches(rows, _caption, streaming=streaming)
        return teacher_source(captions, teacher, preparation.teacher_num_inference_steps)
    prepare = Preparation(teacher.resolution, preparation.center_crop, preparation.random_flip)
    if preparation.cache_trajectories:
        encode, read = trajectory_encoder(rows, prepare, teacher), cached_trajectories
    elif preparation.cache_latents:
        encode, read = latent_encoder(rows, prepare, teacher), cached_latents
    else:
        return image_source(open_batches(rows, prepare, streaming=streaming), teacher)
    cache = RowCache(options.output.output_dir / "cache", identity(options, rows, teacher))
    cache.fill(len(rows), encode, row_order.process_index, row_order.num_processes)
    barrier()
    files = [Captioned(None, "", str(index)) for index in range(len(rows))]
    return read(open_batches(files, cache, streaming=False), teacher)


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


def with_trajectories(source: Source, teacher: Teacher, evaluate: Callable[..., Any]) -> Source:
    """Runs the teacher's inner flow from the clean latents of a source.

    Args:
        evaluate: the `DistilledModule`, through which a distributed network has to be evaluated.
    """
    for draw_latents in source:

        def draw(draw_latents: Callable[..., Any] = draw_latents) -> Any:
            z, features = draw_latents()
            with torch.no_grad():
                drawn = evaluate(lambda _: Trajectories.draw(teacher.family, z, teacher.conditions(features)))
            return drawn, features

        yield draw


def cached_latents(batches: Iterator[list[dict[str, Tensor]]], teacher: Teacher) -> Source:
    """Reads the latents that `latent_encoder` has encoded."""
    for features in _stacked(batches, teacher):

        def draw(features: dict[str, Tensor] = features) -> Any:
            mean, deviation = features.pop("latents.mean"), features.pop("latents.deviation")
            return mean + deviation * torch.randn_like(mean), features

        yield draw


def cached_trajectories(batches: Iterator[list[dict[str, Tensor]]], teacher: Teacher) -> Source:
    """Reads the trajectories that `trajectory_encoder` has drawn."""
    for features in _stacked(batches, teacher):

        def draw(features: dict[str, Tensor] = features) -> Any:
            names = ("x", "noise_to_signal", "states")
            x, level, states = (features.pop(f"trajectories.{name}") for name in names)
            return Trajectories(x, level.cpu(), states.float()), features

        yield draw


def _stacked(batches: Iterator[list[dict[str, Tensor]]], teacher: Teacher) -> Iterator[dict[str, Tensor]]:
    device = teacher.family.device
    for batch in batches:
        yield {name: torch.stack([row[name] for row in batch]).to(device) for name in batch[0]}

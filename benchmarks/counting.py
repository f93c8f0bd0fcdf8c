"""What a pipeline really does, seen by hooks, whatever it says of itself."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils import checkpoint as checkpointing

if TYPE_CHECKING:
    from diamond_diffusers.pipelines.pipeline import DiamondMapPipeline


@dataclass
class Counts:
    """Rows that have passed through the parts of a pipeline.

    Attributes:
        network: forward passes of the network.
        backward: backward passes through it.
        decoded: latents decoded by the full autoencoder.
        trained_weights: whether weights of the network ever asked for gradients.
    """

    network: int = 0
    backward: int = 0
    decoded: int = 0
    trained_weights: bool = False


@contextmanager
def counted(pipe: DiamondMapPipeline) -> Iterator[Counts]:
    """Counts what a pipeline evaluates while the context is open."""
    counts = Counts()

    def saw_network(module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        latents = args[0] if args else kwargs["sample" if "sample" in kwargs else "hidden_states"]
        rows = len(latents)
        counts.network += rows
        counts.trained_weights |= any(weight.requires_grad for weight in module.parameters())
        predicted = _first_tensor(output)
        if predicted.requires_grad:
            predicted.register_hook(lambda gradient: saw_backward(rows))

    def saw_backward(rows: int) -> None:
        counts.backward += rows

    def saw_decoder(module: nn.Module, args: tuple, output: Any) -> None:
        counts.decoded += len(_first_tensor(output))

    hooks = [
        pipe.family.network_module.register_forward_hook(saw_network, with_kwargs=True),
        pipe.vae.decoder.register_forward_hook(saw_decoder),
    ]
    try:
        yield counts
    finally:
        for hook in hooks:
            hook.remove()


def _first_tensor(output: Any) -> Tensor:
    """Of what a module returns: a tensor, a tuple or list, or one of diffusers' outputs."""
    while not isinstance(output, Tensor):
        output = output[0]
    return output


class GraphMemory:
    """Bytes that autograd graphs hold for their backward passes, each storage once.

    This includes what torch's gradient checkpointing computes again on the way back, for as long as it is held.

    Args:
        weights: are there anyway, and not counted.

    Attributes:
        live: bytes held now.
        peak: the most that were held at once.
    """

    def __init__(self, weights: Iterable[Tensor] = ()) -> None:
        self.live = self.peak = 0
        self._holders: Counter[int] = Counter()
        self._weights = {_storage(weight) for weight in weights}

    @contextmanager
    def watched(self) -> Iterator[GraphMemory]:
        """Sees the graphs that are built while the context is open, by any thread, and what is computed again."""
        recomputation = checkpointing._recomputation_hook
        hold = self._hold

        class Watched(recomputation):  # type: ignore[misc, valid-type]
            """Keeps what is computed again for the graph of a checkpoint, as torch does, and says so."""

            def __init__(self, frame: Any, group: Any) -> None:
                super().__init__(frame, group)
                keep = self.pack_hook

                def keep_watched(tensor: Tensor) -> Tensor:
                    place = frame().recomp_counter[group]
                    try:
                        return keep(tensor)
                    finally:
                        # Also where torch ends the computation, since it has all that it needs.
                        holder = frame().weak_holders[place]() if place < len(frame().weak_holders) else None
                        if holder is not None:
                            hold(tensor, holder.handles[group])

                self.pack_hook = keep_watched

        checkpointing._recomputation_hook = Watched
        try:
            with torch.autograd.graph.saved_tensors_hooks(self._held, lambda held: held.tensor):
                yield self
        finally:
            checkpointing._recomputation_hook = recomputation

    def _held(self, tensor: Tensor) -> _Held:
        # An operation that saves its own result would hold itself.
        held = _Held(tensor.detach())
        self._hold(tensor, held)
        return held

    def _hold(self, tensor: Tensor, holder: object) -> None:
        """Counts a tensor for as long as its holder lives."""
        storage, size = _storage(tensor), tensor.untyped_storage().nbytes()
        if storage not in self._weights:
            self._holders[storage] += 1
            if self._holders[storage] == 1:
                self.live += size
                self.peak = max(self.peak, self.live)
            weakref.finalize(holder, self._release, storage, size)

    def _release(self, storage: int, size: int) -> None:
        self._holders[storage] -= 1
        if self._holders[storage] == 0:
            self.live -= size


class _Held:
    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def _storage(tensor: Tensor) -> int:
    """The number of a tensor's storage, which those without numbers, on the meta device, have too."""
    return tensor.untyped_storage()._cdata

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

    What is computed again on the way back (gradient checkpointing) is not seen.

    Args:
        weights: are there anyway, and not counted.

    Attributes:
        live: bytes held now.
        peak: the most that were held at once.
    """

    def __init__(self, weights: Iterable[Tensor] = ()) -> None:
        self.live = self.peak = 0
        self._holders: Counter[int] = Counter()
        self._weights = {_address(weight) for weight in weights}

    @contextmanager
    def watched(self) -> Iterator[GraphMemory]:
        """Sees the graphs that are built while the context is open."""
        with torch.autograd.graph.saved_tensors_hooks(self._hold, lambda held: held.tensor):
            yield self

    def _hold(self, tensor: Tensor) -> _Held:
        # An operation that saves its own result would hold itself.
        held = _Held(tensor.detach())
        address, size = _address(tensor), tensor.untyped_storage().nbytes()
        if address not in self._weights:
            self._holders[address] += 1
            if self._holders[address] == 1:
                self.live += size
                self.peak = max(self.peak, self.live)
            weakref.finalize(held, self._release, address, size)
        return held

    def _release(self, address: int, size: int) -> None:
        self._holders[address] -= 1
        if self._holders[address] == 0:
            self.live -= size


class _Held:
    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()

"""How the parts of a model are evaluated where they are differentiated: block by block, with the weights of then."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial, wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..core.held import HeldChange
from ..core.weights_as_used import WeightsAsUsed
from ..transitions.sampled_model import SampledModel
from .compat import AdapterState, alone_with, checkpointed_by, compute_dtype, is_compiled, moves_weights
from .group_offloading import group_offloading_hooks, onloaded


class EvaluatedParts(SampledModel):
    """A model whose network and decoders are diffusers modules."""

    _evaluated_parts: dict[Any, Evaluated]

    def evaluating_network(self, in_blocks: bool) -> AbstractContextManager[None]:
        network, _ = self.parts()
        return self._evaluated(network, False).evaluated(in_blocks)

    def evaluating_decoder(self, in_blocks: bool, preview: bool = False) -> AbstractContextManager[None]:
        _, decoder = self.parts(preview)
        return self._evaluated(decoder, True).evaluated(in_blocks)

    def _evaluated(self, module: Any, is_decoder: bool) -> Evaluated:
        # Looked for once a call, since that takes longer than all else here.
        parts = self._evaluated_parts
        if module not in parts:
            is_checkpointed = not is_decoder and bool(getattr(module, "is_gradient_checkpointing", False))
            parts[module] = Evaluated(module, is_decoder, moves_weights(module), is_checkpointed)
        return parts[module]


@dataclass(frozen=True)
class Evaluated:
    """A part of a model: its network, or one of its decoders.

    Args:
        module: the network, or the autoencoder that decodes.
        is_decoder: whether it decodes.
        moves_weights: whether hooks put its weights elsewhere, or in another precision, between evaluations.
        is_checkpointed: whether it evaluates its blocks again anyway, which has to be with the adapters of then.
    """

    module: nn.Module
    is_decoder: bool
    moves_weights: bool
    is_checkpointed: bool = False

    @contextmanager
    def evaluated(self, in_blocks: bool) -> Iterator[None]:
        """Context of an evaluation.

        Args:
            in_blocks: whether what is differentiated is evaluated again on the backward pass block by block, so that
                the graph of one block is all that is ever held.
        """
        with ExitStack() as stack:
            entries = _decoding(self.module) if self.is_decoder else [self.module]
            if self.moves_weights:
                stack.enter_context(alone_with(self.module))
                stack.enter_context(onloaded(self.module, entries, out_of_turn=False))
            if torch.is_grad_enabled():
                if (in_blocks or self.is_checkpointed) and not any(map(is_compiled, (self.module, *entries))):
                    stack.enter_context(_IN_BLOCKS[self.is_decoder].of(self.module))
                stack.enter_context(self.weights_as_used())
            yield

    def weights_as_used(self, upcasts: bool = False) -> AbstractContextManager[Any]:
        """Context in which graphs keep the weights that they were made with, where these change later.

        Args:
            upcasts: whether they were used in float32, as of `decoded`.
        """
        if not self.moves_weights and not upcasts:
            return nullcontext()
        hooks = group_offloading_hooks(self.module).values() if self.moves_weights else ()
        streams = any(hook.group.stream is not None for hook in hooks)
        return WeightsAsUsed(torch.float32 if upcasts else None, streams)


def overflows(decoder: Any) -> bool:
    """Whether a decoder's float16 may overflow, as its configuration says."""
    return compute_dtype(decoder) == torch.float16 and bool(decoder.config.get("force_upcast"))


def decoded(decoder: Any, latents: Tensor, *, upcasts_images: bool = False) -> Tensor:
    """What a decoder makes of its latents: in float32 where they are differentiated and its float16 may overflow.

    The decoder itself, which other threads may use, stays what it is.

    Args:
        decoder: an autoencoder.
        latents: in its scale and form.
        upcasts_images: whether the stock pipeline decodes in float32 then, too, what is not differentiated.
    """
    upcasts = overflows(decoder) and (upcasts_images or (torch.is_grad_enabled() and latents.requires_grad))
    with WeightsAsUsed(torch.float32) if upcasts else nullcontext():
        images: Tensor = decoder.decode(
            latents.to(torch.float32 if upcasts else compute_dtype(decoder)), return_dict=False
        )[0]
    return images


def _decoding(autoencoder: nn.Module) -> list[nn.Module]:
    """The parts of an autoencoder that decode."""
    parts = (getattr(autoencoder, name, None) for name in ("post_quant_conv", "decoder"))
    return [part for part in parts if isinstance(part, nn.Module)]


def blocks_of(decoder: nn.Module) -> list[nn.Module]:
    """The stages of a decoder, and the blocks of each: residual blocks, attentions, upsamplers.

    Both are evaluated again on the way back: the stages alone would hold three blocks or more at the full resolution at
    once, and the blocks alone what goes into each of them.
    """
    stages = _composed(decoder)
    return list(dict.fromkeys([*stages, *(block for stage in stages for block in _composed(stage))]))


def _composed(module: nn.Module) -> list[nn.Module]:
    """The parts of a module, or of its lists of parts, that consist of layers with weights."""
    children = [
        part
        for child in module.children()
        for part in (child.children() if isinstance(child, nn.ModuleList) else [child])
    ]
    return [part for part in children if any(any(True for _ in layer.parameters()) for layer in part.children())]


def _decode_in_blocks(autoencoder: nn.Module) -> Callable[[], object]:
    """Has the stages and blocks of an autoencoder's decoder evaluated again on the way back."""
    part = Evaluated(autoencoder, True, moves_weights(autoencoder))
    decoder = getattr(autoencoder, "decoder", None)
    restores = [_checkpoint_forward(part, block) for block in blocks_of(decoder)] if decoder is not None else []

    def undo() -> None:
        for restore in restores:
            restore()

    return undo


def _checkpoint_forward(part: Evaluated, block: nn.Module) -> Callable[[], object]:
    former, evaluate = vars(block).get("forward"), block.forward

    @wraps(evaluate)
    def forward(*args: Any, **options: Any) -> Any:
        if not torch.is_grad_enabled():
            return evaluate(*args, **options)
        return checkpoint(evaluate, *args, use_reentrant=False, context_fn=partial(_contexts, part, block), **options)

    def restore() -> None:
        # Hooks that take themselves away while a module is evaluated have put back what was there before.
        if vars(block).get("forward") is forward:
            if former is None:
                del block.forward
            else:
                block.forward = former

    block.forward = forward
    return restore


def _predict_in_blocks(network: nn.Module) -> Callable[[], object]:
    """Has the blocks of a network evaluated again on the way back, by its own mechanism."""
    part = Evaluated(network, False, moves_weights(network))

    def checkpointed(block: nn.Module, *args: Any) -> Any:
        return checkpoint(block, *args, use_reentrant=False, context_fn=partial(_contexts, part, block))

    return checkpointed_by(network, checkpointed)


_IN_BLOCKS: dict[bool, HeldChange[nn.Module]] = {
    True: HeldChange(_decode_in_blocks),
    False: HeldChange(_predict_in_blocks),
}
"""By whether a part decodes."""


def _contexts(part: Evaluated, block: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """The contexts of a block's evaluation, and of that on the way back, which find the same blocks within it."""
    # Another thread may end its evaluation meanwhile, with which the blocks would be as they were.
    return _IN_BLOCKS[True].of(part.module) if part.is_decoder else nullcontext(), _Again(part, block)


class _Again:
    """Context in which a block is evaluated again as it was evaluated first, whatever has been changed meanwhile.

    It may be entered once for each backward pass through the same graph.
    """

    def __init__(self, part: Evaluated, block: nn.Module) -> None:
        self.part, self.block = part, block
        self._adapters = AdapterState(block.modules())
        self._entered: list[ExitStack] = []

    def __enter__(self) -> None:
        part = self.part
        with ExitStack() as stack:
            if part.moves_weights or not part.is_decoder:
                stack.enter_context(alone_with(part.module))
            if part.moves_weights:
                stack.enter_context(onloaded(part.module, [self.block], out_of_turn=True))
            if part.is_decoder:
                stack.enter_context(_IN_BLOCKS[True].of(part.module))
            stack.enter_context(part.weights_as_used(part.is_decoder and overflows(part.module)))
            stack.enter_context(self._adapters.restored())
            self._entered.append(stack.pop_all())

    def __exit__(self, *error: Any) -> None:
        self._entered.pop().__exit__(*error)

"""Whose fault it is where a number on the way from the latents to the reward is none."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from ..core.deferred import require
from ..core.levels import Level, as_level
from ..core.model import Model
from ..core.tensors import finite_rows
from ..rewards.base import Reward


class NotFiniteError(ValueError):
    """The network, the decoder or a derivative has given NaN or infinity."""


def check_evaluated(model: Model, result: Tensor, states: tuple[Tensor, ...], noise_to_signal: Level) -> None:
    """Requires that what the network of a model has made of states at a level is finite; `deferred_checks` may wait.

    Args:
        model: whose network was evaluated.
        result: `[N, ...]`.
        states: each `[N, ...]`.
        noise_to_signal: their level, `[]` or `[N]`.

    Raises:
        NotFiniteError: the result is not finite.
    """

    # They are as small as they are few, and looked at only where something is wrong.
    given = [state.detach() for state in states]

    def fault(are_finite: Tensor) -> NotFiniteError:
        of_states = [finite_rows(state) for state in given]
        wrong = next((rows for rows in of_states if not rows.all()), None)
        return fault_of_network(are_finite) if wrong is None else fault_of_states(wrong)

    def fault_of_states(are_finite: Tensor) -> NotFiniteError:
        return NotFiniteError(
            f"the latents {_first(are_finite, noise_to_signal)} are not finite before the network is evaluated there; "
            "look for NaN in latents that were given or that a callback has changed, or lower the strength of the guide"
        )

    def fault_of_network(are_finite: Tensor) -> NotFiniteError:
        network, _ = model.parts()
        remedies: dict[torch.dtype | None, str] = {
            torch.float16: "load the model in bfloat16 or float32",
            torch.bfloat16: "load the model in float32, or lower the strength of the guide",
        }
        remedy = remedies.get(
            _dtype(network), "look for NaN among its weights and adapters, or lower the strength of the guide"
        )
        return NotFiniteError(
            f"{_described(network, 'the network')} has made NaN or infinity of finite latents "
            f"{_first(are_finite, noise_to_signal)}; {remedy}"
        )

    _require_rows(finite_rows(result), fault)


def check_decoded(model: Model, images: Tensor, latents: Tensor, noise_to_signal: Level) -> None:
    """Requires that decoded images are finite, without which no reward can score; `deferred_checks` may wait.

    Args:
        model: that has decoded.
        images: `[N, 3, H, W]`.
        latents: clean ones, `[N, ...]`.
        noise_to_signal: the level from which they are look-aheads, `[]` or `[N]`; 0 where they are final.

    Raises:
        NotFiniteError: they are not.
    """

    def fault_of_latents(are_finite: Tensor) -> NotFiniteError:
        return NotFiniteError(
            f"the clean latents that were looked ahead to {_first(are_finite, noise_to_signal)} are not finite, before "
            "they are decoded; load the model in bfloat16 or float32, or lower the strength of the guide"
        )

    def fault_of_decoder(are_finite: Tensor) -> NotFiniteError:
        # Look-aheads are decoded as previews, and final images in full.
        preview = bool(as_level(noise_to_signal).max() > 0)
        _, decoder = model.parts(preview)
        return NotFiniteError(
            f"{_described(decoder, 'the decoder')} has made NaN of finite latents, looked ahead to "
            f"{_first(are_finite, noise_to_signal)}; {_decoder_remedy(decoder, preview)}"
        )

    _require_rows(finite_rows(latents), fault_of_latents)
    _require_rows(finite_rows(images), fault_of_decoder)


def fault_of_gradient(
    model: Model, reward: Reward, of_images: Tensor | None, of_latents: Tensor, noise_to_signal: Level, preview: bool
) -> NotFiniteError:
    """Why a gradient is not finite.

    Args:
        model: through whose network and decoder the gradient goes.
        reward: where it begins.
        of_images: the reward's gradient in the images; None where it has none.
        of_latents: that in the clean latents, through decoder and reward.
        noise_to_signal: level of the particles.
        preview: as of `Model.decode`.
    """
    place = f"at the noise-to-signal ratio {float(as_level(noise_to_signal).max()):.4g}"
    if of_images is not None and not finite_rows(of_images).all():
        return NotFiniteError(
            f"reward '{reward.name}' gives the pixels of a finite image a gradient that is not finite, {place}; mend "
            "its `score`, load it in float32, or take gradient='tilted_mean', which needs none"
        )
    network, decoder = model.parts(preview)
    if not finite_rows(of_latents).all():
        return NotFiniteError(
            f"the gradient through {_described(decoder, 'the decoder')} is not finite {place}, though images and the "
            f"reward's own gradient are; {_decoder_remedy(decoder, preview)}"
        )
    return NotFiniteError(
        f"the gradient through {_described(network, 'the network')} is not finite {place}, though that through decoder "
        "and reward is; load the model in float32, or take gradient='isotropic' or 'tilted_mean', which do not "
        "differentiate the network"
    )


def _require_rows(are_finite: Tensor, fault: Callable[[Tensor], NotFiniteError]) -> None:
    """Requires that all rows are finite; the fault is told which of them are, `[N]`."""
    require(are_finite, partial(fault, are_finite))


def _first(are_finite: Tensor, noise_to_signal: Level) -> str:
    """The level, in words, of the first row that is not finite."""
    level = as_level(noise_to_signal)
    if level.ndim:
        level = level[are_finite.tolist().index(False)]
    return f"at the noise-to-signal ratio {float(level):.4g}"


def _described(module: nn.Module | None, otherwise: str) -> str:
    dtype = _dtype(module)
    return otherwise if module is None else f"{type(module).__name__}" + ("" if dtype is None else f" in {dtype}")


def _dtype(module: nn.Module | None) -> torch.dtype | None:
    weight = None if module is None else next(module.parameters(), None)
    return None if weight is None else weight.dtype


def _decoder_remedy(decoder: nn.Module | None, preview: bool) -> str:
    name = "pipe.preview_vae" if preview else "pipe.vae"
    if _dtype(decoder) in (torch.float16, torch.bfloat16):
        return f"decode in float32: {name}.to(torch.float32)"
    return f"look for NaN among the weights of {name}, or lower the guidance scale"

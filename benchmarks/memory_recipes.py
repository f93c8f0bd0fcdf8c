"""Which weights, offloading and chunks let a guided call of a published model fit onto a card."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import torch
from torch import nn

from diamond_diffusers.alignment.graph_demand import GraphDemand
from diamond_diffusers.alignment.memory_plan import CHECKPOINTINGS, USED_SHARE, MemoryPlan, RunSize, plan_memory

from .memory_counts import encoder_numbers, numbers, particle_memory, weights_of
from .zoo.published import PUBLISHED_MODELS
from .zoo.published_encoders import TEXT_ENCODERS, clip_large

GB = 10**9
CARDS = (8, 12, 16, 24, 48, 80)
MODELS = (
    "stable_diffusion",
    "sdxl",
    "sana_sprint",
    "stable_diffusion_3.5",
    "flux",
    "z_image",
    "qwen_image",
)
CONTEXT = GB // 2
"""What CUDA and its libraries take of a card before anything is loaded."""
GUIDED = GraphDemand(rows=4, copies=1, network=1, preview=1)
"""The method of all recipes: `Guidance(guide=Guide("pathwise"), num_particles=4)`."""


@dataclass(frozen=True)
class Loading:
    """A way to load a model.

    Attributes:
        name: as the page calls it.
        num_bytes: of a number of the network and of text encoders.
        offloads: `none`, `model` (one model at a time on the device) or `group` (one block, and the next on its way; of
            networks of convolutions, whose blocks are large, one layer).
        quantises: whether weights of linear layers are, which networks of convolutions have few of.
    """

    name: str
    num_bytes: float
    offloads: str = "none"
    quantises: bool = False


LOADINGS = (
    Loading("bfloat16", 2),
    Loading("int8", 1, quantises=True),
    # Four bits, and a scale of four bytes for each 64 numbers.
    Loading("NF4", 0.5 + 4 / 64, quantises=True),
    Loading("model offloading", 2, "model"),
    Loading("NF4, model offloading", 0.5 + 4 / 64, "model", True),
    Loading("group offloading", 2, "group"),
)
"""From the fastest on."""


@dataclass(frozen=True)
class Recipe:
    """How a model fits onto a card.

    Attributes:
        card: gigabytes of the card.
        model: a name in `PUBLISHED_MODELS`.
        pixels: height and width.
        loading: of the weights.
        weights: bytes of them that are on the device at once.
        plan: what `"auto"` chooses then; its bytes are those of the run alone.
    """

    card: int
    model: str
    pixels: int
    loading: Loading
    weights: int
    plan: MemoryPlan


def recipes(model: str) -> Iterator[Recipe]:
    """A recipe of a model for each card, with the fastest way to load it by which a particle or more fit."""
    for card in CARDS:
        loadings = [loading for loading in LOADINGS if not (loading.quantises and _is_convolutional(model))]
        fitting = (recipe for loading in loadings if (recipe := _recipe(card, model, loading)).plan.fits)
        yield next(fitting, _recipe(card, model, LOADINGS[-1]))


def _recipe(card: int, model: str, loading: Loading) -> Recipe:
    pixels = PUBLISHED_MODELS[model].pixels
    used = particle_memory(model, pixels, torch.bfloat16)
    uses = {"network": used.network, "decoder": used.decoder, "preview": used.decoder, "reward": used.reward}
    weights = int(resident_bytes(model, loading))
    free = int(USED_SHARE * (card * GB - CONTEXT - weights))
    choices = CHECKPOINTINGS if loading.offloads == "none" else CHECKPOINTINGS[-1:]
    return Recipe(card, model, pixels, loading, weights, plan_memory(RunSize(GUIDED, uses), free, "auto", choices))


def resident_bytes(model: str, loading: Loading) -> float:
    """Bytes of weights on the device at once: network, text encoders, decoder, and a CLIP ViT-L that scores."""
    weights = weights_of(model)
    network = weights.network * loading.num_bytes
    encoders = [encoder_numbers(name) * loading.num_bytes for name in PUBLISHED_MODELS[model].text_encoders]
    decoder, reward = 2 * weights.decoder, 2 * _numbers_of_clip()
    if loading.offloads == "none":
        return network + sum(encoders) + decoder + reward
    if loading.offloads == "model":
        return max(network, *encoders, decoder) + reward
    return 2 * max(largest_block(model), _largest_block_of_encoders(model)) * loading.num_bytes + decoder + reward


def _is_convolutional(model: str) -> bool:
    return "unet" in PUBLISHED_MODELS[model].modules


@cache
def _numbers_of_clip() -> int:
    with torch.device("meta"):
        return numbers(clip_large())


@cache
def largest_block(model: str) -> int:
    """The numbers of the largest block of a model's network; of one of convolutions, of its largest layer."""
    published = PUBLISHED_MODELS[model]
    name = next(iter(published.modules))
    network = published.build("full", "meta", torch.bfloat16).components[name]
    if _is_convolutional(model):
        return max(numbers(layer) for layer in network.modules() if not any(True for _ in layer.children()))
    return _largest_part(network)


@cache
def _largest_block_of_encoders(model: str) -> int:
    return max(_largest_part(_on_meta(encoder)) for encoder in PUBLISHED_MODELS[model].text_encoders)


def _largest_part(module: nn.Module) -> int:
    """The numbers of the largest block: a member of a list of modules, or what stands beside the lists."""
    blocks = [block for part in module.modules() if isinstance(part, nn.ModuleList) for block in part]
    return max(map(numbers, blocks), default=numbers(module))


def _on_meta(encoder: str) -> nn.Module:
    with torch.device("meta"):
        return TEXT_ENCODERS[encoder]()

"""The model families by the stock pipelines that they work with. Importing this module loads none of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from ..core.registry import Registry
from ..core.wording import shown

if TYPE_CHECKING:
    from .base import Family

T = TypeVar("T", bound="type[Family]")

FAMILIES: Registry[type[Family]] = Registry(
    "family",
    "families",
    __package__,
    files={
        "FluxPipeline": "flux",
        "LatentConsistencyModelPipeline": "stable_diffusion",
        "Lumina2Pipeline": "lumina2",
        "PixArtSigmaPipeline": "pixart_sigma",
        "QwenImagePipeline": "qwen_image",
        "SanaPipeline": "sana",
        "SanaSprintPipeline": "sana_sprint",
        "StableDiffusion3Pipeline": "stable_diffusion_3",
        "StableDiffusionPipeline": "stable_diffusion",
        "StableDiffusionXLPipeline": "sdxl",
        "ZImagePipeline": "z_image",
    },
)
"""Families by the names of stock pipeline classes. Their files are listed here, so that a call imports one alone."""


def register_family(*pipeline_classes: str) -> Callable[[T], T]:
    """Makes the decorated family known for stock pipelines of the named classes, and returns it unchanged.

    Installed packages do not call this function: they declare the family's class as an entry point of the group
    `diamond_diffusers.families`, named like the pipeline class.

    Args:
        pipeline_classes: names of classes, such as "MyPipeline".

    Raises:
        ValueError: a name is no identifier, or another family has it.

    Example:
        >>> from diamond_diffusers.families.flux import FluxFamily
        >>> @register_family("MyPipeline")
        ... class MyFamily(FluxFamily):
        ...     name = "mine"
    """

    def register(family: T) -> T:
        for name in pipeline_classes:
            FAMILIES.register(name)(family)
        return family

    return register


def check_supported(pipeline_class: str) -> type[Family]:
    """The family class of a stock pipeline class, whose file alone is imported.

    Raises:
        TypeError: no family is registered for exactly this class; a subclass may sample differently.
    """
    if pipeline_class not in FAMILIES:
        raise TypeError(
            f"pipeline is a {pipeline_class}, for which there is no family; choose one of "
            f"{', '.join(FAMILIES.names())}, or add one as docs/adding_a_family.md shows"
        )
    return FAMILIES.get(pipeline_class)


def family_of(pipeline: Any) -> Family:
    """The family of a loaded stock pipeline.

    Raises:
        TypeError: as in `check_supported`; or a class of another origin has the name of one of diffusers.
    """
    import diffusers

    kind = type(pipeline)
    if kind.__name__ not in FAMILIES and not isinstance(pipeline, diffusers.DiffusionPipeline):
        raise TypeError(f"pipeline is {shown(pipeline)}; give a loaded stock pipeline, such as a FluxPipeline")
    family = check_supported(kind.__name__)
    if kind is not getattr(diffusers, kind.__name__, kind):
        raise TypeError(
            f"pipeline is a {kind.__module__}.{kind.__name__}, which shares its name, but not its code, with that of "
            f"diffusers; load the model with diffusers.{kind.__name__}, or give the class a name and a family of "
            "its own"
        )
    return family(pipeline)

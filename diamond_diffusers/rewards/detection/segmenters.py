"""Instance segmentation by Mask2Former."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any, Self

import torch
from PIL.Image import Image, Resampling
from torch import Tensor, nn
from torchvision.transforms.v2.functional import normalize

from ..errors import first_line
from ..hub import check_hub_options
from ..preprocessing import images_from_pil, resize_like_pil
from ..weight_files import counted_weights

CHECKPOINT = "facebook/mask2former-swin-small-coco-instance"
DIVISOR = 32
"""Of the sides of the pixels that the model is given."""


@dataclass(frozen=True)
class Instances:
    """What a segmenter has found in one image, in no order.

    Attributes:
        labels: `[N]`, the numbers of the classes.
        scores: `[N]`, from 0 to 1.
        boxes: `[N, 4]`, left, top, right and bottom of the masks in pixels, the latter two exclusive.
        masks: `[N, H, W]`, whether a pixel belongs to the instance; they may overlap.
    """

    labels: Tensor
    scores: Tensor
    boxes: Tensor
    masks: Tensor


class InstanceSegmenter:
    """A Mask2Former of transformers that was trained on instances, run as its authors and OpenMMLab run it.

    Images are resized, keeping their proportions, and padded on the right and below to multiples of 32 pixels. Of all
    pairs of a query and a class the likeliest `max_instances` are taken, each scored by its probability times the mean
    probability within its mask, at the image's own size. The image processor of transformers would round sides to
    multiples of 32 pixels, and measure masks at 384x384.

    Args:
        checkpoint: a name on the Hub or a local folder, with the model and its image processor, of which the mean and
            the deviation are taken.
        name: of the judge, for messages.
        shortest_edge: to which the shorter side of an image is resized.
        longest_edge: which the longer side does not exceed.
        max_instances: the largest number of instances in an image.
        device: device of the model.
        dtype: dtype of the model.
        hub_options: forwarded to `from_pretrained`, see `CLIPReward`.

    Raises:
        OSError: the checkpoint cannot be found or read.
        TypeError: an option is unknown.
        ValueError: the checkpoint is no such model, or lacks weights.

    Source: Cheng et al. 2022, "Masked-attention Mask Transformer for Universal Image Segmentation", arXiv:2112.01527.
    """

    def __init__(
        self,
        checkpoint: str | PathLike[str] = CHECKPOINT,
        *,
        name: str = "segmenter",
        shortest_edge: int = 800,
        longest_edge: int = 1333,
        max_instances: int = 100,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
        **hub_options: Any,
    ) -> None:
        check_hub_options(name, hub_options)
        self.shortest_edge, self.longest_edge = shortest_edge, longest_edge
        self.max_instances = max_instances
        self.model, self.processor = _load(name, checkpoint, dtype, hub_options)
        self.to(device)

    @property
    def classes(self) -> list[str]:
        """The names of the classes, as the checkpoint spells them."""
        return [self.model.config.id2label[label] for label in range(self.model.config.num_labels)]

    @torch.no_grad()
    def segment(self, image: Image) -> Instances:
        """All instances in an image, the most doubtful ones too, on the model's device."""
        size = image.height, image.width
        resized, pixels = self.pixels(image)
        outputs = self.model(pixel_values=pixels)
        masks = _enlarged(outputs.masks_queries_logits.float(), pixels.shape[-2:])
        masks = _enlarged(masks[..., : resized[0], : resized[1]], size)[0]
        return instances_of(outputs.class_queries_logits[0].float(), masks, self.max_instances)

    def pixels(self, image: Image) -> tuple[tuple[int, int], Tensor]:
        """The height and width of the resized image, and the padded pixels `[1, 3, h, w]` that the model is given."""
        sides = image.height, image.width
        scale = min(self.shortest_edge / min(sides), self.longest_edge / max(sides))
        height, width = (max(1, int(side * scale + 0.5)) for side in sides)
        images = images_from_pil([image]).to(self.model.device)
        levels = resize_like_pil(images, (height, width), Resampling.BILINEAR)
        pixels = normalize(levels, list(self.processor.image_mean), list(self.processor.image_std))
        padded = nn.functional.pad(pixels, (0, -width % DIVISOR, 0, -height % DIVISOR))
        return (height, width), padded.to(self.model.dtype)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """Moves and casts the model, in place; returns the segmenter."""
        self.model.to(device=device, dtype=dtype)
        return self


def instances_of(classes: Tensor, masks: Tensor, max_instances: int = 100) -> Instances:
    """The instances that a model's queries describe.

    Args:
        classes: logits `[Q, C + 1]`, of which the last are those of no object.
        masks: logits `[Q, H, W]` at the image's size.
        max_instances: the largest number of instances.
    """
    probabilities = classes.softmax(-1)[:, :-1]
    count = min(max_instances, probabilities.numel())
    likeliest, indices = probabilities.flatten().topk(count, sorted=False)
    queries = indices // probabilities.shape[1]
    inside = masks > 0
    certainties = (masks.sigmoid() * inside).flatten(1).sum(1) / (inside.flatten(1).sum(1) + 1e-6)
    return Instances(
        labels=indices % probabilities.shape[1],
        scores=likeliest * certainties[queries],
        boxes=boxes_of(inside)[queries],
        masks=inside[queries],
    )


def boxes_of(masks: Tensor) -> Tensor:
    """The boxes `[N, 4]` around masks `[N, H, W]`, right and bottom exclusive; zeros around empty ones."""
    boxes = []
    for shadow in (masks.any(1), masks.any(2)):
        length = shadow.shape[1]
        places = torch.arange(length, device=masks.device)
        boxes.append(torch.where(shadow, places, length).amin(1))
        boxes.append(torch.where(shadow, places + 1, 0).amax(1))
    left, right, top, bottom = boxes
    found = masks.flatten(1).any(1)[:, None]
    return torch.where(found, torch.stack([left, top, right, bottom], 1), 0).float()


def _enlarged(logits: Tensor, size: Sequence[int]) -> Tensor:
    return nn.functional.interpolate(logits, size=list(size), mode="bilinear", align_corners=False)


def _load(
    name: str, checkpoint: str | PathLike[str], dtype: torch.dtype, hub_options: dict[str, Any]
) -> tuple[Any, Any]:
    from transformers import AutoImageProcessor, AutoModelForUniversalSegmentation

    try:
        model, report = AutoModelForUniversalSegmentation.from_pretrained(
            checkpoint, dtype=dtype, output_loading_info=True, **hub_options
        )
        processor = AutoImageProcessor.from_pretrained(checkpoint, **hub_options)
    except (OSError, ValueError) as error:
        raise OSError(
            f"'{name}' cannot load checkpoint='{checkpoint}' ({first_line(error)}); give a name on the Hub, or a "
            "folder with a Mask2Former and its image processor."
        ) from error
    if report["missing_keys"]:
        raise ValueError(
            f"'{name}' got checkpoint='{checkpoint}', which lacks {counted_weights(report['missing_keys'])}; "
            "give a complete Mask2Former."
        )
    if model.config.model_type != "mask2former":
        raise ValueError(
            f"'{name}' got checkpoint='{checkpoint}' of the architecture '{model.config.model_type}'; "
            "give a Mask2Former that was trained on instances."
        )
    return model.eval().requires_grad_(False), processor

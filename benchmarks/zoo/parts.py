"""What the tiny pipelines share: an autoencoder, and the last steps of building one."""

from __future__ import annotations

from typing import TypeVar

from diffusers import AutoencoderKL, DiffusionPipeline
from torch import nn

Pipeline = TypeVar("Pipeline", bound=DiffusionPipeline)


def build_tiny_vae(shift_factor: float, scaling_factor: float, channels: tuple[int, ...] = (4, 8, 8)) -> AutoencoderKL:
    """A random autoencoder as of rectified flow; halves images once less than it has `channels`, to 4 channels."""
    return AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * len(channels),
        up_block_types=["UpDecoderBlock2D"] * len(channels),
        block_out_channels=channels,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        use_quant_conv=False,
        use_post_quant_conv=False,
        shift_factor=shift_factor,
        scaling_factor=scaling_factor,
    )


def finished(pipeline: Pipeline) -> Pipeline:
    """The same pipeline, its modules in evaluation mode and its progress bar off."""
    for component in pipeline.components.values():
        if isinstance(component, nn.Module):
            component.eval()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline

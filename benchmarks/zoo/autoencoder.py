"""A tiny random autoencoder of the kind that most rectified-flow families have."""

from __future__ import annotations

from diffusers import AutoencoderKL


def build_tiny_vae(shift_factor: float, scaling_factor: float, channels: tuple[int, ...] = (4, 8, 8)) -> AutoencoderKL:
    """Halves images once less than it has `channels`, to latents of 4 channels."""
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

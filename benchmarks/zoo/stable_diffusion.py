"""Stable Diffusion, latent consistency models and SDXL with 16-pixel images and 8x8 latents."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from torch import Tensor, nn
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    PreTrainedTokenizerFast,
)

from diamond_diffusers.miniature.tokenizer import clip_tokenizer

from .parts import finished

LATENTS_SHAPE = (4, 8, 8)
IMAGE_EMBED_SIZE = 12
SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
"""The noise levels of Stable Diffusion and SDXL."""
VISION = {"hidden_size": 12, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION |= {"image_size": 16, "patch_size": 8}


def build_tiny_stable_diffusion(
    prediction_type: str = "epsilon", time_cond_proj_dim: int | None = None
) -> StableDiffusionPipeline:
    """Stable Diffusion with an Euler scheduler; with `time_cond_proj_dim` its UNet embeds the guidance scale."""
    torch.manual_seed(0)
    tokenizer = clip_tokenizer()
    return finished(
        StableDiffusionPipeline(
            vae=_vae(),
            text_encoder=CLIPTextModel(_text_config(tokenizer)),
            tokenizer=tokenizer,
            unet=_unet(time_cond_proj_dim=time_cond_proj_dim, cross_attention_dim=32),
            scheduler=EulerDiscreteScheduler(**SCHEDULE, prediction_type=prediction_type, steps_offset=1),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    )


def build_tiny_latent_consistency() -> LatentConsistencyModelPipeline:
    """A latent consistency model in the pipeline of its own."""
    components = build_tiny_stable_diffusion(time_cond_proj_dim=16).components
    components["scheduler"] = LCMScheduler(**SCHEDULE)
    return finished(LatentConsistencyModelPipeline(**components, requires_safety_checker=False))


def build_tiny_sdxl(**vae_options: Any) -> StableDiffusionXLPipeline:
    """SDXL with the Euler scheduler of its base model."""
    torch.manual_seed(0)
    tokenizer = clip_tokenizer()
    unet = _unet(
        cross_attention_dim=64,
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=80,
    )
    return finished(
        StableDiffusionXLPipeline(
            vae=_vae(**vae_options),
            text_encoder=CLIPTextModel(_text_config(tokenizer)),
            text_encoder_2=CLIPTextModelWithProjection(_text_config(tokenizer)),
            tokenizer=tokenizer,
            tokenizer_2=clip_tokenizer(),
            unet=unet,
            scheduler=EulerDiscreteScheduler(**SCHEDULE, timestep_spacing="leading", steps_offset=1),
            add_watermarker=False,
        )
    )


def zero_terminal_snr(pipeline: StableDiffusionPipeline) -> StableDiffusionPipeline:
    """With the scheduler of models that start from pure noise (arXiv 2305.08891)."""
    pipeline.scheduler = DDIMScheduler(
        **SCHEDULE,
        prediction_type="v_prediction",
        clip_sample=False,
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        set_alpha_to_one=False,
    )
    return pipeline


def add_safety_checker(pipeline: StableDiffusionPipeline, threshold: float) -> StableDiffusionPipeline:
    """Flags images whose similarity to its concepts exceeds the threshold."""
    torch.manual_seed(1)
    checker = StableDiffusionSafetyChecker(CLIPConfig(vision_config=VISION, projection_dim=8)).eval()
    nn.init.normal_(checker.concept_embeds)
    checker.concept_embeds_weights.fill_(threshold)
    size = {"height": 16, "width": 16}
    pipeline.register_modules(
        safety_checker=checker, feature_extractor=CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=size)
    )
    return pipeline


def add_ip_adapter(pipeline: Any, count: int = 1) -> Any:
    """Random IP-Adapters of plain image embeddings, and the encoder of their images."""
    torch.manual_seed(2)
    pipeline.unet._load_ip_adapter_weights([_ip_adapter_weights(pipeline.unet) for _ in range(count)])
    encoder = CLIPVisionModelWithProjection(CLIPVisionConfig(**VISION, projection_dim=IMAGE_EMBED_SIZE)).eval()
    size = {"height": 16, "width": 16}
    pipeline.register_modules(
        image_encoder=encoder, feature_extractor=CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=size)
    )
    return pipeline


def _ip_adapter_weights(unet: UNet2DConditionModel) -> dict[str, dict[str, Tensor]]:
    width = unet.config.cross_attention_dim
    attentions = [name.removesuffix(".processor") for name in unet.attn_processors if "attn2" in name]
    keys = {}
    for index, name in enumerate(attentions):
        hidden = unet.get_submodule(name).to_k.out_features
        keys |= {f"{2 * index + 1}.to_{kind}_ip.weight": torch.randn(hidden, width) for kind in "kv"}
    projection = nn.Sequential()
    projection.proj, projection.norm = nn.Linear(IMAGE_EMBED_SIZE, 4 * width), nn.LayerNorm(width)
    return {"image_proj": projection.state_dict(), "ip_adapter": keys}


def lora(unet: UNet2DConditionModel, seed: int) -> dict[str, Tensor]:
    """A random LoRA of the attention layers, in diffusers' format; the network is left as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "to_v", "proj_in"], init_lora_weights=False)
        unet.add_adapter(config, "made")
    weights = get_peft_model_state_dict(unet, adapter_name="made")
    weights = {f"unet.{name}": weight.clone() for name, weight in weights.items()}
    unet.unload_lora()
    return weights


def kohya_lora(module: str) -> dict[str, Tensor]:
    """A LoRA of one linear layer of 16 channels, in the form of kohya's scripts, which most LoRAs for SDXL have."""
    generator = torch.Generator().manual_seed(1)
    return {
        f"lora_unet_{module}.lora_down.weight": torch.randn(2, 16, generator=generator),
        f"lora_unet_{module}.lora_up.weight": torch.randn(16, 2, generator=generator),
        f"lora_unet_{module}.alpha": torch.tensor(2.0),
    }


def _text_config(tokenizer: PreTrainedTokenizerFast) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=37,
        # Two, of which SDXL reads the first and `clip_skip` leaves out the last.
        num_hidden_layers=2,
        num_attention_heads=4,
        projection_dim=32,
        max_position_embeddings=16,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        # The stock initialisation hardly tells prompts apart.
        initializer_factor=10.0,
    )


def _unet(**options: Any) -> UNet2DConditionModel:
    unet = UNet2DConditionModel(
        **{
            "sample_size": 8,
            "block_out_channels": (8, 16),
            "layers_per_block": 1,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            "attention_head_dim": 2,
            "norm_num_groups": 4,
            **options,
        }
    )
    # The stock initialisation hardly lets prompts reach the image.
    for name, module in unet.named_modules():
        if name.endswith("attn2"):
            nn.init.normal_(module.to_out[0].weight)
    return unet


def _vae(**options: Any) -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        block_out_channels=(4, 8),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=2,
        sample_size=16,
        scaling_factor=0.5,
        **options,
    )

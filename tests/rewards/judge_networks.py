"""Small networks of the published judges, with the weights that their official code was run on."""

import json
from functools import cache

import torch
from tokenizers import pre_tokenizers
from transformers import (
    Blip2QFormerConfig,
    Blip2VisionConfig,
    CLIPConfig,
    Qwen2Tokenizer,
    Qwen2VLConfig,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
)

from diamond_diffusers.rewards.evalmuse import network as evalmuse
from diamond_diffusers.rewards.hpsv3 import network as hpsv3
from diamond_diffusers.rewards.imagereward import network as blip
from diamond_diffusers.rewards.mps import network as mps

from .golden import formula_weights
from .test_imagereward import TINY_TEXT, TINY_VISION

SIZES = {"num_hidden_layers": 2, "num_attention_heads": 2}
CLIP = CLIPConfig(
    text_config=SIZES | {"hidden_size": 32, "intermediate_size": 64, "hidden_act": "gelu"},
    vision_config=SIZES
    | {"hidden_size": 48, "intermediate_size": 96, "num_attention_heads": 4, "patch_size": 28, "hidden_act": "gelu"},
    projection_dim=32,
)
CLIP_LAYERS = {"num_layers": 2, "num_heads": 4, "head_dim": 8}
EVA = Blip2VisionConfig(
    hidden_size=48,
    intermediate_size=209,
    num_hidden_layers=2,
    num_attention_heads=4,
    image_size=364,
    patch_size=52,
    layer_norm_eps=evalmuse.VISION_CONFIG.layer_norm_eps,
)
QFORMER = Blip2QFormerConfig(
    vocab_size=345,
    hidden_size=32,
    intermediate_size=48,
    encoder_hidden_size=48,
    use_qformer_text_input=True,
    **SIZES,
)
QWEN_SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
QWEN = {
    "model_type": "qwen2_vl",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_key_value_heads": 1,
    "vocab_size": 400,
    "rope_theta": 1e6,
    "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-6,
    "bos_token_id": 256,
    "eos_token_id": 258,
    "image_token_id": 261,
    "video_token_id": 262,
    "vision_start_token_id": 259,
    "vision_end_token_id": 260,
    "vision_config": {"depth": 2, "embed_dim": 32, "mlp_ratio": 2, "num_heads": 2, "hidden_size": 32},
} | SIZES
QWEN_7B = QWEN | {
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 151658,
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "vision_config": {"depth": 32, "embed_dim": 1280, "mlp_ratio": 4, "num_heads": 16, "hidden_size": 3584},
}
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QUESTION = "\nHow good is it?\nText: {text_prompt}\n"
ENDING = "\nPlease provide the overall ratings of this image: <|Reward|>\n\nEND\n"


def write_qwen(folder, processor_class=Qwen2VLProcessor):
    """A model of the Qwen family without weights, whose tokens are bytes."""
    vocabulary = {byte: index for index, byte in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Qwen2Tokenizer(vocab=vocabulary, merges=[], unk_token="<|endoftext|>", pad_token="<|endoftext|>")
    tokenizer.add_tokens(list(QWEN_SPECIAL), special_tokens=True)
    processor = processor_class(Qwen2VLImageProcessor(), tokenizer, Qwen2VLVideoProcessor(), chat_template=TEMPLATE)
    processor.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(QWEN))
    return folder


@cache
def meta(make):
    with torch.device("meta"):
        return make()


def small_qwen():
    config = Qwen2VLConfig(**QWEN)
    config.text_config.vocab_size = 264
    return config


NETWORKS = {
    "mps": (mps, lambda: mps.MPSNetwork(CLIP, **CLIP_LAYERS), lambda: mps.MPSNetwork(mps.CLIP_CONFIG)),
    "hpsv3": (
        hpsv3,
        lambda: hpsv3.HPSv3Network(small_qwen()),
        lambda: hpsv3.HPSv3Network(Qwen2VLConfig(**QWEN_7B)),
    ),
    "cyclereward": (
        blip,
        lambda: blip.CycleRewardNetwork(TINY_VISION, TINY_TEXT),
        lambda: blip.CycleRewardNetwork(blip.VISION_CONFIG, blip.TEXT_CONFIG),
    ),
    "evalmuse": (
        evalmuse,
        lambda: evalmuse.EvalMuseNetwork(EVA, QFORMER),
        lambda: evalmuse.EvalMuseNetwork(evalmuse.VISION_CONFIG, evalmuse.QFORMER_CONFIG),
    ),
}


def small_weights(name):
    module, small, _ = NETWORKS[name]
    weights = formula_weights(module.published_shapes(meta(small)))
    if name == "mps":
        # What is no parameter of the official network has its own values.
        for key, weight in weights.items():
            if key.startswith("cross_model") and key.endswith("norm.bias"):
                weight.zero_()
            elif key.endswith("inv_freq"):
                weight.copy_(10000.0 ** -(torch.arange(0, 8, 2) / 8))
        weights["model.logit_scale"] = torch.tensor(2.0)
        # Where one channel is large, some words are unlike all of the condition, and are not read.
        weights["model.text_model.final_layer_norm.weight"][0] = 8
    return {key: weight for key, weight in weights.items() if not key.endswith("position_ids") or name == "cyclereward"}

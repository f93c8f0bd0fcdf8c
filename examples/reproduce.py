"""Published experiments as recipes of `benchmark`, which reads them with `--import examples/reproduce.py`.

The commands are in docs/reproduce.md. Each recipe is a preset with the settings of one published run, which no budget
changes.
"""

from functools import partial

from diamond_diffusers import BestOfN, register_reward
from diamond_diffusers.alignment.named import as_method
from diamond_diffusers.evaluation.benchmark.recipes import RECIPES, Recipe
from diamond_diffusers.rewards import CLIPReward, HPSv21Reward

FMRG_41 = {"name": "fmrg", "num_guided_steps": 9, "num_warm_up_steps": 4}
FMRG_100 = {"name": "fmrg", "num_guided_steps": 25, "num_warm_up_steps": 11, "guide": {"strength": 5.0}}
GLASS_FK = {
    "name": "glass_fk",
    "num_particles": 8,
    "transition": {"num_inner_steps": 10},
    "potential": "max",
    "resampling": "multinomial",
    "resampling_threshold": 1.0,
}
WEIGHTED_DIAMOND = {"name": "weighted_diamond_map", "num_guided_steps": 10}


def published(alignment, num_inference_steps):
    """A recipe of a definite size, whose other settings are the preset's for the model."""
    return Recipe(partial(as_method, alignment), num_inference_steps, grows=())


RECIPES["fmrg_j_41"] = published(FMRG_41, 80)
RECIPES["fmrg_j_100"] = published(FMRG_100, 208)
RECIPES["flow_map_best_of_32"] = Recipe(BestOfN(num_particles=32), 4, grows=())
RECIPES["glass_fk_400"] = published(GLASS_FK, 5)
RECIPES["best_of_8"] = Recipe(BestOfN(num_particles=8), 50, grows=())
RECIPES["fk_steering_4"] = published("fk_steering", 100)
RECIPES["reno_50"] = published("reno", 1)
for count in (1, 2, 4, 8, 16, 32):
    posterior = {"num_samples": count, "snr_factor": 1.5}
    RECIPES[f"weighted_diamond_{count}"] = published({**WEIGHTED_DIAMOND, "posterior": posterior}, 25)
RECIPES["weighted_diamond_sana"] = published("weighted_diamond_map", 20)


@register_reward("clip_vit_h")
class CLIPViTH(CLIPReward):
    """`logit_scale * cosine` of the CLIP in the reward of ReNO."""

    hub_files = (("laion/CLIP-ViT-H-14-laion2B-s32B-b79K", "model.safetensors"),)

    def __init__(self):
        super().__init__("laion/CLIP-ViT-H-14-laion2B-s32B-b79K", name="clip_vit_h", scale="logit_scale")


@register_reward("hpsv2_1_cropped")
class CroppedHPS(HPSv21Reward):
    """HPSv2.1 of the centre of an image, as in the reward of ReNO."""

    def __init__(self):
        super().__init__(preprocessing="crop", name="hpsv2_1_cropped")

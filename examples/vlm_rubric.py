"""A vision-language model grades images by a rubric of two criteria: `python examples/vlm_rubric.py [checkpoint]`.

The first run downloads Qwen2.5-VL-3B-Instruct (7.5 GB), where no folder or other model is named.
"""

import sys

import torch

from diamond_diffusers import BestOfN, DiamondMapPipeline
from diamond_diffusers.rewards import Criterion, RubricReward, VisionLanguageJudge

judge = VisionLanguageJudge(
    sys.argv[1] if len(sys.argv) > 1 else "Qwen/Qwen2.5-VL-3B-Instruct",
    device="cuda" if torch.cuda.is_available() else "cpu",
    max_batch_size=8,
)
rubric = RubricReward(
    {
        "content": Criterion('How well does this image show "{}"? 1: not at all. 5: exactly.', weight=2),
        "sharpness": "How sharp are the edges in this image? 1: all are blurred. 5: all are sharp.",
    },
    judge,
    normalised=True,
)
pipe = DiamondMapPipeline.from_pretrained()
out = pipe(
    "two blue stars",
    reward=rubric,
    reward_scale=20.0,
    alignment=BestOfN(num_particles=4),
    generator=torch.Generator().manual_seed(0),
)
out.images[0].save("graded_stars.png")
print(out.reward_terms, out.cost)

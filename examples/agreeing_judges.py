"""How far published judges agree about the images of one prompt: the ranks of each, and their correlations.

Names of judges may be given, as in `python agreeing_judges.py mps hpsv3`. Those of the default need 1.8, 4.4 and
4.8 GB of weights.
"""

import sys

from scipy.stats import spearmanr

from diamond_diffusers import DiamondMapPipeline
from diamond_diffusers.rewards import as_reward
from diamond_diffusers.rewards.preprocessing import images_from_pil

PROMPT = "two blue stars"
names = sys.argv[1:] or ["cyclereward", "mps", "evalmuse"]

pipe = DiamondMapPipeline.from_pretrained()
images = images_from_pil(pipe(PROMPT, num_images_per_prompt=8).images)
scores = {name: as_reward(name)(images, [PROMPT] * len(images)).tolist() for name in names}

for name in names:
    print(name, [sorted(scores[name], reverse=True).index(score) + 1 for score in scores[name]])
for index, first in enumerate(names):
    for second in names[index + 1 :]:
        print(f"{first} and {second}: {spearmanr(scores[first], scores[second]).statistic:.2f}")

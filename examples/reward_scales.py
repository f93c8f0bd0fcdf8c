"""Each prompt has a reward of its own, at the scale that its plain samples tell."""

import torch

from diamond_diffusers import AutoRewardScale, DiamondMapPipeline


def redness(images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
    red, green, blue = images.mean((2, 3)).unbind(1)
    return red - (green + blue) / 2


pipe = DiamondMapPipeline.from_pretrained()
out = pipe(
    ["two blue stars", "a ring"],
    reward=["miniature", redness],
    reward_scale=AutoRewardScale(num_samples=16),
    alignment="smc",
    generator=[torch.Generator().manual_seed(seed) for seed in (0, 1)],
)
for image, prompt in zip(out.images, ("stars", "ring"), strict=True):
    image.save(f"{prompt}.png")
print(out.reward_scale, out.rewards, out.cost)

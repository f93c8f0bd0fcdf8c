"""Any callable is a reward: here one that asks for a dark image, added to the embedded CLIP."""

import torch

from diamond_diffusers import SMC, DiamondMapPipeline
from diamond_diffusers.rewards import as_reward


def darkness(images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
    return 1 - images.mean((1, 2, 3))


pipe = DiamondMapPipeline.from_pretrained()
out = pipe(
    "two blue stars",
    reward=as_reward("miniature") + 20 * as_reward(darkness),
    alignment=SMC(num_particles=8),
    generator=torch.Generator().manual_seed(0),
)
out.images[0].save("dark_stars.png")
print(out.reward_terms, out.cost)

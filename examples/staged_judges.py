"""Judges in stages: a calibrated sum scores all candidates, and a dearer judge the best three of them alone."""

import torch

from diamond_diffusers import BestOfN, DiamondMapPipeline, calibrate
from diamond_diffusers.miniature.judge import judge
from diamond_diffusers.rewards import CallableReward, staged

PROMPT = "three green stars"


def is_right(images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
    """Stands for a judge that is slow or has to be paid for; this one counts the shapes of the embedded world."""
    return judge(images.cpu(), prompts).float()


pipe = DiamondMapPipeline.from_pretrained()
# Both terms in deviations of plain samples, so that half the weight is half the say.
calibration = calibrate(pipe, PROMPT, "miniature + 0.5*colour", num_samples=16)
cheap = calibration.apply("miniature + 0.5*colour")
out = pipe(
    PROMPT,
    reward=staged([cheap, (CallableReward(is_right, is_free=False), 3)]),
    alignment=BestOfN(num_particles=8),
    generator=torch.Generator().manual_seed(0),
)
out.images[0].save("three_stars.png")
print(calibration.terms, out.reward_terms, out.stage_calls, out.cost, sep="\n")

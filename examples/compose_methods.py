"""Posterior sampler, transition and method are chosen apart: guided SMC with GLASS look-aheads."""

import torch

from diamond_diffusers import SMC, DiamondMapPipeline, GlassPosterior, GlassTransition, Guide

pipe = DiamondMapPipeline.from_pretrained()
alignment = SMC(
    num_particles=4,
    posterior=GlassPosterior(num_samples=4),
    transition=GlassTransition(num_inner_steps=4),
    guide=Guide("isotropic"),
)
out = pipe(
    ["a red circle above a blue square", "four green stars"],
    alignment=alignment,
    generator=[torch.Generator().manual_seed(seed) for seed in (0, 1)],
)
for index, image in enumerate(out.images):
    image.save(f"guided_smc_{index}.png")
out.trace.plot().savefig("trace.png")
print("rewards", out.rewards.tolist(), "log evidence", out.log_evidence.tolist())
print(out.cost)

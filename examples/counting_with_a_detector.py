"""A detector counts: of eight particles those go on that show three red circles, and the best of them is kept.

The first run downloads OWLv2 (0.6 GB). For images of your own model, name it in `from_pretrained`.
"""

import torch

from diamond_diffusers import SMC, DiamondMapPipeline
from diamond_diffusers.rewards import CountReward
from diamond_diffusers.rewards.detection import load_detector
from diamond_diffusers.rewards.preprocessing import images_from_pil

pipe = DiamondMapPipeline.from_pretrained()
detector = load_detector("count", "google/owlv2-base-patch16-ensemble")
out = pipe(
    "three red circles",
    reward=CountReward("red circle", 3, detector=detector),
    reward_scale=20.0,
    alignment=SMC(num_particles=8),
    generator=torch.Generator().manual_seed(0),
)
out.images[0].save("three_red_circles.png")
is_right = CountReward("red circle", 3, detector=detector, graded=False, name="is_right")
print("graded", out.rewards.tolist(), "right", is_right(images_from_pil(out.images), ["three red circles"]).tolist())

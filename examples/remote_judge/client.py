"""Images that a service likes: start `python examples/remote_judge/service.py` first."""

import torch

from diamond_diffusers import SMC, DiamondMapPipeline
from diamond_diffusers.rewards import RemoteReward


def draw(url: str = "http://localhost:8000") -> None:
    pipe = DiamondMapPipeline.from_pretrained()
    with RemoteReward(url, name="judge", max_requests=1000) as judge:
        out = pipe(
            "two stars",
            reward=10 * judge,
            alignment=SMC(num_particles=4),
            num_inference_steps=6,
            generator=torch.Generator().manual_seed(0),
        )
    out.images[0].save("red_stars.png")
    print(out.rewards, out.cost, judge.usage)


if __name__ == "__main__":
    draw()

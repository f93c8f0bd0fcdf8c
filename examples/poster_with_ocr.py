"""A poster whose text is right: the OCR reward reads what the prompt quotes, and SMC keeps the samples that show it.

Needs `pip install diamond-diffusers[rewards-ocr]` and a model that can write, such as FLUX or Qwen-Image:

    python examples/poster_with_ocr.py --model black-forest-labs/FLUX.1-dev --offload \
        --prompt 'a screen-printed poster that says "OPEN NOW"' --output poster.png
"""

import argparse

import torch

from diamond_diffusers import SMC, DiamondMapPipeline, GlassTransition


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="black-forest-labs/FLUX.1-dev")
    parser.add_argument("--prompt", default='a screen-printed poster that says "OPEN NOW"')
    parser.add_argument("--reward", default="ocr, ocr >= 0.9", help="Such as 'imagereward, ocr >= 0.9, nsfw < 0.2'.")
    parser.add_argument("--reward-scale", type=float, default=10.0)
    parser.add_argument("--num-particles", type=int, default=8)
    parser.add_argument("--num-inference-steps", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--offload", action="store_true", help="Keeps what is not at work off the GPU.")
    parser.add_argument("--output", default="poster.png")
    options = parser.parse_args()

    has_gpu = torch.cuda.is_available()
    pipe = DiamondMapPipeline.from_pretrained(options.model, dtype=torch.bfloat16 if has_gpu else torch.float32)
    if options.offload:
        pipe.enable_model_cpu_offload()
    elif has_gpu:
        pipe.to("cuda")
    # Early look-aheads are too blurred to be read, so that particles are weighed twice on the way and at the end.
    alignment = SMC(options.num_particles, transition=GlassTransition(), num_valuations=2)
    out = pipe(
        options.prompt,
        reward=options.reward,
        reward_scale=options.reward_scale,
        alignment=alignment,
        num_inference_steps=options.num_inference_steps,
        final_selection="best",
        generator=torch.Generator().manual_seed(options.seed),
    )
    out.images[0].save(options.output)
    scores = {name: round(score.item(), 3) for name, score in out.reward_terms.items()}
    is_met = out.constraints_met is None or out.constraints_met[0].item()
    print(f"{options.output}: {scores}, constraints {'met' if is_met else 'violated'}; {out.cost}")


if __name__ == "__main__":
    main()

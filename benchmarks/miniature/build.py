"""Writes the embedded model's folder: a stock `FluxPipeline`, its defaults, and a model card."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL

from diamond_diffusers.families.flux import FluxFamily
from diamond_diffusers.files.staging import staged
from diamond_diffusers.miniature.render import IMAGE_SIZE
from diamond_diffusers.pipelines.saving import write_defaults

from .flow_model import MAX_SEQUENCE_LENGTH, FlowModel, build_pipeline
from .train_flow import FlowTrainer

DEFAULTS = {
    "height": IMAGE_SIZE,
    "width": IMAGE_SIZE,
    "num_inference_steps": 12,
    "true_cfg_scale": 3.0,
    "negative_prompt": "",
    "max_sequence_length": MAX_SEQUENCE_LENGTH,
    "alignment": "smc",
    "reward": "miniature",
}

MODEL_CARD = """---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-image
---

# The miniature flow model

A genuine, tiny `FluxPipeline` for the miniature world of diamond-diffusers: 64x64 images of coloured shapes on plain
backgrounds, with captions from a small grammar (single objects, colours, counts from two to four, pairs, places, and
pairs with colours). It draws mostly readable shapes and often miscounts, misplaces or miscolours: that is what
alignment repairs. It knows no other words.

| part | architecture | parameters |
|---|---|---|
{parts}

Images become 8x8 latents of eight channels, packed into 16 tokens. There is no guidance embedding: classifier-free
guidance is FLUX's true one, with the empty prompt as its negative.

## Use

```python
from diffusers import FluxPipeline

pipeline = FluxPipeline.from_pretrained("diamond_diffusers/miniature/weights/pipeline")
image = pipeline(
    "a red star left of a blue ring", negative_prompt="", true_cfg_scale=3.0,
    height=64, width=64, num_inference_steps=12, max_sequence_length=12,
).images[0]
```

## Data

Synthetic: captions and scenes drawn by `diamond_diffusers.miniature.render.sample_world` and rendered by
`diamond_diffusers.miniature.render`. The 300 captions of `held_out_captions()` are left out, but for the eight of
`single_object`, which are that whole category.

## Training

On two CPU cores, the matrices' products in bfloat16, the weights in float32 and averaged exponentially:

```
python -m benchmarks.miniature.train autoencoder
python -m benchmarks.miniature.train flow
```
{facts}
## Licence

Apache-2.0.
"""


def load_checkpoint(file: Path) -> FlowModel:
    """The averaged flow model of a checkpoint, finished or not, that `train_flow` wrote."""
    trainer = FlowTrainer()
    trainer.load_state_dict(torch.load(file, weights_only=True)["averaged"])
    return trainer.flow.eval()


def save_pipeline(flow: FlowModel, autoencoder: AutoencoderKL, folder: Path, facts: str = "") -> None:
    """Writes the pipeline, `diamond_map/diamond_map_config.json` and the model card into `folder`.

    Args:
        facts: a sentence on this training run, for the model card.
    """
    pipeline = build_pipeline(flow, autoencoder)
    names = ("transformer", "vae", "text_encoder", "text_encoder_2")
    modules = {name: getattr(pipeline, name) for name in names}
    parts = "\n".join(
        f"| `{name}` | {type(module).__name__} | {sum(p.numel() for p in module.parameters()):,} |"
        for name, module in modules.items()
    )
    with staged(folder) as stage:
        pipeline.save_pretrained(stage.path)
        write_defaults(stage.path, FluxFamily.name, DEFAULTS)
        card = MODEL_CARD.format(parts=parts, facts=f"\n{facts}\n" if facts else "")
        (stage.path / "README.md").write_text(card)

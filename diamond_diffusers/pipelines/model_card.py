"""Model cards, and the way to the Hub."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from diffusers.utils.hub_utils import load_or_create_model_card, populate_model_card
from huggingface_hub import CommitInfo, HfApi, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from PIL import Image

from ..models.storage import MAP_FILES
from .loading import EMBEDDED_MODEL, find_map

CARD_NAME = "README.md"
SAMPLES_NAME = "samples.png"
MAP_REPOSITORY = (*MAP_FILES, CARD_NAME, SAMPLES_NAME)
"""Files of a repository that holds a map alone."""
DEFAULT_LICENSE = "other"
DEFAULT_PROMPT = "two red apples left of a blue cup"
TAGS = ["text-to-image", "diffusers", "diamond-maps", "reward-alignment"]

_TEXT = """# {title}

A Posterior Diamond Map ([arXiv 2602.05993](https://arxiv.org/abs/2602.05993)) of {base}: one network evaluation draws a
sample of the clean image given a noisy one, which makes alignment with rewards at inference time cheap. {contents}
{samples}
## Use

```python
import torch
from diamond_diffusers import SMC, DiamondMapPipeline, DiamondPosterior, DiamondTransition

pipe = DiamondMapPipeline.from_pretrained({repository}, dtype=torch.bfloat16)
pipe.to("cuda" if torch.cuda.is_available() else "cpu")
image = pipe(
    {prompt},
    {reward}alignment=SMC(num_particles=4, posterior=DiamondPosterior(), transition=DiamondTransition()),
    particle_batch_size=4,
).images[0]
image.save("image.png")
```

## Training

| | |
|---|---|
{table}

The guidance of the teacher is baked in.
"""
_MAP_ALONE = "It is a LoRA\nwith conditioning layers beside it; the base is unchanged."
_MAP_AND_BASE = (
    "The map, a\nLoRA with conditioning layers, is in `{folder}/`; the rest is the base as stock diffusers loads it."
)


def write_model_card(
    folder: str | PathLike,
    repository: str,
    license: str | None = None,
    prompt: str | None = None,
    samples: Image.Image | None = None,
    caption: str = "",
) -> ModelCard:
    """Writes `README.md`, and the samples beside it, into the folder of a saved map.

    Args:
        folder: of the map alone, or of a pipeline with the map beside it.
        repository: from which the snippet loads.
        license: as the Hub names it; None for what the map says, else `other`.
        prompt: of the samples and of the snippet.
        samples: a grid of images.
        caption: of the grid.

    Raises:
        FileNotFoundError: there is no map in the folder.
    """
    folder = Path(folder)
    found = find_map(folder, {})
    if found is None:
        raise FileNotFoundError(f"{folder} holds no Diamond Map to write a model card of; save one there first")
    config, subfolder = found.config, found.hub["subfolder"]
    base = config["base_model"] if _is_repository(config["base_model"]) else None
    data = ModelCardData(
        base_model=base,
        library_name="diffusers",
        pipeline_tag="text-to-image",
        tags=TAGS if subfolder else [*TAGS, "lora"],
        license=license or config.get("license") or DEFAULT_LICENSE,
    )
    grid = ""
    if samples is not None:
        samples.save(folder / SAMPLES_NAME)
        grid = f"\n![{_one_line(prompt or 'Samples')}]({SAMPLES_NAME})\n" + (f"\n{caption}\n" if caption else "")
    own = f"the {EMBEDDED_MODEL} of this package" if config["base_model"] == EMBEDDED_MODEL else None
    facts = {"base": base or own or config["family"], **config["training"]}
    text = _TEXT.format(
        title=Path(repository).resolve().name,
        base=f"[{base}](https://huggingface.co/{base})" if base else own or f"a {config['family']} model",
        contents=_MAP_AND_BASE.format(folder=subfolder) if subfolder else _MAP_ALONE,
        samples=grid,
        repository=_quoted(repository),
        prompt=_quoted(_one_line(prompt or DEFAULT_PROMPT)),
        reward=_reward_lines(config["defaults"]),
        table="\n".join(f"| {name} | {_cell(value)} |" for name, value in facts.items()),
    )
    card = ModelCard(f"---\n{data}\n---\n\n{text}")
    card.save(folder / CARD_NAME)
    return card


def remove_model_card(folder: str | PathLike) -> None:
    """Removes the card of a Diamond Map and its samples from a folder, where they are."""
    file = Path(folder) / CARD_NAME
    if file.exists() and TAGS[-1] in (ModelCard.load(file).data.tags or []):
        file.unlink()
        (Path(folder) / SAMPLES_NAME).unlink(missing_ok=True)


def write_stock_card(folder: str | PathLike, repository: str, token: str | bool | None = None) -> ModelCard:
    """Writes the card that stock diffusers gives a pipeline: that of its repository, or a new one."""
    card = populate_model_card(load_or_create_model_card(repository, token=token, is_pipeline=True))
    card.save(Path(folder) / CARD_NAME)
    return card


def create_repository(repository: str, token: str | bool | None = None, private: bool | None = None) -> str:
    """Makes sure that a repository exists on the Hub; returns its full name."""
    return HfApi(token=token).create_repo(repository, private=private, exist_ok=True).repo_id


def upload(
    folder: str | PathLike,
    repository: str,
    token: str | bool | None = None,
    *,
    files: Sequence[str] | None = None,
    commit_message: str | None = None,
    create_pr: bool | None = None,
) -> CommitInfo:
    """Uploads a folder, or those of its files that are named."""
    return HfApi(token=token).upload_folder(
        repo_id=repository,
        folder_path=folder,
        allow_patterns=files and list(files),
        commit_message=commit_message,
        create_pr=create_pr,
    )


def _reward_lines(defaults: Mapping[str, Any]) -> str:
    """A reward for the snippet, where the model has none of its own."""
    return "" if defaults.get("reward") else 'reward="clip",\n    reward_scale=100.0,\n    '


def _is_repository(name: str | None) -> bool:
    """Whether the Hub would accept a name as that of a base model."""
    if not name or "/" not in name or Path(name).exists():
        return False
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _quoted(text: str) -> str:
    """As Python writes it, in double quotes."""
    return json.dumps(text, ensure_ascii=False)


def _cell(value: Any) -> str:
    """A value in a table."""
    return _one_line(str(value)).replace("|", "\\|")

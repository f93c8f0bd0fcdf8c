"""The model card of a Diamond Map, and its way to the Hub."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import HfApi, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from PIL import Image

from ..models.storage import MAP_FILES, read_map_config

CARD_NAME = "README.md"
SAMPLES_NAME = "samples.png"
TAGS = ["text-to-image", "diffusers", "lora", "diamond-maps", "reward-alignment"]

_TEXT = """# {title}

A Posterior Diamond Map ([arXiv 2602.05993](https://arxiv.org/abs/2602.05993)) of {base}: one network evaluation draws a
sample of the clean image given a noisy one, which makes alignment with rewards at inference time cheap. It is a LoRA
with conditioning layers beside it; the base is unchanged.
{samples}
## Use

```python
from diamond_diffusers import DiamondMapPipeline

pipe = DiamondMapPipeline.from_pretrained("{repository}")
image = pipe("{prompt}").images[0]
```

## Training

| | |
|---|---|
{table}

The guidance of the teacher is baked in.
"""


def write_model_card(
    folder: Path, repository: str, license: str, prompt: str | None = None, samples: Image.Image | None = None
) -> ModelCard:
    """Writes `README.md`, and the samples beside it, into the folder of a saved map.

    Args:
        repository: from which the snippet loads.
        license: as the Hub names it.
        prompt: of the samples and of the snippet.
        samples: a grid of images.

    Raises:
        FileNotFoundError: there is no map in the folder.
    """
    config = read_map_config(folder)
    base = config["base_model"] if _is_repository(config["base_model"]) else None
    data = ModelCardData(
        base_model=base, library_name="diffusers", pipeline_tag="text-to-image", tags=TAGS, license=license
    )
    grid = ""
    if samples is not None:
        samples.save(folder / SAMPLES_NAME)
        grid = f"\n![{_one_line(prompt or '')}]({SAMPLES_NAME})\n\nRows: one evaluation of the map, four evaluations.\n"
    text = _TEXT.format(
        title=repository.rsplit("/", 1)[-1],
        base=f"[{base}](https://huggingface.co/{base})" if base else f"a {config['family']} model",
        samples=grid,
        repository=repository,
        prompt=_one_line(prompt or "two red apples left of a blue cup").replace('"', '\\"'),
        table="\n".join(f"| {name} | {_cell(value)} |" for name, value in _facts(config).items()),
    )
    header = yaml.safe_dump(data.to_dict(), sort_keys=False)
    card = ModelCard(f"---\n{header}---\n\n{text}")
    card.save(folder / CARD_NAME)
    return card


def create_repository(repository: str, token: str | None = None) -> str:
    """Makes sure that a repository exists on the Hub; returns its full name."""
    return HfApi(token=token).create_repo(repository, exist_ok=True).repo_id


def upload(folder: Path, repository: str, token: str | None = None) -> None:
    """Uploads the map in a folder, with its card, and nothing else of it."""
    HfApi(token=token).upload_folder(
        repo_id=repository,
        folder_path=folder,
        allow_patterns=[*MAP_FILES, CARD_NAME, SAMPLES_NAME],
        commit_message="Posterior Diamond Map",
    )


def _facts(config: Mapping[str, Any]) -> dict[str, Any]:
    return {"base": config["base_model"] or config["family"], **config["training"]}


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


def _cell(value: Any) -> str:
    """A value in a table."""
    return _one_line(str(value)).replace("|", "\\|")

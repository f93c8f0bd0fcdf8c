"""Writes model cards, and uploads models to the Hub."""

from __future__ import annotations

import html
import json
import re
import reprlib
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from diffusers.utils.hub_utils import load_or_create_model_card, populate_model_card
from huggingface_hub import CommitInfo, HfApi, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]
from PIL import Image

from ..files.staging import UNFINISHED
from ..maps.storage import MAP_FILES
from .loading import EMBEDDED_MODEL, find_map
from .map_accuracy import ACCURACY, LawAccuracy, MapAccuracy, distance_text, ratio_text

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
{accuracy}"""
_ACCURACY = """
## How near it is to its teacher

Look-aheads are compared with those of the teacher's GLASS in {steps} steps, {samples} for each of {observations} rows
that training did not see, noised to each of these times of rectified flow. The energy distance in latents (± standard
error) is 0 where the laws are equal.

{distances}

The total standard deviation of the look-aheads, relative to that of the same GLASS, is 1 where they spread as far.

{ratios}
"""
_MAP_ALONE = "It is a LoRA\nwith conditioning layers beside it; the base is unchanged."
_MAP_AND_BASE = (
    "The map, a\nLoRA with conditioning layers, is in `{folder}/`; the rest is the base as stock diffusers loads it."
)


def write_model_card(
    folder: str | PathLike[str],
    repository: str,
    license: str | None = None,
    prompt: str | None = None,
    samples: Image.Image | None = None,
    caption: str = "",
) -> ModelCard:
    """Writes `README.md`, and the samples beside it, into the folder of a saved map.

    Args:
        folder: folder of the map alone, or of a pipeline with the map beside it.
        repository: name of the repository from which the card's snippet loads.
        license: name of the licence on the Hub; None for the map's own, or else `other`.
        prompt: prompt of the samples and of the snippet.
        samples: a grid of images.
        caption: caption of the grid.

    Raises:
        FileNotFoundError: there is no map in the folder.
        TypeError, ValueError: as of `check_card`.
    """
    check_card(license, prompt)
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
        grid = f"\n![{_markdown(prompt or 'Samples')}]({SAMPLES_NAME})\n"
        grid += f"\n{_paragraph(caption)}\n" if caption else ""
    own = f"the {EMBEDDED_MODEL} of this package" if config["base_model"] == EMBEDDED_MODEL else None
    described = own or f"a {_markdown(config['family'])} model"
    accuracy = MapAccuracy.read(config["training"])
    shown = {name: value for name, value in config["training"].items() if accuracy is None or name != ACCURACY}
    facts = {"base": base or own or config["family"], **shown}
    text = _TEXT.format(
        title=_markdown(Path(repository).resolve().name),
        base=f"[{_markdown(base)}](https://huggingface.co/{base})" if base else described,
        contents=_MAP_AND_BASE.format(folder=subfolder) if subfolder else _MAP_ALONE,
        samples=grid,
        repository=_quoted(repository),
        prompt=_quoted(" ".join((prompt or DEFAULT_PROMPT).split())),
        reward=_reward_lines(config["defaults"]),
        table="\n".join(f"| {_markdown(name)} | {_markdown(str(value))} |" for name, value in facts.items()),
        accuracy="" if accuracy is None else _accuracy_section(accuracy),
    )
    card = ModelCard(f"---\n{data}\n---\n\n{text}")
    card.save(folder / CARD_NAME)
    return card


def _accuracy_section(accuracy: MapAccuracy) -> str:
    def table(text: Callable[[LawAccuracy], str]) -> str:
        lines = [["", *(f"t = {level:g}" for level in accuracy.levels)], ["---", *["---:"] * len(accuracy.levels)]]
        lines += [[_markdown(sampler), *texts] for sampler, texts in accuracy.by_sampler(text).items()]
        return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)

    return _ACCURACY.format(
        steps=accuracy.reference_steps,
        observations=accuracy.num_observations,
        samples=accuracy.num_samples,
        distances=table(distance_text),
        ratios=table(ratio_text),
    )


def check_card(license: str | None, prompt: str | None) -> None:
    """Checks the values that a user gives for a card.

    Raises:
        TypeError: a value is no text.
        ValueError: the licence is not in one printable line.
    """
    for name, value in (("license", license), ("sample_prompt", prompt)):
        if not (value is None or isinstance(value, str)):
            raise TypeError(f"{name} is {reprlib.repr(value)}; give a text")
    if license is not None and not (license and license.isprintable()):
        raise ValueError(f"license is {license!r}; give a licence as the Hub names it, such as 'apache-2.0'")


def card_of_map(folder: str | PathLike[str]) -> set[str]:
    """The names of the files of a Diamond Map's card in a folder; empty if this package did not write the card."""
    file = Path(folder) / CARD_NAME
    try:
        tags = ModelCard(file.read_text(encoding="utf-8")).data.get("tags") if file.is_file() else None
    except Exception:
        # What others wrote need not be a card.
        return set()
    return {CARD_NAME, SAMPLES_NAME} if isinstance(tags, list) and TAGS[-1] in tags else set()


def stock_card(repository: str, token: str | bool | None = None) -> ModelCard:
    """The card that stock diffusers gives a pipeline: that of its repository, or a new one."""
    return populate_model_card(load_or_create_model_card(repository, token=token, is_pipeline=True))


def create_repository(repository: str, token: str | bool | None = None, private: bool | None = None) -> str:
    """Makes sure that a repository exists on the Hub; returns its full name."""
    return HfApi(token=token).create_repo(repository, private=private, exist_ok=True).repo_id


def upload(
    folder: str | PathLike[str],
    repository: str,
    token: str | bool | None = None,
    *,
    files: Sequence[str] | None = None,
    commit_message: str | None = None,
    create_pr: bool | None = None,
) -> CommitInfo:
    """Uploads a folder, or only the named ones of its files."""
    return HfApi(token=token).upload_folder(
        repo_id=repository,
        folder_path=Path(folder),
        allow_patterns=None if files is None else list(files),
        # What a save left behind whose process was killed.
        ignore_patterns=[f"*{UNFINISHED}*"],
        commit_message=commit_message,
        create_pr=create_pr,
    )


def _reward_lines(defaults: Mapping[str, Any]) -> str:
    """The lines of the snippet that name a reward, if the model has none of its own."""
    return "" if defaults.get("reward") else 'reward="clip",\n    reward_scale=100.0,\n    '


def _is_repository(name: str | None) -> bool:
    """Whether the Hub would accept a name as that of a base model."""
    if not name or "/" not in name:
        return False
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return not Path(name).exists()


def _markdown(text: str) -> str:
    """A text escaped for a line of Markdown or a cell of a table, so that nothing in it is read as markup."""
    line = " ".join(text.split())
    line = "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in line)
    return re.sub(r"[\\`*\[\]|~$]|(?<![^\W_])_|_(?![^\W_])", r"\\\g<0>", html.escape(line, quote=False))


def _paragraph(text: str) -> str:
    """A text escaped as by `_markdown` for a whole line, so that it is no heading, list or rule either."""
    return re.sub(r"^(\d*)([-+=#.)])", r"\1\\\2", _markdown(text))


def _quoted(text: str) -> str:
    """A text as a Python literal in double quotes, which can neither end the block of code nor hide what follows."""
    written = json.dumps(text, ensure_ascii=False)
    written = "".join(character if character.isprintable() else f"\\U{ord(character):08x}" for character in written)
    return written.replace("```", r"\x60\x60\x60")

"""Where models and their defaults come from, and where they are saved."""

from __future__ import annotations

import importlib.resources
import json
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

MAP_FOLDER = "diamond_map"
CONFIG_NAME = "diamond_map_config.json"
FORMAT_VERSION = 1


def embedded_model() -> Path:
    """The folder of the model that ships with the package."""
    return Path(str(importlib.resources.files("diamond_diffusers") / "miniature" / "weights" / "pipeline"))


def read_defaults(
    model: str | Path,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> dict[str, Any]:
    """The call defaults that a model's folder or Hub repository declares in `diamond_map/`; empty where it has none.

    Raises:
        ValueError: the declaration is not of a version that this package reads.
    """
    if Path(model).is_dir():
        path = Path(model) / MAP_FOLDER / CONFIG_NAME
        if not path.exists():
            return {}
    else:
        try:
            path = hf_hub_download(
                str(model),
                CONFIG_NAME,
                subfolder=MAP_FOLDER,
                revision=revision,
                token=token,
                cache_dir=cache_dir,
                local_files_only=local_files_only,
            )
        except (EntryNotFoundError, LocalEntryNotFoundError):
            return {}
    config = json.loads(Path(path).read_text())
    if config.get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f"{path} has format_version {config.get('format_version')!r}, but this package reads {FORMAT_VERSION}; "
            "upgrade diamond-diffusers"
        )
    return config["defaults"]


def write_defaults(folder: str | Path, family: str, defaults: dict[str, Any]) -> None:
    """Writes call defaults beside a saved stock pipeline."""
    target = Path(folder) / MAP_FOLDER
    target.mkdir(parents=True, exist_ok=True)
    config = {"format_version": FORMAT_VERSION, "family": family, "defaults": defaults}
    (target / CONFIG_NAME).write_text(json.dumps(config, indent=2) + "\n")

"""Files from the Hugging Face Hub: options, the local cache, and errors in one sentence."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download, try_to_load_from_cache

from .errors import first_line

HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")


def check_hub_options(name: str, options: Mapping[str, Any]) -> None:
    """Checks the further arguments of the reward `name`, which are passed to `from_pretrained` or to the Hub.

    Raises:
        TypeError: an argument is not in `HUB_OPTIONS`.
    """
    for option, value in options.items():
        if option not in HUB_OPTIONS:
            raise TypeError(
                f"Reward '{name}' got the unknown option {option}={value!r}; for loading it takes "
                f"{', '.join(HUB_OPTIONS)}."
            )


def download(name: str, repository: str, file: str, options: Mapping[str, Any]) -> Path:
    """A file of a repository for the reward `name`, from the local cache or downloaded.

    Raises:
        OSError: the file is not in the cache and cannot be downloaded.
    """
    try:
        return Path(hf_hub_download(repository, file, **options))
    except (OSError, ValueError) as error:
        raise OSError(
            f"Reward '{name}' cannot load checkpoint='{repository}' ({first_line(error)}); give a repository on the "
            f"Hub with {file}, or a local file or folder."
        ) from error


def is_cached(repository: str, file: str) -> bool:
    """Whether a file of a repository is in the local cache."""
    return isinstance(try_to_load_from_cache(repository, file), str)

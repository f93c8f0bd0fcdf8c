"""Files from the Hugging Face Hub and from pages of projects: options, local caches, and errors in one sentence."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download, try_to_load_from_cache

from .errors import first_line

HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")
OWN_OPTIONS = ("revision", "subfolder")
"""Those that are about one repository alone."""


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


def options_of_others(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a checkpoint without those that are its own, for what comes from another repository."""
    return {key: value for key, value in options.items() if key not in OWN_OPTIONS}


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


def page_path(url: str) -> Path:
    """Where the file of a project's own page is once it was downloaded, by its name, beside those of torch's hub."""
    return Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]


def download_from_page(url: str, sha256: str | None = None) -> Path:
    """The file of a project's own page, from the local cache or downloaded.

    Args:
        url: address of the file.
        sha256: its hash, if it is known; a file with another one is refused.

    Raises:
        OSError: the file cannot be downloaded.
        RuntimeError: its hash is another one.
    """
    path = page_path(url)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), hash_prefix=sha256, progress=False)
    return path

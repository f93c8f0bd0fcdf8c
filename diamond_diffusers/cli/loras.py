"""What `--lora` names: a source of weights, its adapter name and its weight."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WEIGHT_FILES = (".safetensors", ".bin", ".pt")
"""Endings of the files in which stock diffusers looks for a LoRA."""
MAP_ADAPTER = "diamond_map"
LONGEST_SHOWN = 200
_FORM = "give [NAME=]SOURCE[=WEIGHT], such as lcm=latent-consistency/lcm-lora-sdv1-5=0.8"


@dataclass(frozen=True)
class Lora:
    """One LoRA.

    Attributes:
        text: as the command line gave it.
        source: file or folder, or repository on the Hub.
        weight_name: the file in the folder or repository; None where there is one alone.
        name: the adapter's.
        weight: factor of the adapter.
    """

    text: str
    source: str
    weight_name: str | None
    name: str
    weight: float = 1.0

    @property
    def options(self) -> dict[str, Any]:
        """Keywords of stock methods that read it."""
        return {} if self.weight_name is None else {"weight_name": self.weight_name}


def parsed_loras(texts: Iterable[str]) -> list[Lora]:
    """The LoRAs that options ask for; nothing is read or downloaded.

    Raises:
        ValueError: one is malformed, names a file that does not exist, or has the adapter name of another.
    """
    loras: list[Lora] = []
    for position, text in enumerate(texts):
        lora = _parsed(text, f"default_{position}")
        if any(lora.name == other.name for other in loras):
            raise ValueError(f"--lora gives the adapter name {lora.name!r} twice; name each LoRA otherwise")
        loras.append(lora)
    return loras


def _parsed(text: str, default_name: str) -> Lora:
    name, source, weight = default_name, text, 1.0
    before, equals, after = source.rpartition("=")
    # A path may hold such signs itself.
    if equals and not _exists(source) and (number := _number(after)) is not None:
        source, weight = before, number
    before, equals, after = source.partition("=")
    if equals and not _exists(source):
        name, source = before, after
    if not source or not name.replace("-", "_").isidentifier():
        raise ValueError(f"--lora is {_shown(text)}; {_FORM}, where NAME is of letters, digits, '_' and '-'")
    if name == MAP_ADAPTER:
        raise ValueError(f"--lora is {_shown(text)}, but {name!r} is the adapter of Diamond Maps; name it otherwise")
    if not math.isfinite(weight):
        raise ValueError(f"--lora is {_shown(text)}, whose weight is no finite number; {_FORM}")
    return Lora(text, *_located(text, source), name, weight)


def _located(text: str, source: str) -> tuple[str, str | None]:
    """A local path or a repository, and the file in it."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    if _exists(source):
        return str(Path(source).expanduser()), None
    owner, _, rest = source.partition("/")
    repository, _, file = rest.partition("/")
    try:
        validate_repo_id(f"{owner}/{repository}")
        # A lone name of a file with a folder is no repository.
        is_on_hub = bool(file) or not repository.endswith(WEIGHT_FILES)
    except HFValidationError:
        is_on_hub = False
    if not is_on_hub:
        raise ValueError(
            f"--lora is {_shown(text)}, whose source is no file or folder here, nor the name of a repository on the "
            "Hub; give a path, OWNER/REPOSITORY or OWNER/REPOSITORY/FILE"
        )
    return f"{owner}/{repository}", file or None


def _shown(text: str) -> str:
    """A text in a sentence, where it may be of any length."""
    return repr(text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}...")


def _exists(path: str) -> bool:
    try:
        return Path(path).expanduser().exists()
    except (OSError, ValueError, RuntimeError):
        # Too long, with a zero byte, or of a user who is not there.
        return False


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None

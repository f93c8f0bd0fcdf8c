"""What kept files are named by: a digest of all that they depend on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .records import Options


def digest_of(options: Options, names: str, further: Mapping[str, str]) -> str:
    """A digest of some options, by their flags, separated by blanks, and of further settings."""
    values = options.by_flag()
    settings = {**{name: str(values[name]) for name in names.split()}, **further}
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]

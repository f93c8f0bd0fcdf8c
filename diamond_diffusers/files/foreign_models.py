"""Models that others saved: what is raised where they cannot be loaded, as a reason for the user."""

from __future__ import annotations

from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors import SafetensorError

from ..core.memory_errors import want_of_memory

UNLOADABLE = (
    OSError,
    ValueError,
    TypeError,
    ImportError,
    AttributeError,
    LookupError,
    RuntimeError,
    SafetensorError,
)
"""What diffusers, transformers and torch raise for models that are not there, of another kind, or damaged."""


def why_unloadable(error: Exception) -> str:
    """The first line of one of these.

    Raises:
        Exception: the same, where it tells of a want of memory.
    """
    if want_of_memory(error) is not None:
        raise error
    if isinstance(error, KeyError):
        return f"a file of it lacks {error}"
    if isinstance(error, RecursionError):
        return "a file of it is nested too deep"
    if _is_offline(error):
        return "it is not in the cache, and the Hub cannot be reached"
    return str(error).strip().split("\n")[0].rstrip(".")


def _is_offline(error: BaseException | None) -> bool:
    """Whether it came of a file that could not be asked for; diffusers says of such files that there are none."""
    return error is not None and (isinstance(error, LocalEntryNotFoundError) or _is_offline(error.__context__))

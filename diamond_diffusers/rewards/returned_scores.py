"""Reads what a reward has returned: in whichever form, as long as it can only mean one score for each image."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence, Sized
from dataclasses import fields, is_dataclass
from numbers import Number, Real
from typing import Any

import numpy
import torch
from torch import Tensor

from ..core.tensors import on_device

REAL_KINDS = "biuf"
"""Kinds of numpy's dtypes that hold real numbers."""


def read_scores(name: str, returned: Any, prompts: Sequence[str], device: torch.device) -> Tensor:
    """The scores `[B]` that the reward `name` returned for `B` images: float32, finite, with their graph.

    Understood are

    * a tensor or array `[B]` or `[B, 1]` of real numbers, on any device;
    * a list or tuple of `B` numbers or of `B` tensors of one number each;
    * for a single image, a number or a tensor of one number;
    * `(scores, metadata)`, where the metadata cannot be scores too;
    * a mapping, a dataclass or a named tuple with exactly one entry of `B` scores.

    Args:
        name: of the reward, for errors.
        returned: what its `score` or its function returned.
        prompts: the `B` prompts, for errors.
        device: of the images.

    Raises:
        TypeError: `returned` is of a kind that holds no scores.
        ValueError: it holds another number of scores, several candidates for them, or one that is not finite.
    """
    scores = _read(returned, len(prompts))
    if scores is None:
        raise _refusal(name, returned, len(prompts))
    scores = scores.to(device, torch.float32)
    if not scores.isfinite().all():
        first = int(scores.isfinite().logical_not().nonzero()[0, 0])
        raise ValueError(
            f"Reward '{name}' returned {scores[first].item()} for image {first} (prompt {prompts[first]!r}); "
            "scores must be finite in float32: mend its `score`, or load it in float32."
        )
    return scores


def is_one_number(returned: Any) -> bool:
    """Whether a number without a shape was returned, be it with metadata."""
    score = returned[0] if _is_pair(returned) and not isinstance(returned[1], Real) else returned
    if isinstance(score, Tensor) or hasattr(score, "__array__"):
        return getattr(score, "ndim", 1) == 0
    return isinstance(score, Real)


def _read(returned: Any, count: int) -> Tensor | None:
    """The scores `[B]` in what was returned; None where they are not plain to see."""
    named = _named(returned)
    if named is not None:
        found = _candidates(named, count)
        return next(iter(found.values())) if len(found) == 1 else None
    scores = _column(returned, count)
    if scores is None and _is_pair(returned):
        first, metadata = (_column(part, count) for part in returned)
        return first if metadata is None else None
    return scores


def _named(returned: Any) -> dict[str, Any] | None:
    """The entries of a mapping, a dataclass (as outputs of models are) or a named tuple."""
    if isinstance(returned, Mapping):
        return {str(key): value for key, value in returned.items()}
    if is_dataclass(returned) and not isinstance(returned, type):
        return {field.name: getattr(returned, field.name) for field in fields(returned)}
    if isinstance(returned, tuple) and hasattr(returned, "_fields"):
        return dict(zip(returned._fields, returned, strict=True))
    return None


def _candidates(named: Mapping[str, Any], count: int) -> dict[str, Tensor]:
    """The entries that can be scores; single numbers, such as a duration, only where nothing else can."""
    found = {key: scores for key, value in named.items() if (scores := _column(value, count)) is not None}
    return {key: found[key] for key in found if not isinstance(named[key], Number)} or found


def _is_pair(returned: Any) -> bool:
    return isinstance(returned, list | tuple) and len(returned) == 2


def _column(value: Any, count: int) -> Tensor | None:
    """One value as `B` scores `[B]`; None where it is something else."""
    if isinstance(value, Real):
        value = torch.tensor([float(value)], dtype=torch.float64)
    elif not isinstance(value, Tensor) and hasattr(value, "__array__"):
        value = _tensor(numpy.asarray(value))
    elif isinstance(value, list | tuple):
        value = _stacked(value)
    if not isinstance(value, Tensor) or not _holds_real_numbers(value) or value.numel() != count:
        return None
    is_column = value.shape[:1] == (count,) or count == 1
    return value.reshape(count) if is_column else None


def _tensor(array: numpy.ndarray[Any, Any]) -> Tensor | None:
    if array.dtype.kind in REAL_KINDS:
        return torch.from_numpy(array.astype(numpy.float64))
    # Arrays of objects may hold numbers.
    return _stacked(array.tolist()) if array.dtype.kind == "O" and array.ndim > 0 else None


def _stacked(values: Sequence[Any]) -> Tensor | None:
    """A list of numbers, or of tensors or lists of one number each, as a column."""
    if all(isinstance(value, Real) for value in values):
        return torch.tensor([float(value) for value in values], dtype=torch.float64)
    columns = [_column(value, 1) for value in values]
    rows = [column for column in columns if column is not None]
    # Their devices may differ, as those of numbers and tensors do.
    return torch.cat([on_device(row, rows[0].device) for row in rows]) if len(rows) == len(columns) else None


def _holds_real_numbers(tensor: Tensor) -> bool:
    is_plain = tensor.layout == torch.strided and not tensor.is_meta and not tensor.is_quantized
    return is_plain and not tensor.is_complex()


def _refusal(name: str, returned: Any, count: int) -> Exception:
    """The error of something that is not understood."""
    error, found, remedy = _fault(returned, count)
    return error(f"Reward '{name}' returned {found}; {remedy}.")


def _fault(returned: Any, count: int) -> tuple[type[Exception], str, str]:
    """The kind of error, what was found, and what to return in its place."""
    remedy = f"return a tensor with one score per image, of shape [{count}]"
    if returned is None:
        return TypeError, "None", f"{remedy}: its last line may lack a `return`"
    if isinstance(returned, str | bytes):
        return TypeError, f"the text {returned!r:.80}", f"{remedy}, such as `torch.tensor([float(text)])`"
    if inspect.isawaitable(returned) or inspect.isasyncgen(returned):
        if inspect.iscoroutine(returned):
            # Nobody will await it, of which Python would warn.
            returned.close()
        return TypeError, _kind(returned), "wait for it in a plain function, such as by `asyncio.run(...)`"
    if isinstance(returned, Iterator):
        return TypeError, f"{_kind(returned)}, which yields one thing after another", "return `list(...)` of it"
    named = _named(returned)
    if named is not None:
        return _fault_of_named(named, _kind(returned), count)
    if _is_pair(returned) and all(_column(part, count) is not None for part in returned):
        return ValueError, f"{_kind(returned)} of two tensors that can both be the scores", "return one of them"
    if isinstance(returned, Tensor) or hasattr(returned, "__array__"):
        return _fault_of_tensor(returned, count)
    if isinstance(returned, Real):
        only = "or set its max_batch_size to 1 if it scores one image at a time"
        return ValueError, f"{_kind(returned)} ({returned}) for {count} images", f"return one score per image, {only}"
    if isinstance(returned, list | tuple):
        return _fault_of_list(returned, count)
    return TypeError, _kind(returned), remedy


def _fault_of_named(named: Mapping[str, Any], kind: str, count: int) -> tuple[type[Exception], str, str]:
    found = list(_candidates(named, count))
    if found:
        entries = f"{kind} whose entries {' and '.join(map(repr, found))} can all be the scores"
        return ValueError, entries, f"return one of them, such as `output[{found[0]!r}]`"
    entries = f"{kind} with the entries {', '.join(map(repr, named)) or 'of nothing'}"
    return ValueError, f"{entries}, none of which has one score per image", f"return the scores, of shape [{count}]"


def _fault_of_tensor(returned: Any, count: int) -> tuple[type[Exception], str, str]:
    remedy = f"return shape [{count}]"
    if isinstance(returned, Tensor) and not _holds_real_numbers(returned):
        if returned.is_meta:
            return (
                TypeError,
                "a meta tensor, which holds no numbers",
                "load its weights on a real device, and score there",
            )
        if returned.is_complex():
            return (
                TypeError,
                f"scores of {returned.dtype}",
                "return real numbers, such as `scores.real` or `scores.abs()`",
            )
        return TypeError, f"scores of layout {returned.layout} and {returned.dtype}", "return a dense tensor"
    array = returned if isinstance(returned, Tensor) else numpy.asarray(returned)
    if not isinstance(array, Tensor) and array.dtype.kind not in REAL_KINDS:
        return TypeError, f"an array of dtype {array.dtype}", f"return real numbers of shape [{count}]"
    if array.ndim == 0:
        remedy += ", or set its max_batch_size to 1 if it scores one image at a time"
    return ValueError, f"scores of shape {list(array.shape)} for {count} images", remedy


def _fault_of_list(returned: Sequence[Any], count: int) -> tuple[type[Exception], str, str]:
    remedy = "return one number per image"
    for i, value in enumerate(returned):
        if _column(value, 1) is None and not isinstance(value, list | tuple | Tensor | numpy.ndarray):
            shown = _kind(value) if isinstance(value, Sized) and not isinstance(value, str) else f"{value!r:.80}"
            return TypeError, f"{_kind(returned)} with {shown} for image {i}", remedy
    return ValueError, f"{_kind(returned)} of {len(returned)} entries for {count} images", remedy


def _kind(value: Any) -> str:
    """What something is, with its article."""
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"

"""What an exception of a reward keeps of the run that it ends."""

from __future__ import annotations

from ..alignment.progress import Progress
from ..families.base import Family
from .output import postprocessed


def keep_best_images(error: Exception, family: Family, progress: Progress | None) -> None:
    """Gives an exception the attribute `best_images`, and a note that says what it holds.

    These are PIL images, one for each image of the call: the best that the last step or round has come to, as far as
    rewards are known, since none is asked again. The attribute is None where no step was finished, or where the images
    cannot be decoded.

    Args:
        error: that a reward has raised.
        family: of the model.
        progress: of the last step or round; None before the first.
    """
    images, note = None, "no step was finished before the reward failed"
    if progress is not None:
        place = f"step {progress.index + 1} of {progress.num_stages}, {_level(progress)}"
        try:
            finished, _ = family.finish(progress.best_known())
            images = postprocessed(family, finished, "pil")
            note = f"it holds the best images after {place}; the reward failed after that"
        except Exception as of_images:
            note = f"the images after {place}, could not be made ({type(of_images).__name__})"
    error.best_images = images  # type: ignore[attr-defined]
    error.add_note(f"best_images of this exception{' is None' if images is None else ''}: {note}")


def _level(progress: Progress) -> str:
    if progress.is_final:
        return "which are clean"
    return f"look-aheads from the noise-to-signal ratio {progress.noise_to_signal:.4g}"

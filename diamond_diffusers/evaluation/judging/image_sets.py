"""Finds the images that are to be judged, each with its prompt: those of a run, or of a folder in a known layout."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from ...files.foreign import ForeignFileError, parse_json, read_json, read_text
from ...files.foreign_tables import read_csv, read_json_lines
from ...files.json_forms import fitted, shown
from ..benchmark.prompts import Prompt
from ..benchmark.records import image_path, read_record
from ..scoring.image_files import IMAGE_SUFFIXES
from ..side_by_side import RECORD
from .images import ImageSet, JudgedImage
from .matching import match_by_name, match_by_text

LAYOUTS = (
    "a run of `benchmark` or `generate`, folders as of GenEval, or images with metadata.jsonl or metadata.csv (columns "
    "file_name and prompt), or give --prompts for images that are named after their prompts"
)
_RECORD = re.compile(r"\d{4,}_\d+\.json")


def find_image_sets(folders: Sequence[Path], prompts: Sequence[Prompt] | None = None) -> list[ImageSet]:
    """The sets of images in some folders; a run of several methods holds a set of each.

    Args:
        folders: each in one of the `LAYOUTS`.
        prompts: the prompts of the images with their metadata; None where the folders tell them.

    Raises:
        ValueError: a folder holds no images, or an image is missing, comes twice, or matches no prompt.
    """
    found: list[ImageSet] = []
    names = _names(folders)
    for folder, name in zip(folders, names, strict=True):
        if not folder.is_dir():
            reason = "is no folder" if folder.exists() else "does not exist"
            raise ValueError(f"FOLDER is '{folder}', which {reason}; give {LAYOUTS}")
        for inner, images in _sets_in(folder, prompts):
            _check(images, folder)
            label = inner or name
            found.append(ImageSet(f"{name}/{inner}" if inner and len(folders) > 1 else label, tuple(images)))
    return found


def _names(folders: Sequence[Path]) -> list[str]:
    """The folders' own names, after those of as many folders around them as tell all apart.

    They are relative, since results are kept under them.
    """
    paths = [folder.resolve() for folder in folders]
    for position, path in enumerate(paths):
        if path in paths[:position]:
            raise ValueError(f"FOLDER is '{folders[position]}' twice; name each folder once")
    for depth in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.relative_to(path.anchor).parts[-depth:]) or "root" for path in paths]
        if len(set(names)) == len(names):
            break
    return names


def _sets_in(folder: Path, prompts: Sequence[Prompt] | None) -> Iterator[tuple[str, list[JudgedImage]]]:
    """The sets of a folder, each with its name within it, which is empty where the folder is one set."""
    for is_this, read in LAYOUT_READERS:
        if is_this(folder):
            for name, images in read(folder):
                yield name, images if prompts is None else match_by_text(images, prompts)
            return
    files = _image_files(folder)
    if not files:
        raise ValueError(f"FOLDER is '{folder}', which holds no images; give {LAYOUTS}")
    if prompts is None:
        raise ValueError(
            f"FOLDER is '{folder}', whose images come without prompts; put metadata.jsonl beside them, with file_name "
            "and prompt of each, or give --prompts"
        )
    yield "", [JudgedImage(path, path.name, prompt) for path, prompt in match_by_name(files, prompts)]


def _check(images: Sequence[JudgedImage], folder: Path) -> None:
    """Raises a `ValueError` where there is no image, or one is missing or comes twice."""
    if not images:
        raise ValueError(f"FOLDER is '{folder}', which holds no images; give {LAYOUTS}")
    seen: dict[str, str] = {}
    for image in images:
        stem = str(Path(image.name).with_suffix(""))
        if stem in seen:
            raise ValueError(
                f"'{folder}' has {seen[stem]!r} and {image.name!r} for one image; remove one of the two"
                if seen[stem] != image.name
                else f"'{folder}' names {image.name!r} twice; remove one of the lines"
            )
        seen[stem] = image.name
        if not image.path.is_file():
            raise ValueError(f"'{image.path}' does not exist; draw the image again, or remove what names it")


def _image_files(folder: Path) -> list[Path]:
    """The images directly within a folder, by name."""
    # A link to nowhere is an image that is missing.
    return sorted(file for file in folder.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES and not file.is_dir())


# Runs of `benchmark`.


def _is_of_records(folder: Path) -> bool:
    return any(_RECORD.fullmatch(file.name) for file in folder.iterdir())


def _method_folders(folder: Path) -> list[Path]:
    images = folder / "images"
    if not images.is_dir():
        return []
    found = [inner for inner in images.iterdir() if inner.is_dir() and _is_of_records(inner)]
    # Others are compared with the first, which is plain sampling where it is there.
    return sorted(found, key=lambda inner: (inner.name.partition("_")[0] != "plain", inner.name))


def _of_benchmark(folder: Path) -> Iterator[tuple[str, list[JudgedImage]]]:
    for inner in _method_folders(folder):
        yield inner.name, _of_records(inner, f"images/{inner.name}/")


def _of_method(folder: Path) -> Iterator[tuple[str, list[JudgedImage]]]:
    yield "", _of_records(folder, "")


def _of_records(folder: Path, prefix: str) -> list[JudgedImage]:
    images = []
    for file in sorted(file for file in folder.iterdir() if _RECORD.fullmatch(file.name)):
        _, record = read_record(file)
        path = image_path(folder, record.key)
        if path.stem != file.stem:
            raise ForeignFileError(f"'{file}' holds the record of image {path.stem}; give the run as it was written")
        figures = {"reward": record.reward, "budget used": float(record.cost.equivalent_evaluations)}
        prompt = Prompt(record.index, record.prompt, record.category)
        images.append(JudgedImage(path, prefix + path.name, prompt, figures))
    return images


# Runs of `generate`.


class _Drawn(TypedDict):
    prompt: str
    plain: NotRequired[dict[str, Any]]
    aligned: NotRequired[dict[str, Any]]


class _GenerateRecord(TypedDict):
    images: list[_Drawn]


class _Facts(TypedDict):
    file: str


def _of_generate(folder: Path) -> Iterator[tuple[str, list[JudgedImage]]]:
    remedy = "give a folder that `diamond-diffusers generate` wrote"
    file = folder / RECORD
    record = fitted(read_json(file, remedy), _GenerateRecord, f"'{file}'", remedy)
    texts = list(dict.fromkeys(drawn["prompt"] for drawn in record["images"]))
    for run in ("plain", "aligned"):
        images = []
        for drawn in record["images"]:
            if run not in drawn:
                continue
            facts = fitted(drawn[run], _Facts, f"{run} in '{file}'", remedy)
            path = _within(folder, facts["file"], f"{run}.file in '{file}'")
            images.append(JudgedImage(path, facts["file"], Prompt(texts.index(drawn["prompt"]), drawn["prompt"])))
        if images:
            yield run, images


# GenEval's folders.


def _geneval_folders(folder: Path) -> list[Path]:
    return sorted(
        inner for inner in folder.iterdir() if inner.name.isdecimal() and (inner / "metadata.jsonl").is_file()
    )


class _Metadata(TypedDict):
    prompt: str
    tag: NotRequired[str]


def _of_geneval(folder: Path) -> Iterator[tuple[str, list[JudgedImage]]]:
    remedy = "give the prompt's line of GenEval's evaluation_metadata.jsonl"
    images = []
    for inner in _geneval_folders(folder):
        file = inner / "metadata.jsonl"
        metadata = fitted(parse_json(read_text(file), f"'{file}'", remedy), _Metadata, f"'{file}'", remedy)
        prompt = Prompt(int(inner.name), metadata["prompt"].strip(), metadata.get("tag", ""), metadata)
        samples = inner / "samples"
        found = _image_files(samples) if samples.is_dir() else []
        if not found:
            raise ValueError(f"'{samples}' holds no images; draw those of the prompt {prompt.text!r}")
        images += [JudgedImage(path, f"{inner.name}/samples/{path.name}", prompt) for path in found]
    yield "", images


# Images with a table of their prompts.


def _table_of(folder: Path) -> Path | None:
    return next((folder / name for name in ("metadata.jsonl", "metadata.csv") if os.path.lexists(folder / name)), None)


class _Row(TypedDict):
    file_name: str
    prompt: str
    category: NotRequired[str]


def _of_table(folder: Path) -> Iterator[tuple[str, list[JudgedImage]]]:
    file = _table_of(folder)
    assert file is not None, "the layout is that of a table"
    remedy = "give file_name and prompt of each image, and perhaps its category and metadata of its suite"
    images, indices = [], dict[str, int]()
    for place, row in _rows_of(file, remedy):
        fields = fitted(row, _Row, place, remedy)
        text = fields["prompt"].strip()
        metadata = {key: value for key, value in fields.items() if key not in _Row.__annotations__}
        prompt = Prompt(indices.setdefault(text, len(indices)), text, fields.get("category", ""), metadata)
        path = _within(folder, fields["file_name"], place)
        # Without what says nothing, as in ./a.png.
        images.append(JudgedImage(path, path.relative_to(folder).as_posix(), prompt))
    if not images:
        raise ForeignFileError(f"'{file}' has no row; {remedy}")
    unnamed = sorted({file.name for file in _image_files(folder)} - {image.name for image in images})
    if unnamed:
        raise ValueError(f"'{file}' has no row for {unnamed[0]!r}; add one, or remove the image")
    yield "", images


def _rows_of(file: Path, remedy: str) -> Iterator[tuple[str, Any]]:
    """The rows of a table, each with its place."""
    if file.suffix == ".csv":
        columns, rows = read_csv(file)
        if lacking := [name for name in ("file_name", "prompt") if name not in columns]:
            raise ForeignFileError(f"'{file}' has no column {lacking[0]!r}; {remedy}")
        return rows
    return ((place, row) for _, place, row in read_json_lines(file, remedy))


def _within(folder: Path, name: str, place: str) -> Path:
    """A file that a table or a record names, which has to lie in its folder."""
    path = folder / name
    if "\0" in name or not path.resolve().is_relative_to(folder.resolve()) or path.is_dir():
        raise ForeignFileError(f"{place} names {shown(name)}, which is no file within '{folder}'; move the file there")
    return path


Layout = tuple[Callable[[Path], object], Callable[[Path], Iterator[tuple[str, list[JudgedImage]]]]]
LAYOUT_READERS: tuple[Layout, ...] = (
    (_method_folders, _of_benchmark),
    (_is_of_records, _of_method),
    (lambda folder: (folder / RECORD).is_file(), _of_generate),
    (_geneval_folders, _of_geneval),
    (_table_of, _of_table),
)

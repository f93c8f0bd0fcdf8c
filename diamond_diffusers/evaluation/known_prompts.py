"""The prompts of published benchmarks by name, by path, or from a data set on the Hub.

A known file is its authors' own at one commit of their repository on GitHub. It is downloaded once, checked against the
hash that git has for it, and kept in the assets' cache of `huggingface_hub`.
"""

from __future__ import annotations

import hashlib
import re
import urllib.request
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from huggingface_hub import cached_assets_path, constants, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError

from ..files.foreign_models import why_unloadable
from .files import write_bytes

TIMEOUT = 30
"""Seconds without a byte after which a download is given up."""
_ON_HUB = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+)/(?P<file>[^@]+?)(?:@(?P<revision>[\w./-]+))?")


@dataclass(frozen=True)
class PromptFile:
    """A published file of prompts.

    Attributes:
        repository: on GitHub.
        commit: at which the file is taken.
        path: of the file within the repository.
        blob: git's hash of the file's contents.
        licence: of the file.
        num_prompts: number of prompts in it.
        source: the publication.
    """

    repository: str
    commit: str
    path: str
    blob: str
    licence: str
    num_prompts: int
    source: str

    @property
    def url(self) -> str:
        """From where the file is downloaded."""
        return f"https://raw.githubusercontent.com/{self.repository}/{self.commit}/{self.path}"

    @property
    def place(self) -> Path:
        """Where the file is kept; its folder is made."""
        cache = constants.HF_ASSETS_CACHE
        folder = cached_assets_path("diamond-diffusers", "prompts", self.commit, assets_dir=cache)
        return Path(folder) / Path(self.path).name


def _t2i_compbench(category: str, blob: str, num_prompts: int = 300) -> PromptFile:
    return PromptFile(
        "Karine-Huang/T2I-CompBench",
        "1b7094991a57f3c22abdd4f6e8ba6c1a15517073",
        f"examples/dataset/{category}.txt",
        blob,
        "MIT",
        num_prompts,
        "Huang et al. 2023, arXiv:2307.06350",
    )


KNOWN_PROMPTS = {
    "geneval": PromptFile(
        "djghosh13/geneval",
        "af4902f24d3ca90ebbb446dd9891a59e0f82725f",
        "prompts/evaluation_metadata.jsonl",
        "efc21c7e639cd45554a1e44fac87157211f16d51",
        "MIT",
        553,
        "Ghosh et al. 2023, arXiv:2310.11513",
    ),
    "geneval2": PromptFile(
        "facebookresearch/GenEval2",
        "a6e82d2289e8d418f27f0adee77908b07060eea3",
        "geneval2_data.jsonl",
        "823f48414446157fe252f92e3c60c803c33c303c",
        "CC BY-NC 4.0",
        800,
        "Kamath et al. 2025, arXiv:2512.16853",
    ),
    "dpg_bench": PromptFile(
        "TencentQQGYLab/ELLA",
        "3c228f1dc6c4d3cad0a47493816151a419f14db3",
        "dpg_bench/dpg_bench.csv",
        "98457fc9901943f51ff9a30367250fc292533bed",
        "Apache-2.0",
        1065,
        "Hu et al. 2024, arXiv:2403.05135",
    ),
    "dsg": PromptFile(
        "j-min/DSG",
        "7330119a39f76ff90e619a8bd3ff321e71aa986b",
        "dsg/data/dsg-1k-anns.csv",
        "b1b097f09ec4b36546b7266492b386a742ec5790",
        "Apache-2.0",
        1060,
        "Cho et al. 2024, arXiv:2310.18235",
    ),
    "tifa": PromptFile(
        "Yushi-Hu/tifa",
        "8e37050f44ab4ee681e4251f3c8a9d4cc86e901e",
        "tifa_v1.0/tifa_v1.0_question_answers.json",
        "6a563f9c157e5b2a24b9f4936edd3934a8a70add",
        "Apache-2.0",
        4081,
        "Hu et al. 2023, arXiv:2303.11897",
    ),
    "t2i_compbench_3d_spatial": _t2i_compbench("3d_spatial_val", "c799d256a56a68cea3fbc423d79c444c3819cf7a"),
    "t2i_compbench_color": _t2i_compbench("color_val", "700badf7bd0989c45eb307ff3573f127ecee0a53"),
    "t2i_compbench_complex_action": _t2i_compbench(
        "complex_val_action", "fb0f4988e49d3da151dd0f421906261a67298a57", 212
    ),
    "t2i_compbench_complex_spatial": _t2i_compbench(
        "complex_val_spatial", "19fd020b24905d3118f68f309f1f68db2e4ef1bc", 58
    ),
    "t2i_compbench_complex_spatialaction": _t2i_compbench(
        "complex_val_spatialaction", "7aaf748bfd90eef6c1c92cb6bda7ff90879b761b", 30
    ),
    "t2i_compbench_non_spatial": _t2i_compbench("non_spatial_val", "046d5689c35fb1270fdce8aa003c068e4a360726"),
    "t2i_compbench_numeracy": _t2i_compbench("numeracy_val", "f9246e9ceb6f58c578534f967108372823762fde"),
    "t2i_compbench_shape": _t2i_compbench("shape_val", "b82835d72b25c2aa2962736f091fe04ee6a39a21"),
    "t2i_compbench_spatial": _t2i_compbench("spatial_val", "e453b999d311ddc47f303d389db02818b63a256c"),
    "t2i_compbench_texture": _t2i_compbench("texture_val", "61d35c8e7127e530f221780fd117c905315ce00a"),
    "unigenbench": PromptFile(
        "CodeGoat24/UniGenBench",
        "49d0bcebb0b9418d975d3957c2fee10f34811d14",
        "data/test_prompts_en.csv",
        "000674adb2414b2e5e7558ad7331ee82a945fae1",
        "CC BY 4.0",
        600,
        "Wang et al. 2025, arXiv:2510.18701",
    ),
}
"""The files that a name stands for."""


def find_prompts(source: str, name: str = "--prompts") -> Path:
    """The file of prompts that a user means.

    Args:
        source: a name in `KNOWN_PROMPTS`, a path, or `OWNER/REPOSITORY/FILE` of a data set on the Hub, perhaps with
            `@` and a branch, tag or commit after it.
        name: of the option, for errors.

    Raises:
        ValueError: it is none of these, or cannot be downloaded.
    """
    if source in KNOWN_PROMPTS:
        return _downloaded(source, KNOWN_PROMPTS[source], name)
    path = Path(source)
    try:
        if path.is_file():
            return path
        is_folder = path.is_dir()
    except (OSError, ValueError):
        is_folder = False
    found = _ON_HUB.fullmatch(source)
    if found is not None and not is_folder and not source.startswith("."):
        return _from_hub(source, found, name)
    reason = "is a folder" if is_folder else "does not exist"
    raise ValueError(
        f"{name} is {source!r}, which {reason}; give a file, OWNER/REPOSITORY/FILE of a data set on the Hub, or one of "
        f"{', '.join(KNOWN_PROMPTS)}"
    )


def _downloaded(named: str, file: PromptFile, name: str) -> Path:
    """The file of a name, from the cache or downloaded into it."""
    place = file.place
    if place.exists():
        return place
    try:
        if constants.HF_HUB_OFFLINE:
            raise OSError("HF_HUB_OFFLINE is set")
        with urllib.request.urlopen(file.url, timeout=TIMEOUT) as answer:
            content = answer.read()
    except (OSError, ValueError, HTTPException) as error:
        reason = " ".join(str(getattr(error, "reason", error)).split()) or type(error).__name__
        raise ValueError(
            f"{name} is {named!r}, which is not in the cache and cannot be downloaded ({reason}); save {file.url} as "
            f"'{place}', or give a file"
        ) from error
    if git_hash(content) != file.blob:
        raise ValueError(
            f"{name} is {named!r}, but what {file.url} holds is not the published file; download it by other means "
            "and give the file"
        )
    write_bytes(place, content)
    return place


def git_hash(content: bytes) -> str:
    """The name that git gives to the contents of a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _from_hub(source: str, found: re.Match[str], name: str) -> Path:
    try:
        return Path(
            hf_hub_download(found["repository"], found["file"], repo_type="dataset", revision=found["revision"])
        )
    except (OSError, ValueError, RuntimeError, EntryNotFoundError) as error:
        raise ValueError(
            f"{name} is {source!r}, which is no file here and cannot be had from the Hub ({why_unloadable(error)}); "
            f"give a file, OWNER/REPOSITORY/FILE of a data set, or one of {', '.join(KNOWN_PROMPTS)}"
        ) from error

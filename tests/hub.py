"""The Hub, in a folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from huggingface_hub import CommitInfo, RepoUrl, repocard
from huggingface_hub.errors import EntryNotFoundError
from huggingface_hub.utils import filter_repo_objects

from diamond_diffusers.pipelines import model_card


class Hub:
    """Stands for `HfApi`, and for downloads of model cards: keeps the files that it is given.

    Attributes:
        tokens, calls: what was handed over, of every call.
    """

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.tokens, self.calls = folder, [], []
        monkeypatch.setattr(model_card, "HfApi", self)
        monkeypatch.setattr(repocard, "hf_hub_download", self.download)

    def __call__(self, token=None):
        self.tokens.append(token)
        return self

    def create_repo(self, repo_id, *, private, exist_ok):
        assert exist_ok
        self.calls.append({"private": private})
        name = repo_id if "/" in repo_id else f"someone/{repo_id}"
        (self.folder / name).mkdir(parents=True, exist_ok=True)
        return RepoUrl(f"https://huggingface.co/{name}")

    def upload_folder(self, *, repo_id, folder_path, allow_patterns, ignore_patterns, commit_message, create_pr):
        self.calls.append({"commit_message": commit_message, "create_pr": create_pr})
        files = [file.relative_to(folder_path) for file in Path(folder_path).rglob("*") if file.is_file()]
        for name in filter_repo_objects(
            map(str, files), allow_patterns=allow_patterns, ignore_patterns=ignore_patterns
        ):
            target = self.folder / repo_id / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(Path(folder_path) / name, target)
        return CommitInfo(f"https://huggingface.co/{repo_id}/commit/0", commit_message or "", "", "0")

    def download(self, repo_id, filename, **options):
        file = self.folder / repo_id / filename
        if not file.exists():
            raise EntryNotFoundError("there is no such file")
        return str(file)


def files_in(folder: Path) -> set[str]:
    """Names of the files in a folder, relative to it."""
    return {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}

"""Prompts by name, by path, or from the Hub; nothing is downloaded."""

import io
import urllib.request
from urllib.error import URLError

import pytest
from huggingface_hub import constants

from diamond_diffusers.evaluation import known_prompts as module
from diamond_diffusers.evaluation.benchmark.prompts import prompts_in
from diamond_diffusers.evaluation.known_prompts import KNOWN_PROMPTS, PromptFile, find_prompts, git_hash

from ..hub import Hub

LINES = b'{"tag": "counting", "prompt": "two cats", "include": []}\n'


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache, and no network."""
    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path / "assets"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)

    def urlopen(url, timeout):
        raise URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    return tmp_path / "assets"


@pytest.fixture
def small(monkeypatch):
    """A known file with other contents."""
    file = PromptFile("someone/prompts", "0" * 40, "data/prompts.jsonl", git_hash(LINES), "MIT", 1, "nobody")
    monkeypatch.setitem(KNOWN_PROMPTS, "small", file)
    return file


def test_a_named_file_is_downloaded_once(small, monkeypatch, cache):
    urls = []

    def urlopen(url, timeout):
        urls.append(url)
        return io.BytesIO(LINES)

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    path = find_prompts("small")
    assert path.is_relative_to(cache) and [prompt.text for prompt in prompts_in(path)] == ["two cats"]
    assert find_prompts("small") == path
    assert urls == [f"https://raw.githubusercontent.com/someone/prompts/{'0' * 40}/data/prompts.jsonl"]


def test_what_is_not_the_published_file_is_refused(small, monkeypatch):
    monkeypatch.setattr(urllib.request, "urlopen", lambda url, timeout: io.BytesIO(b"<html>"))
    with pytest.raises(ValueError, match="is not the published file; download it by other means"):
        find_prompts("small")
    assert not small.place.exists()


@pytest.mark.parametrize("is_offline", [False, True])
def test_offline_and_absent(small, monkeypatch, is_offline):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", is_offline)
    reason = "HF_HUB_OFFLINE is set" if is_offline else "no network"
    with pytest.raises(
        ValueError, match=f"'small', which is not in the cache .* \\({reason}\\); save https.* as '"
    ) as error:
        find_prompts("small", "--prompts")
    assert str(small.place) in str(error.value)
    small.place.write_bytes(LINES)
    assert find_prompts("small") == small.place


def test_a_path_goes_before_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "prompts.txt").write_text("a cat")
    assert find_prompts("a/b/prompts.txt").read_text() == "a cat"


def test_a_data_set_on_the_hub(tmp_path, monkeypatch):
    hub, asked = Hub(tmp_path, monkeypatch), []

    def download(repository, file, *, repo_type, revision):
        asked.append((repo_type, revision))
        return hub.download(repository, file)

    monkeypatch.setattr(module, "hf_hub_download", download)
    (tmp_path / "someone" / "data").mkdir(parents=True)
    (tmp_path / "someone" / "data" / "prompts.txt").write_text("a fox")
    assert find_prompts("someone/data/prompts.txt@v1").read_text() == "a fox"
    assert find_prompts("someone/data/prompts.txt").read_text() == "a fox"
    assert asked == [("dataset", "v1"), ("dataset", None)]
    with pytest.raises(ValueError, match=r"is no file here and cannot be had from the Hub \(there is no such file"):
        find_prompts("someone/data/other.txt")


@pytest.mark.parametrize("source", ["", "no_such.txt", "/", "a\nb", "x" * 5000, "/no/such/file.txt", "\0"])
def test_what_is_neither(source):
    with pytest.raises(ValueError, match="give a file, OWNER/REPOSITORY/FILE of a data set on the Hub, or one of"):
        find_prompts(source)


@pytest.mark.parametrize("name", KNOWN_PROMPTS)
def test_known_files_say_what_they_are(name):
    file = KNOWN_PROMPTS[name]
    assert len(file.commit) == len(file.blob) == 40 and file.num_prompts > 0 and file.licence and file.source

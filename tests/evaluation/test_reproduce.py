"""Each command of docs/reproduce.md counts, in a dry run, what a real run of it evaluates."""

from __future__ import annotations

import re
import shlex
import string
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from benchmarks.counting import Counts, counted
from diamond_diffusers.cli import benchmark as cli_benchmark
from diamond_diffusers.cli import generate as cli_generate
from diamond_diffusers.cli.loras import parsed_loras
from diamond_diffusers.evaluation.benchmark.recipes import RECIPES
from diamond_diffusers.evaluation.dry_run.counting import COUNTS, DryRun
from diamond_diffusers.evaluation.dry_run.stand_ins import save_lora, save_stand_in
from diamond_diffusers.rewards import REWARDS, Reward
from tests.cli.invoking import succeed

PAGE = Path(__file__).parents[2] / "docs" / "reproduce.md"
QUICK = "weighted_diamond_sana"
"""The method whose command is the quickest, with gradients, several look-aheads and a jump."""


def commands() -> list[list[str]]:
    """The words of the page's commands that draw images, with the page's variables filled in."""
    lines = "\n".join(re.findall(r"^```bash\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL))
    found, variables = [], {}
    for line in lines.replace("\\\n", " ").splitlines():
        if assignment := re.fullmatch(r"(\w+)=(.*)", line):
            variables[assignment[1]] = shlex.split(assignment[2])[0]
        elif not re.search(r" evaluate ", line):
            found.append(shlex.split(string.Template(line).substitute(variables))[1:])
    return found


def value_of(words: list[str], option: str) -> str | None:
    return words[words.index(option) + 1] if option in words else None


def without(words: list[str], *options: str) -> list[str]:
    """The words without options that have a value."""
    kept = list(words)
    for option in options:
        if option in kept:
            del kept[kept.index(option) : kept.index(option) + 2]
    return kept


@pytest.fixture(autouse=True)
def restored(monkeypatch) -> Iterator[None]:
    """What the page's file registers is forgotten again."""
    monkeypatch.chdir(PAGE.parents[1])
    monkeypatch.setattr(sys, "path", [*sys.path])
    recipes = dict(RECIPES)
    yield
    sys.modules.pop("reproduce", None)
    for name in set(RECIPES) - set(recipes):
        del RECIPES[name]
    for name in [name for name, entry in REWARDS._entries.items() if entry.__module__ == "reproduce"]:
        del REWARDS._entries[name]


class Scored(Reward):
    """A differentiable reward that counts the images that it scores."""

    def __init__(self) -> None:
        self.count = 0

    def score(self, images: Any, prompts: Any) -> Any:
        self.count += len(images)
        return images.square().mean((1, 2, 3))


def dry_runs(words: list[str], monkeypatch) -> list[DryRun]:
    """What `--dry-run` of a command has counted."""
    seen: list[DryRun] = []
    for module in (cli_benchmark, cli_generate):
        monkeypatch.setattr(module, "print_dry_runs", seen.extend)
    succeed(*words, "--dry-run")
    return seen


def real_words(words: list[str], folder: Path) -> list[str]:
    """The command on a tiny model that is really there, for one prompt."""
    model, lora = value_of(words, "--model"), value_of(words, "--lora")
    changed = without(words, "--model", "--lora", "--prompts", "--height", "--width", "--num-images-per-prompt")
    changed = without(changed, "--num-prompts", "--dtype", "--variant", "--output", "--reward")
    changed = [word for word in changed if word != "--dry-run"]
    if model is not None:
        size = [value_of(words, option) for option in ("--height", "--width")]
        tiny = save_stand_in(model, folder, *(None if each is None else int(each) for each in size))
        changed += ["--model", str(tiny), "--reward", "scored", "--device", "cpu"]
        if lora is not None:
            (parsed,) = parsed_loras([lora])
            save_lora(tiny, parsed.source, parsed.weight_name, folder / "lora.safetensors")
            changed += ["--lora", str(folder / "lora.safetensors")]
    (folder / "prompts.txt").write_text("two blue stars\n")
    if "benchmark" in words:
        changed += ["--prompts", str(folder / "prompts.txt")]
    return [*changed, "--output", str(folder / "out")]


def really_counted(words: list[str], folder: Path, monkeypatch) -> tuple[list[Counts], Scored]:
    """What hooks count in a real run of the command, with the images that its reward has scored."""
    scored = Scored()
    counts: list[Counts] = []
    monkeypatch.setitem(REWARDS._entries, "scored", scored)
    with ExitStack() as hooks:
        for module in (cli_benchmark, cli_generate):

            def loaded(*given: Any, load: Any = module.load_model, **options: Any) -> Any:
                pipe = load(*given, **options)
                counts.append(hooks.enter_context(counted(pipe)))
                return pipe

            monkeypatch.setattr(module, "load_model", loaded)
        monkeypatch.setattr(cli_benchmark, "_report", lambda *given: None)
        succeed(*real_words(words, folder))
    return counts, scored


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(words, marks=[] if QUICK in words else pytest.mark.slow, id=str(value_of(words, "--methods")))
        for words in commands()
        if "--model" in words
    ],
)
def test_a_dry_run_counts_what_hooks_count_in_a_real_run(words, tmp_path, monkeypatch):
    runs = dry_runs([word for word in words if word != "--dry-run"], monkeypatch)
    (counts,), scored = really_counted(words, tmp_path, monkeypatch)
    expected = {name: sum(run.of_image()[name] for run in runs) for name in COUNTS}
    assert counts.network == expected["network_evaluations"] > 0
    assert counts.backward == expected["backward_passes"]
    assert counts.decoded == expected["decodes"]
    assert scored.count == expected["reward_calls"] + sum(run.num_tried for run in runs)
    table = PAGE.read_text()
    for run in runs:
        forward, backward, decodes, calls = run.of_image().values()
        name = re.sub(r"_\d+$", "", run.name)
        row = rf"\| `{name}`[^|\n]*\| {forward} \| {backward} \| {decodes} \| {calls} \| {forward + 2 * backward} \|"
        assert name == "aligned" or re.search(row, table), (run.name, run.of_image())


def test_the_page_has_the_costs_of_every_command():
    """So that none is left out of the test above."""
    methods = [name for words in commands() if "--import" in words for name in value_of(words, "--methods").split(",")]
    assert len(methods) >= 14
    assert all(f"| `{name}`" in PAGE.read_text() for name in methods)

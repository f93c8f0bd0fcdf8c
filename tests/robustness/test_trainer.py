"""Options of the trainer, each with odd values, by argument and in a file: exit code 2 and one line that says why."""

from __future__ import annotations

from pathlib import Path

import pytest

from diamond_diffusers.training.options.fields import options_of
from diamond_diffusers.training.options.parser import parse_options
from diamond_diffusers.training.options.records import RECORDS

from .judging import ANY, Tally, fault_of_sentence

OPTIONS = [option for record in RECORDS.values() for option in options_of(record)]
BASE = ("--pretrained_model_name_or_path", "miniature", "--dataset_name", "miniature")
NUMBERS = (
    "",
    " ",
    "x",
    "-1",
    "-1e30",
    "nan",
    "inf",
    "-inf",
    "1e999",
    "9" * 400,
    "1.5",
    "true",
    "1j",
    "0x10",
    "1_0",
    "٣",
    "a\udcffb",
)
TEXTS = ("a\udcffb", "\udcff")


def refusal(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str | None:
    """What the parser says of arguments; None where it takes them."""
    try:
        parse_options(arguments)
    except SystemExit as exit:
        said = capsys.readouterr().err
        assert exit.code == 2
        return said.strip().splitlines()[-1]
    return None


def judge(tally: Tally, flag: str, value: str, kind: type, said: str | None, made_by: str) -> None:
    if said is None:
        fault = None
        if kind in (int, float):
            try:
                fault = None if abs(kind(value)) < 2**1023 else "silent: no number"
            except (ValueError, OverflowError):
                fault = "silent: no number"
        tally.count("understood", fault, made_by)
    else:
        sentence = said.partition("error: ")[2]
        # A text that is no number is refused by argparse, in the words of every command of Python's.
        is_argparse = f"--{flag}: invalid {kind.__name__} value: {value!r}" in sentence and len(sentence) < 1500
        fault = None if is_argparse else fault_of_sentence(sentence, (flag,), ANY)
        tally.count("refused", fault and f"{fault}: {sentence[:200]!r}", made_by)


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.flag)
def test_option(option, tmp_path: Path, tally: Tally, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "options.yaml"
    values = NUMBERS if option.kind in (int, float) else TEXTS
    if option.choices is not None:
        values = ("", "x", "no_such", "NO", "a\udcffb")
    if option.flag in ("pretrained_model_name_or_path", "dataset_name", "import"):
        values = TEXTS
    if option.kind is bool:
        values = ("1", "x", "", "2", "maybe")
    for value in values:
        if option.kind is not bool:
            said = refusal([*BASE, f"--{option.flag}={value}"], capsys)
            judge(tally, option.flag, value, option.kind, said, f"distill --{option.flag}={value!r:.40}")
        if "\udcff" in value or value.strip() != value or not value:
            continue
        file.write_text(f"{option.flag}: '{value}'\n")
        said = refusal([*BASE, "--config", str(file)], capsys)
        judge(tally, option.flag, value, option.kind, said, f"{option.flag}: '{value:.40}' in a file")
    tally.check()


@pytest.mark.parametrize(
    "value", ["[1, 2]", "{a: 1}", "[[1]]", "null", "~", "&a [*a]", "!!python/name:os.system", "2020-01-01"]
)
@pytest.mark.parametrize("flag", ["rank", "seed", "output_dir", "random_flip", "loss", "optimizer", "learning_rate"])
def test_value_of_another_kind_in_a_file(
    flag: str, value: str, tmp_path: Path, tally: Tally, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "options.yaml"
    file.write_text(f"{flag}: {value}\n")
    said = refusal([*BASE, "--config", str(file)], capsys)
    tally.count(
        "understood" if said is None else "refused",
        None if said is None or str(file) in said or flag in said else said,
        f"{flag}: {value}",
    )
    tally.check()

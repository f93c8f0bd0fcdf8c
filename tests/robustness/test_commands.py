"""Odd arguments of the commands: exit code 2 and one sentence on stderr, and nothing half written."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from diamond_diffusers.rewards.remote.serving import RewardServer

from ..cli.invoking import invoke
from .judging import OneOf, Tally, fault_of_sentence

ODD = (
    "",
    " ",
    "-1",
    "0",
    "1.5",
    "nan",
    "inf",
    "-inf",
    "1e999",
    "9" * 40,
    "true",
    "none",
    "x",
    "../..",
    "a\nb",
    "🌊",
    "[bold]",
)
PARTS = ("option", "alignment", "posterior", "gradient", "guidance-strength", "num-inner-steps", "num-lookaheads")
"""Options of methods that plain sampling does not have."""
GENERATE = {
    "model": ("", "/no/such/folder", "/", "../..", "a\nb"),
    "alignment": ODD,
    "option": (
        "",
        "x",
        "=",
        "=4",
        "num_particles",
        "num_particles=",
        "num_particles=x",
        "a.b.c.d=1",
        "posterior=x",
        "posterior.x=1",
        "num_particles=nan",
        "num_particles=true",
        "num_particles=9e9",
        "name=none",
        "\n=1",
    ),
    "reward": ODD,
    "reward-scale": ODD[4:],
    "num-images": ("", "-1", "0", "1.5", "nan", "9" * 40, "x"),
    "seed": ("", "-1", "1.5", "nan", "9" * 40, "x"),
    "num-inference-steps": ("", "-1", "0", "1.5", "nan", "9" * 40, "x"),
    "num-particles": ("", "-1", "0", "1.5", "nan", "9" * 40, "x"),
    "posterior": ODD,
    "num-inner-steps": ("", "-1", "0", "x", "3"),
    "num-lookaheads": ("", "-1", "0", "x", "3"),
    "gradient": ODD,
    "guidance-strength": ("", "nan", "inf", "x"),
    "max-network-evaluations": ("", "-1", "0", "1.5", "x", "9" * 40),
    "particle-batch-size": ("", "-1", "0", "1.5", "x", "9" * 40),
    "dtype": ODD,
    "device": ("", "x", "cuda:99", "meta", "cpu:-1", "a\nb"),
    "offload": ODD,
    "quantize": ODD,
    "few-step": ODD,
    "lora": ("", "=", "=1", "x", "x=y=nan", "/no/such.safetensors", "../..", "a\nb", "1.5=x/y", "x" * 5000),
    "variant": ODD[:4],
    "revision": ODD[:4],
    "preview-vae": ("", "/no/such/folder", "/", "a\nb"),
    "diamond-map": ("", "/no/such/folder", "/", "a\nb"),
    "prompts": ("", "no_such.txt", "/"),
}
BENCHMARK = {
    "budgets": ("", "0", "-1", "x", "1,", ",", "1.5", "nan", "9" * 40, "1,x"),
    "methods": ("", "x", "plain,x", "plain,plain", ",", "plain,", " "),
    "prompts": ("", "no_such.txt", "/", "x.exe"),
    "num-prompts": ("0", "-1", "x", "1.5"),
    "batch-size": ("0", "-1", "x"),
    "seed": ("-1", "x", "9" * 40),
    "export": ("", "x", "geneval,unigenbench"),
    "held-out-reward": ("", "x", "miniature"),
    "reward": ("", "x", "2*"),
}
SCORE = {
    "reward": ODD,
    "prompt": ("\udcff",),
    "format": ("", "x", "TABLE", "json"),
    "batch-size": ("0", "-1", "x"),
    "dtype": ODD[:4],
    "device": ("", "x", "cuda:99"),
}
EVALUATE = {
    "suite": ("", "x", "dsg,tifa", " "),
    "reward": ODD,
    "prompts": ("", "no_such.txt", "/", "a\nb"),
    "vlm": ("", "/no/such/folder"),
    "detector": ("", "x"),
    "clip": ("", "x"),
    "format": ("", "x", "TABLE"),
    "shard": ("", "x", "1", "1/1", "-1/2", "0/0", "0/" + "9" * 40, "a/b"),
    "batch-size": ("0", "-1", "x"),
    "dtype": ODD[:4],
    "device": ("", "x", "cuda:99"),
}
SERVE = {
    "reward": ODD,
    "host": ("", " ", "x y", "a\nb"),
    "port": ("", "-1", "65536", "1.5", "x"),
    "max-batch-size": ("0", "-1", "x", "9" * 40),
    "api-key-env": ("", " ", "NO_SUCH_KEY", "a=b", "a\nb"),
    "dtype": ODD[:4],
    "device": ("", "x", "cuda:99"),
}


def forms_of(value: str) -> list[str]:
    """What a sentence may show of an option's text: it, the number that it is, or the part of it that is wrong."""
    forms = (
        [
            value,
            repr(value),
            *(["''"] if "" in [part.strip() for part in value.split(",")] else []),
            *(part for text in re.split("[=,. -]", value) if text for part in (text, repr(text))),
        ]
        if value
        else ["''"]
    )
    try:
        return [*forms, str(float(value))]
    except ValueError:
        return forms


def fault_of_command(
    arguments: tuple[str, ...], output: Path, names: tuple[str, ...], value: str
) -> tuple[str, str | None]:
    """Whether a command was understood or refused, and what is wrong with that."""
    result = invoke(*arguments)
    text = result.stderr
    written = sorted(str(file.relative_to(output)) for file in output.rglob("*")) if output.exists() else []
    if result.exit_code == 0:
        return "understood", None if written or arguments[0] in (
            "score",
            "serve-reward",
        ) else "silent: nothing is written"
    if result.exit_code != 2 or "Traceback" in text:
        return "refused", f"exit code {result.exit_code}: {result.exception!r}"
    if written:
        return "refused", f"half written: {written}"
    errors = [line for line in text.splitlines() if line.startswith("Error: ")]
    if errors:
        sentence = errors[0].removeprefix("Error: ").strip()
        fault = fault_of_sentence(sentence, names, OneOf(forms_of(value)))
        return "refused", fault if len(errors) == 1 else f"{len(errors)} errors"
    # Of the parser of the command line, within a box.
    said = " ".join(re.sub(r"[│╭╮╰╯─]", " ", text).split())
    return "refused", None if any(name in said for name in names) else f"no {names}: {said[-200:]}"


@pytest.mark.parametrize("option", GENERATE)
def test_generate(option: str, tmp_path: Path, tally: Tally) -> None:
    for number, value in enumerate(GENERATE[option]):
        output = tmp_path / str(number)
        short = ("--num-inference-steps=1", *(() if option in PARTS else ("--alignment=none",)))
        short = tuple(flag for flag in short if not flag.startswith(f"--{option}="))
        arguments = ("generate", "a ring", *short, f"--{option}={value}", "--output", str(output))
        names = (option, option.replace("-", "_"), "guide", "strength", "prompt", "reward", "Reward")
        path = value.rpartition("=")[0] if option == "option" else option
        names = (*names, *filter(None, path.split(".")), "NAME", "alignment")
        tally.count(
            *fault_of_command(arguments, output, names, value),
            " ".join(arguments)[:200],
        )
    tally.check()


@pytest.mark.parametrize("option", BENCHMARK)
def test_benchmark(option: str, tmp_path: Path, tally: Tally) -> None:
    for number, value in enumerate(BENCHMARK[option]):
        output = tmp_path / str(number)
        short = {"methods": "plain", "num-prompts": "1", "budgets": "1", "num-inference-steps": "1"}
        flags = [f"--{name}={text}" for name, text in {**short, option: value}.items()]
        arguments = ("benchmark", *flags, "--output", str(output))
        tally.count(
            *fault_of_command(arguments, output, (option, option.split("-")[-1]), value), " ".join(arguments)[:200]
        )
    tally.check()


@pytest.mark.parametrize("option", SCORE)
def test_score(option: str, tmp_path: Path, tally: Tally) -> None:
    from PIL import Image

    image, output = tmp_path / "ring.png", tmp_path / "none"
    Image.new("RGB", (64, 64)).save(image)
    for value in SCORE[option]:
        short = {"reward": "miniature", "prompt": "a ring"}
        flags = [f"--{name}={text}" for name, text in {**short, option: value}.items()]
        arguments = ("score", str(image), *flags)
        names = (option, option.upper(), "prompt", "reward", "Reward")
        tally.count(*fault_of_command(arguments, output, names, value), " ".join(arguments)[:200])
    tally.check()


@pytest.mark.parametrize("option", EVALUATE)
def test_evaluate(option: str, tmp_path: Path, tally: Tally) -> None:
    from PIL import Image

    folder = tmp_path / "images"
    folder.mkdir()
    Image.new("RGB", (64, 64)).save(folder / "ring.png")
    (folder / "metadata.jsonl").write_text('{"file_name": "ring.png", "prompt": "a red ring"}')
    for number, value in enumerate(EVALUATE[option]):
        output = tmp_path / str(number)
        flags = [f"--{name}={text}" for name, text in {"reward": "brightness", option: value}.items()]
        arguments = ("evaluate", str(folder), *flags, "--output", str(output))
        names = (option, option.upper(), "reward", "Reward")
        tally.count(*fault_of_command(arguments, output, names, value), " ".join(arguments)[:200])
    tally.check()


@pytest.mark.parametrize("option", SERVE)
def test_serve_reward(option: str, tmp_path: Path, tally: Tally, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a service that ends as soon as it has begun."""
    monkeypatch.setattr(RewardServer, "serve_forever", lambda server: None)
    for value in SERVE[option]:
        flags = [f"--{name}={text}" for name, text in {"reward": "brightness", "port": "0", option: value}.items()]
        names = (option, option.upper(), option.replace("-", "_"), "reward", "Reward")
        tally.count(*fault_of_command(("serve-reward", *flags), tmp_path / "none", names, value), " ".join(flags)[:200])
    tally.check()


COMMANDS = ("generate", "benchmark", "score", "evaluate", "serve-reward", "rewards", "models", "redraw")


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_without_what_they_need(command: str, tmp_path: Path, tally: Tally) -> None:
    """Unknown options and stray arguments; files in place of folders."""
    (tmp_path / "file").write_text("x")
    for arguments in (("--no-such-option", "1"), ("--output", str(tmp_path / "file" / "below"), "a ring"), ("--seed",)):
        result = invoke(command, *arguments)
        is_told = result.exit_code == 2 and "Traceback" not in result.stderr and result.stderr.strip()
        tally.count(
            "refused",
            None if is_told else f"exit code {result.exit_code}: {result.exception!r}",
            f"{command} {arguments}",
        )
    tally.check()

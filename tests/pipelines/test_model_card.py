"""Model cards of saved models, and what is uploaded with them."""

from __future__ import annotations

import ast
import json
import re
from html import unescape
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from huggingface_hub import ModelCard, ModelCardData, metadata_load
from huggingface_hub.utils import validate_repo_id
from markdown_it import MarkdownIt
from peft import LoraConfig
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from diamond_diffusers import SMC, DiamondMapPipeline, DiamondPosterior, DiamondTransition
from diamond_diffusers.maps.diamond_map import DiamondMap
from diamond_diffusers.maps.storage import CONFIG_NAME, MAP_FILES, save_diamond_map
from diamond_diffusers.pipelines.model_card import write_model_card
from diamond_diffusers.rewards import REWARDS

from ..conftest import redness
from ..hub import Hub, files_in
from ..rounding import assert_same_from_a_copy

TRAINING = {"steps": 7, "loss": "lagrangian", "data": "a | b"}
BASE = "someone/base"
SAMPLES = [Image.new("RGB", (8, 8), colour) for colour in ("red", "green", "blue", "black", "white")]
ALIGNMENT = SMC(num_particles=2, posterior=DiamondPosterior(2), transition=DiamondTransition())


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Hub:
    return Hub(tmp_path / "hub", monkeypatch)


@pytest.fixture(scope="module")
def map_folder(tiny_folder, tmp_path_factory) -> Path:
    """A map with random weights, and its base elsewhere."""
    pipe = DiamondMapPipeline.from_pretrained(tiny_folder)
    diamond_map = DiamondMap(pipe.family, rank=2)
    torch.manual_seed(1)
    weights = {name: torch.randn_like(weight) / 5 for name, weight in diamond_map.weights().items()}
    folder = tmp_path_factory.mktemp("map")
    defaults = {"true_cfg_scale": 2.0, "negative_prompt": ""}
    save_diamond_map(folder, diamond_map, defaults, TRAINING, base_model=str(tiny_folder), weights=weights)
    return folder


@pytest.fixture
def mapped_pipe(map_folder) -> DiamondMapPipeline:
    return DiamondMapPipeline.from_pretrained(map_folder)


def draw(pipe: DiamondMapPipeline) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return pipe("a ring", reward=redness, alignment=ALIGNMENT, generator=generator, output_type="pt").images


def contents(file):
    """Of a file; a safetensors header lists its entries in no fixed order."""
    if file.suffix != ".safetensors":
        return file.read_bytes()
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    return metadata, {name: weight.numpy().tobytes() for name, weight in load_file(file).items()}


def test_what_is_pushed_is_what_is_loaded(mapped_pipe, hub, tmp_path):
    pipe = mapped_pipe
    images = draw(pipe)
    card = {"license": "apache-2.0", "sample_images": SAMPLES, "sample_prompt": "a ring"}
    commit = pipe.push_to_hub("model", private=True, token="secret", commit_message="mine", create_pr=True, **card)
    assert commit.commit_url == "https://huggingface.co/someone/model/commit/0"
    assert set(hub.tokens) == {"secret"}
    assert hub.calls == [{"private": True}, {"commit_message": "mine", "create_pr": True}]

    pushed, saved = tmp_path / "hub" / "someone" / "model", tmp_path / "saved"
    pipe.save_pretrained(saved, **card)
    for name in files_in(saved) - {"README.md"}:
        assert contents(pushed / name) == contents(saved / name), name
    beside = {"README.md", "samples.png", *(f"diamond_map/{name}" for name in MAP_FILES)}
    stock = DiffusionPipeline.from_pretrained(pushed)
    stock.save_pretrained(tmp_path / "stock")
    assert files_in(pushed) == files_in(saved) == files_in(tmp_path / "stock") | beside
    assert_same_from_a_copy(draw(DiamondMapPipeline.from_pretrained(pushed)), images)
    assert 'from_pretrained("someone/model"' in ModelCard.load(pushed / "README.md").text
    with Image.open(pushed / "samples.png") as grid:
        # Four in a row, 2 pixels between them.
        assert (grid.size, grid.getpixel((3, 3)), grid.getpixel((3, 13))) == ((42, 22), (255, 0, 0), (255, 255, 255))


def test_a_saved_folder_is_pushed_under_its_own_name(mapped_pipe, hub, tmp_path):
    mapped_pipe.save_pretrained(tmp_path / "rings", push_to_hub=True)
    pushed = tmp_path / "hub" / "someone" / "rings"
    assert files_in(pushed) == files_in(tmp_path / "rings")
    assert (pushed / "README.md").read_text() == (tmp_path / "rings" / "README.md").read_text()
    assert "samples.png" not in (pushed / "README.md").read_text()


def test_without_a_map_the_card_is_that_of_stock_diffusers(tiny_pipe, hub, tmp_path):
    weights = {name: weight.clone() for name, weight in tiny_pipe.transformer.state_dict().items()}
    tiny_pipe.transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q"]))
    tiny_pipe.save_pretrained(tmp_path / "saved")
    assert "README.md" not in files_in(tmp_path / "saved")
    tiny_pipe.push_to_hub("someone/model")
    pushed = tmp_path / "hub" / "someone" / "model"
    assert files_in(pushed) == {*files_in(tmp_path / "saved"), "README.md"}
    assert ModelCard.load(pushed / "README.md").data.library_name == "diffusers"
    loaded = DiamondMapPipeline.from_pretrained(pushed)
    assert loaded.defaults == tiny_pipe.defaults
    state = loaded.transformer.state_dict()
    assert state.keys() == weights.keys()
    assert all(torch.equal(weight, state[name]) for name, weight in weights.items())

    (pushed / "README.md").write_text("---\nlicense: mit\n---\n\n# By hand\n")
    tiny_pipe.push_to_hub("someone/model")
    card = ModelCard.load(pushed / "README.md")
    assert "# By hand" in card.text
    assert (card.data.license, card.data.library_name) == ("mit", "diffusers")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"licence": "mit"}, TypeError, "no argument 'licence'"),
        ({"repo_id": "someone/model"}, ValueError, "repo_id is for the Hub; add push_to_hub=True"),
        ({"sample_images": SAMPLES[0]}, TypeError, "sample_images must be a list of PIL images"),
        ({"sample_images": []}, TypeError, "sample_images must be a list of PIL images"),
        ({"sample_images": torch.zeros(2, 3, 8, 8)}, TypeError, "sample_images must be a list of PIL images"),
        ({"sample_images": [*SAMPLES, Image.new("RGB", (9, 8))]}, TypeError, "of one size"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_written(mapped_pipe, tmp_path, options, error, message):
    with pytest.raises(error, match=message):
        mapped_pipe.save_pretrained(tmp_path / "saved", **options)
    assert not (tmp_path / "saved").exists()


def test_a_card_of_no_map_is_refused(tiny_pipe, tmp_path):
    with pytest.raises(ValueError, match="license is for the model card of a Diamond Map, and there is none"):
        tiny_pipe.save_pretrained(tmp_path / "saved", license="mit")
    assert not (tmp_path / "saved").exists()
    tiny_pipe.save_pretrained(tmp_path / "saved")
    with pytest.raises(FileNotFoundError, match="no Diamond Map to write a model card of"):
        write_model_card(tmp_path / "saved", "someone/map")


@pytest.fixture(params=["the map alone", "with its base"])
def saved_folder(request, map_folder, tmp_path) -> Path:
    """A copy of the map, without a card, in either form."""
    pipe, folder = DiamondMapPipeline.from_pretrained(map_folder), tmp_path / "model"
    if request.param == "with its base":
        pipe.save_pretrained(folder)
    else:
        save_diamond_map(folder, pipe.family.posterior_map, pipe.defaults, TRAINING)
    return folder


def set_base(folder: Path, name: str) -> None:
    file = next(folder.rglob(CONFIG_NAME))
    file.write_text(json.dumps({**json.loads(file.read_text()), "base_model": name}))


def test_the_card_says_what_the_hub_asks_for(saved_folder):
    set_base(saved_folder, BASE)
    prompt = 'a sign that says "open | closed"\\now\nby the sea'
    write_model_card(saved_folder, "someone/map", "apache-2.0", prompt, SAMPLES[0], "One row.")
    metadata = metadata_load(saved_folder / "README.md")
    data = ModelCardData(**metadata)
    assert data.to_dict() == metadata == ModelCard.load(saved_folder / "README.md").data.to_dict()
    assert (data.library_name, data.pipeline_tag) == ("diffusers", "text-to-image")
    assert (data.base_model, data.license) == (BASE, "apache-2.0")
    validate_repo_id(data.base_model)
    assert all(isinstance(tag, str) for tag in data.tags)
    # The Hub takes a LoRA for weights at the root.
    assert {"diamond-maps"} <= set(data.tags)
    assert ("lora" in data.tags) == (saved_folder / MAP_FILES[1]).exists()

    text = ModelCard.load(saved_folder / "README.md").text
    assert "\n![" in text and "](samples.png)\n\nOne row.\n" in text and (saved_folder / "samples.png").exists()
    rows = dict(re.findall(r"^\| (\w+) \| (.+) \|$", text, re.MULTILINE))
    assert rows == {"base": BASE, "steps": "7", "loss": "lagrangian", "data": "a \\| b"}
    assert 'a sign that says \\"open | closed\\"\\\\now by the sea"' in snippet_of(saved_folder)


HOSTILE = [
    "```\n# Heading\n```python\nimport os",
    "---\nlicense: mit\n---",
    "<script>alert(1)</script><img src=x onerror=alert(1)>",
    "a | b |\n|---|---|\n| c | d |",
    "](https://evil.example) [click](javascript:alert(1)) ![x](y)",
    "*bold* _lean_ __b__ `code` ~~gone~~ $x$ \\( y \\) &amp; &lt;",
    'quote " and \\" and \\',
    "\u2028\u202egnp.exe\x00\x1b[31m\ud800",
    "# heading",
    "- item",
]


def rendered(card: ModelCard) -> str:
    return MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(card.text)


@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_is_markup(saved_folder, text):
    file = next(saved_folder.rglob(CONFIG_NAME))
    name = "".join(character for character in text if character.isprintable())
    training = {"data": text.replace("\ud800", "").replace("\0", ""), name: 1}
    file.write_text(json.dumps({**json.loads(file.read_text()), "training": training, "base_model": BASE}))
    write_model_card(saved_folder, f"someone/{name.replace('/', '')}", "mit", text, SAMPLES[0], text)
    content = (saved_folder / "README.md").read_bytes().decode()
    card = ModelCard(content)
    assert (card.data.license, card.data.base_model) == ("mit", BASE)

    # The elements of the page are those of a harmless one.
    html = rendered(card)
    harmless = rendered(write_model_card(saved_folder, "someone/map", "mit", "a ring", SAMPLES[0], "One row."))
    elements = r"</?[a-z0-9]+"
    assert re.findall(elements, html) == re.findall(elements, harmless)

    # And it says what was given.
    line = " ".join(text.split())
    readable = "".join(character if character.isprintable() else "\ufffd" for character in line)
    assert unescape(re.search(r'<img src="samples.png" alt="([^"]*)"', html)[1]) == readable
    assert unescape(re.search(r"samples.png.*\n<p>(.*)</p>", html)[1]) == readable
    assert snippet_prompt(content) == line
    assert all(character.isprintable() or character == "\n" for character in content)


def snippet_prompt(text: str) -> str:
    """What the code of a card gives the pipeline."""
    calls = [node for node in ast.walk(ast.parse(snippet_in(text))) if isinstance(node, ast.Call)]
    return next(call.args[0].value for call in calls if getattr(call.func, "id", "") == "pipe")


def snippet_in(text: str) -> str:
    return re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]


def snippet_of(folder: Path) -> str:
    return snippet_in((folder / "README.md").read_text())


@pytest.mark.parametrize("own_reward", [False, True])
def test_the_snippet_works_when_pasted(saved_folder, own_reward, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(REWARDS._entries, "redness" if own_reward else "clip", redness)
    if own_reward:
        file = next(saved_folder.rglob(CONFIG_NAME))
        config = json.loads(file.read_text())
        file.write_text(json.dumps({**config, "defaults": {**config["defaults"], "reward": "redness"}}))
    write_model_card(saved_folder, str(saved_folder), prompt='a "red" ring')
    snippet = snippet_of(saved_folder)
    assert ('reward="clip"' in snippet) != own_reward
    names = {}
    exec(snippet, names)
    assert names["pipe"].family.posterior_map.training_facts == TRAINING
    with Image.open(tmp_path / "image.png") as image:
        assert image.size == (16, 16)


@pytest.mark.parametrize("base", ["folder", "miniature"])
def test_what_the_hub_does_not_hold_is_not_named_as_the_base(map_folder, saved_folder, base):
    if base == "miniature":
        set_base(saved_folder, "miniature")
    card = write_model_card(saved_folder, "someone/map")
    assert card.data.base_model is None and card.data.license == "other"
    named = "the miniature of this package" if base == "miniature" else "a flux model"
    assert f"of {named}: one network" in card.text
    assert "| base | /" not in card.text

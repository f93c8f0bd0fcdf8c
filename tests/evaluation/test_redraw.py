"""An image is drawn again from its record alone."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from diamond_diffusers import (
    SMC,
    AncestralTransition,
    BestOfN,
    DiamondMapPipeline,
    DiamondTransition,
    GlassPosterior,
    GlassTransition,
    Guidance,
    Guide,
    NoAlignment,
)
from diamond_diffusers.alignment.methods import METHODS
from diamond_diffusers.core.serial import from_dict
from diamond_diffusers.evaluation.benchmark.compare import Setup, compare, method_folder
from diamond_diffusers.evaluation.benchmark.plan import SizedMethod
from diamond_diffusers.evaluation.benchmark.prompts import miniature_suite
from diamond_diffusers.evaluation.benchmark.records import RecordFolder, read_record
from diamond_diffusers.evaluation.benchmark.redraw import read_recorded, redraw
from diamond_diffusers.evaluation.files import plain
from diamond_diffusers.files.foreign import ForeignFileError
from diamond_diffusers.maps.diamond_map import DiamondMap
from diamond_diffusers.rewards import CallableReward

from ..conftest import redness

REWARD = CallableReward(redness, differentiable=True)
ALIGNMENTS = [
    NoAlignment(),
    BestOfN(num_particles=3),
    Guidance(guide=Guide("pathwise"), transition=AncestralTransition()),
    SMC(
        num_particles=3,
        posterior=GlassPosterior(num_inner_steps=2, num_samples=2),
        transition=GlassTransition(num_inner_steps=2),
        max_noise_to_signal=math.inf,
        guide=Guide("tilted_mean"),
    ),
]


@pytest.mark.parametrize("alignment", ALIGNMENTS, ids=lambda alignment: type(alignment).__name__)
def test_alignments_come_back_from_json(alignment):
    stored = json.loads(json.dumps(plain(alignment)))
    assert from_dict(METHODS, stored) == alignment


@pytest.fixture
def setup(tiny_pipe):
    return Setup(tiny_pipe, "tiny", miniature_suite(), REWARD, num_images_per_prompt=2, batch_size=3, seed=4)


@pytest.mark.parametrize("alignment", ALIGNMENTS, ids=lambda alignment: type(alignment).__name__)
def test_every_pixel_is_the_same(setup, tiny_pipe, tmp_path, alignment):
    method = SizedMethod("any", alignment, 2)
    setup = replace(setup, arguments={"true_cfg_scale": 3.0}, reward_scale=2.0, particle_batch_size=2)
    records = compare(setup, [method], setup.suite.first(2), tmp_path)["any"]
    # One from within a batch, and one alone in its own.
    for record in (records[1], records[3]):
        path = method_folder(tmp_path, method) / f"{record.key.stem}.json"
        again = redraw(read_recorded(path), tiny_pipe, REWARD)
        assert again.is_same and again.changes == {}
        assert (np.asarray(again.image) == np.asarray(Image.open(path.with_suffix(".png")))).all()


def test_the_number_of_threads_is_that_of_the_record_for_a_while(setup, tiny_pipe, tmp_path):
    method = SizedMethod("any", NoAlignment(), 2)
    compare(setup, [method], setup.suite.first(1), tmp_path)
    path = method_folder(tmp_path, method) / "0000_0.json"
    stored = json.loads(path.read_text())
    stored["record"]["machine"]["num_threads"] = former = torch.get_num_threads() + 1
    path.write_text(json.dumps(stored))
    assert redraw(read_recorded(path), tiny_pipe, REWARD).changes == {}
    assert torch.get_num_threads() == former - 1


def test_differences_are_told(setup, tiny_pipe, tmp_path):
    method = SizedMethod("any", NoAlignment(), 2)
    compare(setup, [method], setup.suite.first(1), tmp_path)
    path = method_folder(tmp_path, method) / "0000_1.json"
    stored = json.loads(path.read_text())
    stored["record"]["batch"]["seeds"][1] += 1
    stored["record"]["machine"]["device"] = "abacus"
    path.write_text(json.dumps(stored))
    again = redraw(read_recorded(path), tiny_pipe, REWARD)
    assert not again.is_same
    assert again.changes.keys() == {"device"} and again.changes["device"][0] == "abacus"
    tiny_pipe.transformer.proj_out.weight.data += 1e-3
    with pytest.raises(ValueError, match=r"model_weights is '.*', but the image was drawn with"):
        redraw(read_recorded(path), tiny_pipe, REWARD)


def test_an_image_of_a_diamond_map_needs_that_map(setup, tiny_pipe, tmp_path):
    tiny_pipe.family.posterior_map = DiamondMap(tiny_pipe.family, rank=2)
    mapped, plain = (
        SizedMethod("mapped", BestOfN(num_particles=2, transition=DiamondTransition()), 2),
        SizedMethod("any", NoAlignment(), 2),
    )
    compare(setup, [mapped, plain], setup.suite.first(1), tmp_path)
    paths = [method_folder(tmp_path, method) / "0000_0.json" for method in (mapped, plain)]
    assert redraw(read_recorded(paths[0]), tiny_pipe, REWARD).is_same
    for weight in tiny_pipe.family.posterior_map.trained_parameters():
        weight.data += 0.1
    assert redraw(read_recorded(paths[1]), tiny_pipe, REWARD).is_same
    with pytest.raises(ValueError, match=r"diamond_map_weights is '.*', but the image was drawn with"):
        redraw(read_recorded(paths[0]), tiny_pipe, REWARD)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "alchemy"}, "names no method that is known here .alignment is 'alchemy'; choose one of"),
        ({"luck": 1}, "names no method that is known here .alignment 'best_of_n' has no option 'luck'"),
    ],
)
def test_methods_of_other_versions_are_refused(setup, tmp_path, change, message):
    method = SizedMethod("any", BestOfN(num_particles=2), 2)
    compare(setup, [method], setup.suite.first(1), tmp_path)
    path = method_folder(tmp_path, method) / "0000_0.json"
    stored = json.loads(path.read_text())
    stored["settings"]["alignment"] |= change
    path.write_text(json.dumps(stored))
    with pytest.raises(ValueError, match=message):
        read_recorded(path)


def test_an_option_that_is_new_is_told(setup, tmp_path):
    method = SizedMethod("any", BestOfN(num_particles=2), 2)
    compare(setup, [method], setup.suite.first(1), tmp_path)
    path = method_folder(tmp_path, method) / "0000_0.json"
    stored = json.loads(path.read_text())
    del stored["settings"]["alignment"]["num_particles"]
    path.write_text(json.dumps(stored))
    with pytest.raises(ValueError, match="whose best_of_n has other options; redraw it with that version"):
        read_recorded(path)


@pytest.fixture(scope="module")
def recorded_text(tiny_folder, tmp_path_factory):
    """A record as it is written."""
    pipe = DiamondMapPipeline.from_pretrained(tiny_folder)
    pipe.set_progress_bar_config(disable=True)
    folder = tmp_path_factory.mktemp("recorded")
    method = SizedMethod("any", BestOfN(num_particles=2), 2)
    setup = Setup(pipe, "tiny", miniature_suite(), REWARD, arguments={"true_cfg_scale": 3.0})
    compare(setup, [method], setup.suite.first(1), folder)
    (path,) = method_folder(folder, method).glob("*.json")
    return path.read_text()


def changed(text, place, value):
    """A record with another value at a place such as `record.batch.seeds`."""
    stored = json.loads(text)
    *outer, key = place.split(".")
    parent = stored
    for name in outer:
        parent = parent[name]
    parent[key] = value
    return json.dumps(stored)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("settings", [], "^settings of '.*.json' is a list in place of an object; name a .json file beside an image"),
        ("settings.alignment", None, "^alignment of settings of '.*.json' is None in place of an object"),
        ("settings.alignment.num_particles", 10**12, "^alignment.num_particles is above 10000 in '.*.json', which no"),
        ("settings.alignment.num_particles", "many", "num_particles is 'many'; give a whole number"),
        ("settings.alignment.num_particles", True, "num_particles is True; give a whole number"),
        ("settings.alignment.num_particles", -3, "settings.alignment of '.*.json' names no method .*-3"),
        ("settings.alignment.name", ["smc"], r"alignment is \['smc'\]; choose one of"),
        ("settings.alignment.name", "glass", "alignment is 'glass'; choose one of"),
        (
            "settings.alignment.transition",
            {"name": "best_of_n"},
            "transition is 'best_of_n'; choose one of ancestral",
        ),
        ("settings.arguments.height", 10**9, "^arguments.height is above 10000 in"),
        ("settings.arguments", {"height": 9000, "width": 9000}, "^arguments.height times width is above"),
        ("settings.num_inference_steps", 10**12, "^num_inference_steps is above 10000"),
        ("settings.num_inference_steps", "2", "^num_inference_steps of settings of .* is '2' in place of a whole"),
        ("settings.dtype", "torch.int8", "^dtype of settings of .* is 'torch.int8' in place of 'torch.float32' or"),
        ("settings.model", 7, "^model of settings of .* is 7 in place of a text"),
        ("settings.reward_scale", "high", "^reward_scale of settings of .* is 'high' in place of a number"),
        ("record.cost", {"network_evaluations": "1"}, "^record.cost of '.*' has no 'backward_passes'"),
        ("record.batch.seeds", [2**80], "^batch.seeds has a number outside"),
        ("record.batch.seeds", [], "^batch has 1 prompts and 0 seeds"),
        ("record.batch.prompts", [None], r"^record.batch.prompts\[0\] of '.*' is None in place of a text"),
        ("record.batch.particle_batch_size", 0, "^batch.particle_batch_size is 0 in"),
        ("record.batch.particle_batch_size", 10**9, "^batch.particle_batch_size is 1000000000 in"),
        ("settings.reward_scale", 10**400, "^reward_scale of settings of .* is a huge number, above all that"),
        ("record.row", 1, "^row is 1 of a batch of 1 images"),
        ("record.row", -1, "^row is -1"),
        ("record.luck", 1, "^record of '.*.json' has 'luck', which is unknown"),
        ("record.machine", {}, "^record.machine of '.*.json' has no 'num_threads'"),
        ("record.machine.num_threads", 10**12, "^machine.num_threads is 1000000000000 in"),
        ("record.machine.num_threads", 0, "^machine.num_threads is 0 in"),
        ("record.trace", [{"mean_value": []}], r"^record.trace\[0\].mean_value of '.*' is a list in place of a number"),
    ],
)
def test_a_record_is_not_trusted(recorded_text, tmp_path, place, value, message):
    path = tmp_path / "0000_0.json"
    path.write_text(changed(recorded_text, place, value))
    with pytest.raises(ForeignFileError, match=message) as refusal:
        read_recorded(path)
    assert str(path) in str(refusal.value) and "; " in str(refusal.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"generator": 3}, "has 'generator', which is no option of it"),
        ({"return_dict": False}, "has 'return_dict'"),
        ({"magic": 1}, "has 'magic'"),
        ({"prompt_embeds": 3}, r"settings.arguments.prompt_embeds of the record is 3 in place of FloatTensor or null"),
        ({"true_cfg_scale": "high"}, "settings.arguments.true_cfg_scale of the record is 'high' in place of a number"),
    ],
)
def test_arguments_of_a_record_are_those_of_the_pipeline(recorded_text, tiny_pipe, tmp_path, arguments, message):
    path = tmp_path / "0000_0.json"
    path.write_text(changed(recorded_text, "settings.arguments", arguments))
    with pytest.raises(ForeignFileError, match=message):
        redraw(read_recorded(path), tiny_pipe, REWARD)


def test_a_record_of_a_reward_that_is_no_number_is_read(recorded_text, tmp_path):
    path = tmp_path / "0000_0.json"
    path.write_text(changed(changed(recorded_text, "record.reward", "nan"), "record.prompt", "nan"))
    _, record = read_record(path)
    assert math.isnan(record.reward) and record.prompt == "nan"


def test_a_record_under_the_name_of_another_is_refused(recorded_text, tmp_path):
    (tmp_path / "9999_0.json").write_text(recorded_text)
    with pytest.raises(ForeignFileError, match=r"9999_0.json' holds the record of image \d{4}_0; delete it"):
        RecordFolder(tmp_path, json.loads(recorded_text)["settings"])

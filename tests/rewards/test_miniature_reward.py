import math

import pytest
import torch

from diamond_diffusers.rewards import MiniatureReward, as_reward
from diamond_diffusers.rewards import miniature as module


@pytest.fixture
def package_data(monkeypatch, tmp_path, clip_folder):
    """Stands in for the package's data: a folder whose `weights/clip` is a tiny CLIP."""
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "clip").symlink_to(clip_folder)
    monkeypatch.setattr(module.resources, "files", lambda package: tmp_path)
    return tmp_path


def test_is_a_clip_at_its_own_temperature(package_data):
    reward = as_reward("miniature")
    assert isinstance(reward, MiniatureReward) and reward.name == "miniature" and reward.differentiable
    assert reward.scale == pytest.approx(math.exp(reward.model.logit_scale.item()))
    reward.probe(needs_gradient=True)


def test_options_are_those_of_placement(package_data):
    assert MiniatureReward(dtype=torch.bfloat16).model.dtype == torch.bfloat16


def test_missing_weights_are_named(monkeypatch, tmp_path):
    monkeypatch.setattr(module.resources, "files", lambda package: tmp_path)
    with pytest.raises(OSError, match=r"'miniature' finds no weights at .*; install diamond-diffusers with its"):
        MiniatureReward()

from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from torch.nn.functional import normalize

from diamond_diffusers.evaluation.scoring.diversity import diversities, mean_pairwise_distance


def test_the_mean_is_over_pairs():
    features = normalize(torch.randn(5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), dim=1)
    distances = [1 - features[i] @ features[j] for i in range(5) for j in range(i)]
    assert mean_pairwise_distance(features).item() == pytest.approx(torch.stack(distances).mean().item())


def test_equal_images_have_none_and_opposite_ones_two():
    one = torch.tensor([[1.0, 0.0]])
    assert mean_pairwise_distance(one.repeat(3, 1)).item() == pytest.approx(0)
    assert mean_pairwise_distance(torch.cat([one, -one])).item() == pytest.approx(2)


def test_images_are_compared_within_their_prompt(tmp_path):
    colours = ["red", "red", "lime", "red", "blue", "blue"]
    paths = [tmp_path / f"{i}.png" for i in range(len(colours))]
    for path, colour in zip(paths, colours, strict=True):
        Image.new("RGB", (4, 4), colour).save(path)
    # The mean colours of red, lime and blue are unit vectors at right angles.
    clip = SimpleNamespace(image_features=lambda images: images.mean((2, 3)))
    prompts = {3: paths[:3], 1: paths[3:4], 8: paths[4:]}
    assert diversities(clip, prompts, batch_size=2) == pytest.approx([2 / 3, 0.0])
    assert diversities(clip, {1: paths[:1]}) == []

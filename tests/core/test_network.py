"""What a network says it has, and how it refuses what it lacks."""

import pytest
import torch

from diamond_diffusers.core.network import Network

X = torch.randn(2, 3)


def halved(x, *levels):
    return x / 2


def test_a_network_of_a_predictor_refuses_the_rest_with_a_sentence():
    network = Network(halved)
    assert not (network.has_denoiser or network.has_flow_map or network.has_diamond_map)
    assert torch.equal(network.predict(X, 1.0), X / 2)
    with pytest.raises(ValueError, match=r"the model has no posterior mean E\[z \| x\]"):
        network.denoise(X, 1.0)
    with pytest.raises(ValueError, match="the model has no flow map"):
        network.flow_map(X, 1.0, 0.5)
    with pytest.raises(ValueError, match="the model has no Diamond Map"):
        network.diamond_map(X, 1.0, 0.5, X, 1.0)


def test_a_network_passes_on_what_it_is_asked():
    network = Network(
        lambda *arguments: ("predictor", *arguments),
        lambda *arguments: ("denoiser", *arguments),
        lambda *arguments: ("map", *arguments),
        inner_map=lambda *arguments: ("inner_map", *arguments),
    )
    assert network.has_denoiser and network.has_flow_map and network.has_diamond_map
    assert network.predict(X, 1.0) == ("predictor", X, 1.0)
    assert network.denoise(X, 1.0) == ("denoiser", X, 1.0)
    assert network.flow_map(X, 1.0, 0.5) == ("map", X, 1.0, 0.5)
    assert network.diamond_map(X, 0.9, 0.1, X, 1.0) == ("inner_map", X, 0.9, 0.1, X, 1.0)


@pytest.mark.parametrize("predicts_mean", [True, False])
def test_the_mean_reuses_a_prediction_that_is_the_mean(predicts_mean):
    network = Network(halved, lambda x, level: x / 4, predicts_mean=predicts_mean)
    predicted = network.predict(X, 1.0)
    assert torch.equal(network.mean(X, 1.0, predicted), X / 2 if predicts_mean else X / 4)
    assert torch.equal(network.mean(X, 1.0, None), X / 4)

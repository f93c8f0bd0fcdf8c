"""Networks with quantised weights are differentiated as those with the weights that theirs stand for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import BitsAndBytesConfig, FluxTransformer2DModel
from torch import nn
from torch.nn import functional

from diamond_diffusers import SMC, DiamondMapPipeline, Guidance, Guide
from diamond_diffusers.alignment.execution import Checkpointing

from .all_families import family_of
from .family import brightness
from .gradients import assert_same, prepared, value_and_gradient

gguf = pytest.importorskip("gguf")
from diffusers.quantizers.gguf.utils import GGUFLinear, GGUFParameter, dequantize_gguf_tensor  # noqa: E402

FLUX = family_of("flux")


def quantised_to_gguf(network: nn.Module, kind: str) -> None:
    """As `from_single_file` of a GGUF file leaves a network, whose keys are those of the original code."""
    quantisation = gguf.GGMLQuantizationType[kind]
    for parent in list(network.modules()):
        for name, layer in list(parent.named_children()):
            # Rows that the blocks of 32 numbers divide.
            if type(layer) is nn.Linear and layer.in_features % 32 == 0:
                has_bias = layer.bias is not None
                quantised = GGUFLinear(layer.in_features, layer.out_features, has_bias, compute_dtype=torch.float32)
                numbers = torch.from_numpy(gguf.quants.quantize(layer.weight.detach().numpy(), quantisation).copy())
                quantised.weight, quantised.bias = GGUFParameter(numbers, quant_type=quantisation), layer.bias
                setattr(parent, name, quantised)


def quantised_by_torchao(network: nn.Module, config: str) -> None:
    torchao = pytest.importorskip("torchao.quantization")
    torchao.quantize_(network, getattr(torchao, config)())


WAYS = {
    "GGUF Q8_0": lambda network: quantised_to_gguf(network, "Q8_0"),
    "GGUF Q4_0": lambda network: quantised_to_gguf(network, "Q4_0"),
    "torchao int8": lambda network: quantised_by_torchao(network, "Int8WeightOnlyConfig"),
    "torchao float8": lambda network: quantised_by_torchao(network, "Float8WeightOnlyConfig"),
}


def dequantised(weight: torch.Tensor) -> torch.Tensor:
    if isinstance(weight, GGUFParameter):
        return dequantize_gguf_tensor(weight).as_subclass(torch.Tensor)
    return weight.dequantize() if type(weight) is not nn.Parameter else weight.data


@pytest.mark.parametrize("way", WAYS)
def test_gradients_are_those_of_the_dequantised_weights(way: str) -> None:
    plain, pipe = (DiamondMapPipeline.from_pipe(FLUX.build()) for _ in range(2))
    WAYS[way](pipe.transformer)
    weights = dict(pipe.transformer.named_parameters())
    quantised = {name for name, weight in weights.items() if type(weight) is not nn.Parameter}
    assert len(quantised) > 20
    for name, weight in plain.transformer.named_parameters():
        weight.data = dequantised(weights[name]).float().clone()
    expected = value_and_gradient(prepared(plain, FLUX), Checkpointing())
    for is_checkpointed in (False, True):
        made = value_and_gradient(prepared(pipe, FLUX), Checkpointing.of_all(is_checkpointed))
        assert_same(made, expected, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(
    "alignment", [Guidance(guide=Guide("pathwise")), SMC(num_particles=2)], ids=["pathwise", "smc"]
)
@pytest.mark.parametrize("way", ["GGUF Q4_0", "torchao int8"])
def test_calls(way: str, alignment: Guidance | SMC) -> None:
    pipe = DiamondMapPipeline.from_pipe(FLUX.build())
    WAYS[way](pipe.transformer)
    out = pipe("a red circle", reward=brightness, alignment=alignment, **{**FLUX.call, "output_type": "pt"})
    assert out.images.isfinite().all() and out.rewards.isfinite().all()


def test_activations_that_are_quantised_too_have_no_derivative() -> None:
    """Their results would be constants of the graph, so that the gradient would lack a part."""
    pipe = DiamondMapPipeline.from_pipe(FLUX.build())
    quantised_by_torchao(pipe.transformer, "Int8DynamicActivationInt8WeightConfig")
    call = {"reward": brightness, **FLUX.call}
    with pytest.raises(ValueError, match=r"together with its activations.*Int8WeightOnlyConfig.*isotropic"):
        pipe("a red circle", alignment=Guidance(guide=Guide("pathwise")), **call)
    assert pipe("a red circle", alignment=Guidance(guide=Guide("isotropic")), **call).rewards.isfinite().all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("options", [{"load_in_8bit": True}, {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}])
def test_bitsandbytes(options: dict[str, object], tmp_path: Path) -> None:
    """It quantises activations to 8 bit as well, but has a derivative of its own."""
    pytest.importorskip("bitsandbytes")
    gradients = []
    pipeline = FLUX.build()
    pipeline.transformer.save_pretrained(tmp_path)
    for is_quantised in (True, False):
        network = FluxTransformer2DModel.from_pretrained(tmp_path, quantization_config=BitsAndBytesConfig(**options))
        pipeline.register_modules(transformer=network if is_quantised else network.dequantize())
        pipe = DiamondMapPipeline.from_pipe(pipeline.to("cuda"))
        gradients.append(value_and_gradient(prepared(pipe, FLUX), Checkpointing.of_all(True))[1].flatten())
    assert functional.cosine_similarity(*gradients, dim=0) > 0.95

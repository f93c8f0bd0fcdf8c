"""What `--quantize` of the commands and of the trainer does, by the means of diffusers."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from diffusers import PipelineQuantizationConfig

PACKAGES = {"nf4": "bitsandbytes", "int8": "torchao"}
"""What each needs besides diffusers."""
QUANTIZATIONS = (*PACKAGES, "fp8")
OFFLOADS_OF_QUANTIZED = {"nf4": ("model",), "int8": ("model", "group"), "fp8": ("model", "group")}
"""Other hooks take the weights for plain tensors, and lose what they are scaled by."""
_SMALL_ENCODERS = ("CLIPTextModel", "CLIPTextModelWithProjection")


def check_quantization(quantize: str, device: str, offload: str | None) -> None:
    """Raises a `ValueError` where a model cannot be quantised so here."""
    from ..core.checks import check_choice

    check_choice("--quantize", quantize, QUANTIZATIONS)
    if quantize == "nf4" and not device.startswith("cuda"):
        raise ValueError(
            f"--quantize is 'nf4', which needs a CUDA device, but the device is {device!r}; take --quantize int8, or "
            "leave it out"
        )
    # A package is not asked for where it would not help.
    package = PACKAGES.get(quantize)
    if package is not None and find_spec(package) is None:
        raise ValueError(f"--quantize is {quantize!r}, but {package} is not installed; pip install {package}")
    possible = OFFLOADS_OF_QUANTIZED[quantize]
    if offload is not None and offload not in possible:
        raise ValueError(
            f"--offload is {offload!r}, which does not move weights of --quantize {quantize} right; take --offload "
            f"{' or '.join(possible)}"
        )


def quantization_config(
    quantize: str, index: dict[str, Any], network: str, dtype: torch.dtype
) -> PipelineQuantizationConfig | None:
    """What `from_pretrained` takes to quantise the network and the large text encoders; None where that comes later.

    Args:
        index: the pipeline's `model_index.json`: class and library of each component.
        network: name of the network among the components.
        dtype: in which layers compute.
    """
    if quantize == "fp8":
        return None
    import diffusers
    import transformers

    encoders = [
        name
        for name, kind in index.items()
        if name.startswith("text_encoder") and isinstance(kind, list) and kind[1] and kind[1] not in _SMALL_ENCODERS
    ]
    libraries: dict[str, Any] = {network: diffusers, **dict.fromkeys(encoders, transformers)}
    if quantize == "nf4":
        options = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": dtype}
        mapping = {name: library.BitsAndBytesConfig(**options) for name, library in libraries.items()}
    else:
        from torchao.quantization import Int8WeightOnlyConfig

        mapping = {name: library.TorchAoConfig(Int8WeightOnlyConfig()) for name, library in libraries.items()}
    return diffusers.PipelineQuantizationConfig(quant_mapping=mapping)


def cast_layerwise(network: Any, dtype: torch.dtype) -> None:
    """Keeps the weights of a network in fp8, each cast to a dtype while it is used; LoRAs stay as they are."""
    import torch

    from ..families import compat

    compat.cast_layerwise(network, torch.float8_e4m3fn, dtype)

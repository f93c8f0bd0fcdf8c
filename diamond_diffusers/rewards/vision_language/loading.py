"""Vision-language models and their processors, loaded, checked and, if wished, quantised."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from os import PathLike
from typing import Any

import torch

from ...core.checks import check_choice
from ..errors import first_line
from ..weight_files import counted_weights

QUANTIZATIONS = {"nf4": "bitsandbytes", "int8": "torchao"}
"""What a model can be quantised to, and the package that does it."""


def load(
    name: str,
    checkpoint: str | PathLike[str],
    dtype: torch.dtype | None,
    hub_options: Mapping[str, Any],
    device_map: Any = None,
    quantization: str | None = None,
) -> tuple[Any, Any]:
    """The frozen model and the processor of the reward `name`.

    Args:
        name: of the reward, for errors.
        checkpoint: a name on the Hub or a local folder.
        dtype: of the model, or of what it computes where it is quantised; by default the checkpoint's own.
        hub_options: forwarded to `from_pretrained`.
        device_map: where `from_pretrained` puts the model's parts.
        quantization: one of `QUANTIZATIONS`.

    Raises:
        ImportError: the model's processor needs a package that is not installed.
        OSError: the checkpoint cannot be found or read.
        ValueError: it is no complete image-text-to-text model with a chat template and a decoder alone.
    """
    from transformers import AutoModelForImageTextToText, AutoProcessor

    placed = {} if device_map is None else {"device_map": device_map}
    if quantization is not None:
        placed["quantization_config"] = quantization_config(quantization, dtype)
    try:
        model, report = AutoModelForImageTextToText.from_pretrained(
            checkpoint, dtype=dtype or "auto", use_safetensors=True, output_loading_info=True, **placed, **hub_options
        )
        processor = AutoProcessor.from_pretrained(checkpoint, **hub_options)
    except ImportError as error:
        raise ImportError(
            f"Reward '{name}' cannot load checkpoint='{checkpoint}' ({first_line(error)}); install the package that is "
            "named there."
        ) from error
    except (OSError, ValueError) as error:
        raise OSError(
            f"Reward '{name}' cannot load checkpoint='{checkpoint}' ({first_line(error)}); give a name on the Hub, or "
            "a folder with an image-text-to-text model in safetensors and its processor."
        ) from error
    lacks = None
    if report["missing_keys"]:
        lacks = counted_weights(report["missing_keys"])
    elif getattr(processor, "chat_template", None) is None:
        lacks = "a chat template"
    elif model.config.is_encoder_decoder:
        lacks = "a decoder-only language model"
    if lacks:
        raise ValueError(
            f"Reward '{name}' got checkpoint='{checkpoint}', which lacks {lacks}; "
            "give a complete instruction-tuned image-text-to-text model."
        )
    # The answer follows the last token of every row.
    processor.tokenizer.padding_side = "left"
    return model.eval().requires_grad_(False), processor


def check_placement(name: str, quantization: str | None, device: torch.device | str | None, device_map: Any) -> None:
    """Checks how the model of the reward `name` is to be quantised and placed, before it is loaded.

    Raises:
        ImportError: the package that quantises is not installed.
        ValueError: the quantisation is unknown or cannot be on the device, or `device` and `device_map` are both given.
    """
    if device is not None and device_map is not None:
        raise ValueError(f"Reward '{name}' got device={str(device)!r} and device_map={device_map!r}; give one of them.")
    if quantization is None:
        return
    check_choice("quantization", quantization, tuple(QUANTIZATIONS))
    package = QUANTIZATIONS[quantization]
    if find_spec(package) is None:
        raise ImportError(
            f"Reward '{name}' got quantization={quantization!r}, which needs {package}; pip install {package}"
        )
    on_cuda = torch.cuda.is_available() and torch.device(device or "cuda").type == "cuda"
    if quantization == "nf4" and not on_cuda:
        place = "there is none here" if device is None or torch.device(device).type == "cuda" else f"device={device!r}"
        raise ValueError(
            f"Reward '{name}' got quantization='nf4', which needs a CUDA device, but {place}; give "
            "quantization='int8', or leave it out."
        )


def quantization_config(quantization: str, dtype: torch.dtype | None) -> Any:
    """What `from_pretrained` takes to quantise the linear layers of a model.

    Args:
        quantization: "nf4" for 4 bits a weight by bitsandbytes, "int8" for 8 by torchao.
        dtype: in which "nf4" computes; by default bfloat16.
    """
    import transformers

    if quantization == "nf4":
        return transformers.BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype or torch.bfloat16
        )
    from torchao.quantization import Int8WeightOnlyConfig

    return transformers.TorchAoConfig(Int8WeightOnlyConfig())

"""Prepares and checks networks, decoders and encoders for a call."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

from diffusers import DiffusionPipeline
from torch import nn

from ..alignment.base import Method
from ..alignment.look_ahead import NETWORK_GRADIENTS
from ..core.conversions import Values
from ..core.held import HeldChange
from ..core.wording import shown
from ..families.base import Family
from ..families.compat import offloads_layers, quantises_activations


@contextmanager
def frozen(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Context in which weights need no gradient, so that gradients reach latents alone.

    Otherwise the autograd graphs would hold the input of every layer for the gradients of its weights.
    """
    with ExitStack() as stack:
        for module in modules:
            stack.enter_context(_FROZEN.of(module))
        yield


def _freeze(module: nn.Module) -> Callable[[], object]:
    # By name, since offloading replaces the weights themselves.
    trained = [
        (layer, name)
        for layer in module.modules()
        for name, weight in layer.named_parameters(recurse=False)
        if weight.requires_grad and not weight.is_inference()
    ]

    def require_gradients(requires: bool) -> None:
        for layer, name in trained:
            getattr(layer, name).requires_grad_(requires)

    require_gradients(False)
    return partial(require_gradients, True)


_FROZEN: HeldChange[nn.Module] = HeldChange(_freeze)


def is_offloaded(pipeline: DiffusionPipeline) -> bool:
    """Whether weights are moved on and off the device during a call: whole models, layers, or groups of layers."""
    if getattr(pipeline, "_all_hooks", None):
        return True
    components = pipeline.components.values()
    return any(offloads_layers(component) for component in components if isinstance(component, nn.Module))


def check_differentiable(modules: Sequence[nn.Module]) -> None:
    """Raises a `ValueError` where weights are inference tensors, which cannot take part in a derivative."""
    for module in modules:
        if any(weight.is_inference() for weight in module.parameters()):
            raise ValueError(
                f"the weights of the {type(module).__name__} were made under torch.inference_mode(), so that nothing "
                "can be differentiated through it; load the pipeline outside, or take alignment 'smc' or 'best_of_n'"
            )


def check_network_differentiable(family: Family, method: Method) -> None:
    """Raises a `ValueError` where a method differentiates a network through layers that have no derivative."""
    guide = getattr(method, "guide", None)
    if guide is not None and guide.gradient not in NETWORK_GRADIENTS:
        return
    models = [family] if family.score_model is None else [family, family.score_model]
    for network in (model.network_module for model in models):
        if quantises_activations(network):
            raise ValueError(
                f"the {type(network).__name__} is quantised by torchao together with its activations, through which "
                "nothing can be differentiated; quantise its weights alone (Int8WeightOnlyConfig), or take "
                "gradient='isotropic' or 'tilted_mean', which do not differentiate the network"
            )


def refuse_cache(family: Family) -> None:
    """Raises a `ValueError` where diffusers' feature cache is on: it hands the features of one particle to another."""
    name = family.network_name
    registries = (getattr(module, "_diffusers_hook", None) for module in family.network_module.modules())
    hooks = (hook for registry in registries if registry is not None for hook in registry.hooks.values())
    # Only hooks that carry features from one evaluation to the next have a state.
    if getattr(family.network_module, "is_cache_enabled", False) or any(hook._is_stateful for hook in hooks):
        raise ValueError(
            f"the {name} has a feature cache enabled, which mixes particles; call pipe.{name}.disable_cache() first, "
            "or remove the hook that you applied to it"
        )


def checked_few_step(family: Family, few_step: bool | str | Sequence[str] | None) -> bool | tuple[str, ...] | None:
    """Checks `few_step`, and returns it in the form that a family keeps.

    Raises:
        ValueError: it names an adapter that is not loaded.
    """
    if few_step is None or isinstance(few_step, bool):
        return few_step
    names = Values().fitted(few_step, str | tuple[str, ...], "few_step")
    if not names:
        raise ValueError(f"few_step is {few_step!r}; name an adapter, or give True, False or None")
    names = (names,) if isinstance(names, str) else names
    loaded = set(getattr(family.network_module, "peft_config", {}))
    for name in names:
        if name not in loaded:
            raise ValueError(
                f"few_step names the adapter {shown(name)}, but loaded are {sorted(loaded) or 'none'}; "
                "load it first with load_lora_weights(..., adapter_name=...)"
            )
    return names

"""Blocks of modules that diffusers offloads in groups, evaluated by themselves."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from diffusers.hooks.group_offloading import GroupOffloadingHook, ModuleGroup
from torch import Tensor, nn

from .compat import group_offloading_hook, is_quantised_by_torchao


def group_offloading_hooks(module: nn.Module) -> dict[nn.Module, GroupOffloadingHook]:
    """The hooks that offload groups of layers of a module, by the part that each is on."""
    hooks = {part: group_offloading_hook(part) for part in module.modules()}
    return {part: hook for part, hook in hooks.items() if hook is not None}


@contextmanager
def onloaded(module: nn.Module, blocks: Iterable[nn.Module], *, out_of_turn: bool) -> Iterator[None]:
    """Context in which some blocks of a module can be called without the module itself.

    A group is brought to the device by the first of its modules that is evaluated, and taken away by the last. Where a
    block is evaluated without these two, nobody does. What the block has in such groups is then brought here, alone.

    Args:
        module: is offloaded in groups, or not.
        blocks: parts of it.
        out_of_turn: whether the blocks are evaluated again on the way back, where those that follow them in a forward
            pass do not follow, and must not be fetched ahead.
    """
    hooks = group_offloading_hooks(module)
    inside = [part for block in blocks for part in block.modules()]
    own = {id(tensor): tensor for part in inside for tensor in _tensors_at(part)}
    parts = set(inside)
    left_to_others: list[tuple[Tensor, Tensor]] = []
    whole: list[ModuleGroup] = []
    for group in _groups(hooks.values()):
        if group.onload_leader in parts and group.offload_leader in parts:
            continue
        tensors = [own[id(tensor)] for tensor in _tensors_of(group) if id(tensor) in own]
        if tensors and (group.offload_to_disk_path is not None or any(map(is_quantised_by_torchao, tensors))):
            group.onload_()
            whole.append(group)
            continue
        for tensor in tensors:
            left_to_others.append((tensor, tensor.data))
            tensor.data = brought(tensor, group)
    followers = [(hook, hook.next_group) for part, hook in hooks.items() if out_of_turn and part in parts]
    for hook, _ in followers:
        hook.next_group = None
    try:
        yield
    except BaseException:
        # Also where torch ends a second evaluation as soon as it has what the backward pass asks for.
        offload_again(hook for part, hook in hooks.items() if part in parts)
        raise
    finally:
        for hook, next_group in followers:
            hook.next_group = next_group
        for tensor, offloaded in left_to_others:
            tensor.data = offloaded
        for group in whole:
            group.offload_()


def offload_again(hooks: Iterable[GroupOffloadingHook]) -> None:
    """Takes away the groups that an evaluation has left on the device, since it was ended on its way."""
    for group in _groups(hooks):
        # One device may have two names, with a number and without.
        if any(tensor.device.type == group.onload_device.type for tensor in _tensors_of(group)):
            group.offload_()


def brought(tensor: Tensor, group: ModuleGroup) -> Tensor:
    """The numbers of a tensor on the device where its group is used."""
    return tensor.data.to(group.onload_device)


def _groups(hooks: Iterable[GroupOffloadingHook]) -> Iterable[ModuleGroup]:
    """The groups of hooks, each once."""
    return {id(hook.group): hook.group for hook in hooks}.values()


def _tensors_of(group: ModuleGroup) -> list[Tensor]:
    tensors = [tensor for module in group.modules for tensor in (*module.parameters(), *module.buffers())]
    return [*tensors, *group.parameters, *group.buffers]


def _tensors_at(part: nn.Module) -> list[Tensor]:
    """The weights and buffers of a module itself."""
    return [*part.parameters(recurse=False), *part.buffers(recurse=False)]

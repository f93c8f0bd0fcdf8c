"""Runs a function in a process of its own, or in several CPU processes that `accelerate` knows of."""

from __future__ import annotations

import os
import socket
import traceback
from collections.abc import Callable

from accelerate import Accelerator, DistributedType, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import FullyShardedDataParallelPlugin


def in_child(function: Callable[[], None]) -> int:
    """Runs a function in a forked process, and returns how it ended, as of `os.waitpid`: 0 where all was well."""
    child = os.fork()
    if child == 0:
        # That of the parent would not be made anew.
        AcceleratorState._reset_state(True)
        status = 1
        try:
            function()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return os.waitpid(child, 0)[1]


def in_two_processes(function: Callable[[], None]) -> None:
    in_processes(2, function)


def in_processes(count: int, function: Callable[[], None]) -> None:
    """Forks so many times; fails where one of the processes fails."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(count):
        child = os.fork()
        if child == 0:
            os.environ.update(
                RANK=str(rank),
                LOCAL_RANK=str(rank),
                WORLD_SIZE=str(count),
                LOCAL_WORLD_SIZE=str(count),
                MASTER_ADDR="127.0.0.1",
                MASTER_PORT=str(port),
                ACCELERATE_USE_CPU="true",
                GLOO_SOCKET_IFNAME="lo",
            )
            # That of the parent is of one process.
            AcceleratorState._reset_state(True)
            status = 1
            try:
                function()
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * count


def sharding_accelerator(*wrapped: str, mixed_precision: str | None = None) -> Accelerator:
    """FSDP of version 2, which `accelerate` itself sets up for accelerators only.

    Args:
        wrapped: classes of the modules that are sharded by themselves.
        mixed_precision: `bf16`, with the policy that accelerate takes then.
    """
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=list(wrapped),
        cpu_ram_efficient_loading=False,
    )
    if mixed_precision is not None:
        plugin.set_mixed_precision(mixed_precision)
    accelerator = Accelerator(cpu=True, mixed_precision=mixed_precision)
    # Both, as accelerate does.
    for state in (accelerator.state, PartialState()):
        state.distributed_type = DistributedType.FSDP
    accelerator.state.fsdp_plugin = plugin
    return accelerator

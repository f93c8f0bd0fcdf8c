"""The command `diamond-diffusers serve-reward`."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from .options import MAX_COUNT, Device, named_dtype, usable_device
from .score import DType, RewardExpression

Host = Annotated[str, typer.Option(help="Address that it listens at; 0.0.0.0 for every one of this machine.")]
Port = Annotated[int, typer.Option(min=0, max=65535, help="0 for any free one.")]
BatchSize = Annotated[int, typer.Option(min=1, max=MAX_COUNT, help="The most images of a request.")]
KeyVariable = Annotated[
    str | None,
    typer.Option(help="Environment variable with the key by which requests have to come; by default, any may come."),
]


def serve_reward(
    reward: RewardExpression,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    max_batch_size: BatchSize = 64,
    api_key_env: KeyVariable = None,
    dtype: DType = "auto",
    device: Device = "auto",
) -> None:
    """Scores images for other processes and machines, until control and C: name its URL by --remote-reward there."""
    from ..rewards import as_reward
    from ..rewards.remote.serving import RewardServer, check_key_of_service, check_place

    check_key_of_service(api_key_env)
    check_place(host, port)
    place, precision = usable_device(device), None if dtype == "auto" else named_dtype(dtype)
    judge = as_reward(reward).to(place, precision)
    with RewardServer(judge, host, port, max_batch_size, place, api_key_env) as server:
        name = f"[{host}]" if ":" in host else host
        Console().print(
            f"{judge.name} is served at http://{name}:{server.server_port}",
            soft_wrap=True,
            markup=False,
            highlight=False,
        )
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            # This is how it ends.
            return

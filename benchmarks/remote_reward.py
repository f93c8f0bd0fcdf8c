"""What it saves to await a service's scores later: `python -m benchmarks.remote_reward --help`."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from torch import Tensor

from diamond_diffusers import BestOfN, DiamondMapPipeline
from diamond_diffusers.cli.options import MAX_COUNT, text_table
from diamond_diffusers.rewards import Brightness, Reward
from diamond_diffusers.rewards.remote import RemoteReward
from diamond_diffusers.rewards.remote.serving import RewardServer

from .command_line import command
from .cost import AsJson

NUM_STEPS = 2


class DistantServer(RewardServer):
    """A service whose answers are on their way for a while.

    Attributes:
        delay: in seconds.
    """

    delay: float = 0.0

    def scores(self, request: Any) -> list[float]:
        """The scores of a request, late."""
        time.sleep(self.delay)
        return super().scores(request)


class AskedAndAwaited(RemoteReward):
    """A remote reward that is awaited before anything else is done."""

    is_concurrent = False


@dataclass(frozen=True)
class Timing:
    """A run of one image.

    Attributes:
        way: how its scores are asked for.
        seconds: of the sampling loop.
        requests: that were sent.
        is_same: whether image and reward are those of the first way, bit for bit.
    """

    way: str
    seconds: float
    requests: int
    is_same: bool


@contextmanager
def distant_service(delay: float) -> Iterator[str]:
    """The URL of a service on the loopback."""
    with DistantServer(Brightness(), port=0) as server:
        server.delay = delay
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def measure(delay: float, num_particles: int) -> Iterator[Timing]:
    """Times best-of-n on the embedded model, an image a chunk, by each way to ask."""
    pipe = DiamondMapPipeline.from_pretrained()
    pipe.set_progress_bar_config(disable=True)
    first: tuple[Tensor, Tensor] | None = None
    with distant_service(delay) as url:
        ways: dict[str, Reward] = {
            "one after the other": AskedAndAwaited(url, cache_size=0),
            "awaited later, 1 at a time": RemoteReward(url, cache_size=0, max_concurrent_requests=1),
            "awaited later, 4 at a time": RemoteReward(url, cache_size=0, max_concurrent_requests=4),
        }
        _draw(pipe, ways["one after the other"], 1)
        for way, reward in ways.items():
            out = _draw(pipe, reward, num_particles)
            first = first or (out.images, out.rewards)
            is_same = torch.equal(first[0], out.images) and torch.equal(first[1], out.rewards)
            yield Timing(way, out.cost.seconds, out.cost.reward_requests, is_same)


def _draw(pipe: DiamondMapPipeline, reward: Reward, num_particles: int) -> Any:
    return pipe(
        "a red star",
        reward=reward,
        alignment=BestOfN(num_particles=num_particles),
        num_inference_steps=NUM_STEPS,
        particle_batch_size=1,
        output_type="pt",
        generator=torch.Generator().manual_seed(0),
    )


Delay = Annotated[float, typer.Option(min=0.0, max=60.0, help="Seconds after which the service answers.")]
Particles = Annotated[int, typer.Option("--num-particles", min=1, max=MAX_COUNT, help="Images that are scored.")]


def benchmark_remote_reward(delay: Delay = 0.2, num_particles: Particles = 16, as_json: AsJson = False) -> None:
    """Times a run whose reward is a service on the loopback that answers late, by each way to ask it."""
    timings = list(measure(delay, num_particles))
    if as_json:
        typer.echo(json.dumps([asdict(timing) for timing in timings], indent=2))
        return
    table = text_table("requests", "seconds", "number", "same bits")
    for timing in timings:
        table.add_row(timing.way, f"{timing.seconds:.2f}", str(timing.requests), "yes" if timing.is_same else "no")
    Console().print(table)


app = command(benchmark_remote_reward)

if __name__ == "__main__":
    app()

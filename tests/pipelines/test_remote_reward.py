"""Runs whose reward is a service: the same bits as with a local one, interrupted, limited, skipped."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from diamond_diffusers import SMC, BestOfN, DiamondMapPipeline, GlassPosterior, Guidance, Guide
from diamond_diffusers.alignment import reward_errors
from diamond_diffusers.rewards import Brightness, Reward
from diamond_diffusers.rewards.errors import LimitError, UnavailableError
from diamond_diffusers.rewards.remote import Prices, RemoteReward, Retries

from ..rewards.services import Handler, Service, late, scores_of, serving, silent, status

QUICK = Retries(attempts=2, first_delay=0.01, jitter=0)
METHODS = {
    "best of n": BestOfN(num_particles=4),
    "smc": SMC(num_particles=3),
    "guidance": Guidance(posterior=GlassPosterior(num_samples=2, num_inner_steps=2), guide=Guide("tilted_mean")),
}


@pytest.fixture
def pipe(shared_pipe: DiamondMapPipeline) -> DiamondMapPipeline:
    return shared_pipe


@pytest.fixture
def service() -> Iterator[Service]:
    with serving() as service:
        yield service


class Local(Reward):
    """What the service computes."""

    name = "judge"
    differentiable = False

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        levels = (images[:, 0, 0, 0].float().clamp(0, 1) * 255).round()
        return levels + torch.tensor([float(len(prompt)) for prompt in prompts])


def judge(service: Service, **options: Any) -> RemoteReward:
    return RemoteReward(service.url, **{"name": "judge", "retries": QUICK, **options})


def draw(pipe: DiamondMapPipeline, reward: Reward, **options: Any) -> Any:
    given = {"alignment": METHODS["smc"], "particle_batch_size": 1, "reward_scale": 0.05, **options}
    generator = torch.Generator().manual_seed(0)
    return pipe("a red star", reward=reward, num_inference_steps=3, output_type="pt", generator=generator, **given)


SLOW = pytest.mark.slow


@pytest.mark.parametrize("method", ["smc", *(pytest.param(name, marks=SLOW) for name in METHODS if name != "smc")])
def test_the_bits_are_those_of_a_local_reward(pipe: DiamondMapPipeline, service: Service, method: str) -> None:
    local = draw(pipe, 2 * Local() + Brightness(), alignment=METHODS[method])
    service.default = late(0.003)
    remote = draw(pipe, 2 * judge(service) + Brightness(), alignment=METHODS[method])
    assert torch.equal(local.images, remote.images) and torch.equal(local.rewards, remote.rewards)
    assert local.reward_terms.keys() == remote.reward_terms.keys()
    for name in ("network_evaluations", "decodes", "reward_calls"):
        assert getattr(local.cost, name) == getattr(remote.cost, name)
    assert remote.cost.reward_requests == len(service.asked) > 3


@pytest.mark.parametrize("method", ["best of n", pytest.param("smc", marks=SLOW)])
def test_the_next_chunk_is_decoded_while_a_service_scores(
    pipe: DiamondMapPipeline, service: Service, method: str
) -> None:
    decoded: list[int] = []
    at_answer: list[int] = []

    def slow(handler: Handler, request: dict[str, Any]) -> None:
        time.sleep(0.05)
        at_answer.append(len(decoded))
        handler.answer(scores_of(request))

    reward = judge(service, max_concurrent_requests=8)
    service.default = slow
    handle = pipe.vae.decoder.register_forward_hook(lambda *_: decoded.append(1))
    try:
        draw(pipe, reward, alignment=METHODS[method])
    finally:
        handle.remove()
    # The first answer is that of the trial.
    assert at_answer[1] >= 2 and service.most_at_once >= 2


def test_what_is_repeated_is_in_the_cost(pipe: DiamondMapPipeline, service: Service) -> None:
    service.behaviours = [status(503), late(0), status(500)]
    reward = judge(service, prices=Prices(per_image=0.5))
    out = draw(pipe, reward)
    assert out.cost.reward_requests == len(service.asked) == reward.usage.requests
    assert out.cost.reward_price == 0.5 * reward.usage.images and reward.usage.retries == 2
    # All but the trial and the two that were refused.
    assert out.cost.as_dict()["reward_calls"] == reward.usage.images - 2 + reward.usage.cache_hits


def test_an_interruption_does_not_wait_for_the_service(pipe: DiamondMapPipeline, service: Service) -> None:
    def hanging(handler: Handler, request: dict[str, Any]) -> None:
        threading.Timer(0.02, pipe.interrupt).start()
        silent(handler, request)

    service.behaviours = [late(0)] * 4 + [hanging]
    out = draw(pipe, judge(service, max_concurrent_requests=1))
    assert out.interrupted and len(out.images) == 1


@pytest.mark.parametrize("action", ["retry", "skip"])
def test_a_service_that_is_gone_is_not_asked_once_more_after_its_retries(
    pipe: DiamondMapPipeline, service: Service, action: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reward_errors, "RETRY_DELAYS", (0.0, 0.0, 0.0))
    service.behaviours = [late(0)]
    service.default = status(503)
    reward = judge(service)
    if action == "retry":
        with pytest.raises(UnavailableError, match=r"'judge': .* 503 .* in the last of 2 attempts") as caught:
            draw(pipe, reward, on_reward_error=action, particle_batch_size=None)
        assert len(service.asked) == 1 + 2 and hasattr(caught.value, "best_images")
        return
    out = draw(pipe, reward, on_reward_error=action, alignment=BestOfN(num_particles=3), particle_batch_size=None)
    assert out.rewards.isnan().all() and len(service.asked) == 1 + 2


def test_an_image_that_the_service_refuses_is_skipped_alone(pipe: DiamondMapPipeline, service: Service) -> None:
    seen: set[str] = set()

    def refusing(handler: Handler, request: dict[str, Any]) -> None:
        if len(request["images"]) > 1:
            seen.add(min(request["images"]))
        handler.answer(scores_of(request), 422 if seen & set(request["images"]) else 200)

    service.default = refusing
    out = draw(
        pipe, judge(service), on_reward_error="skip", alignment=BestOfN(num_particles=4), particle_batch_size=None
    )
    assert math.isfinite(out.rewards.item()) and len(seen) == 1
    # The trial, all four, and each of them.
    assert len(service.asked) == 1 + 1 + 4


@pytest.mark.parametrize("action", ["skip", pytest.param("raise", marks=SLOW), pytest.param("retry", marks=SLOW)])
def test_a_limit_ends_the_run_with_the_best_images(pipe: DiamondMapPipeline, service: Service, action: str) -> None:
    with pytest.raises(LimitError, match="'judge' has sent 6 requests") as caught:
        draw(pipe, judge(service, max_requests=6), on_reward_error=action)
    (best,) = caught.value.best_images  # type: ignore[attr-defined]
    assert best.size == (16, 16) and len(service.asked) == 6


@SLOW
def test_threads_are_charged_what_is_theirs(pipe: DiamondMapPipeline, service: Service) -> None:
    reward, costs = judge(service, cache_size=0), []

    def run(count: int) -> None:
        costs.append(draw(pipe, reward, alignment=BestOfN(num_particles=count)).cost)

    threads = [threading.Thread(target=run, args=(count,)) for count in (2, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(cost.reward_requests for cost in costs) == [3, 6] and reward.usage.requests == 9


@SLOW
def test_the_key_is_in_no_card(pipe: DiamondMapPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "sk-Geheim")
    with serving() as service:
        reward = judge(service, api_key_env="JUDGE_KEY")
        out = draw(pipe, reward)
        assert "Geheim" not in f"{out} {out.cost.as_dict()} {out.reward_terms}"

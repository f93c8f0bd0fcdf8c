"""What the miniature's three training runs share: a resumable loop with an averaged model."""

from __future__ import annotations

import copy
import logging
import math
import random
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from diamond_diffusers.files.output import whole_file

logger = logging.getLogger(__name__)


class TrainingLoop:
    """Optimises `model` for `num_steps` and resumes from its folder after a kill.

    Step `i` draws all its randomness from `(seed, i)`, so a resumed run sees the batches that an unbroken one would.

    Args:
        model: what is trained; its exponential moving average is `averaged`.
        optimizers: one or more optimisers over the parameters of `model`; each learning rate is warmed up and then
            lowered to zero along a cosine.
        folder: where `checkpoint.pt` lives.
        num_steps: length of the whole run.
        seed: of the batches.
        ema_decay: of the averaged model, warmed up as `min(ema_decay, (1 + n) / (10 + n))`.
        warmup_steps: of the learning rate.
        checkpoint_seconds: how often the state is written.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: Iterable[torch.optim.Optimizer],
        folder: Path,
        num_steps: int,
        seed: int,
        ema_decay: float = 0.999,
        warmup_steps: int = 200,
        checkpoint_seconds: float = 120.0,
    ) -> None:
        self.model = model
        self.averaged = copy.deepcopy(model).requires_grad_(False)
        self.optimizers = list(optimizers)
        self.peak_rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in self.optimizers]
        self.folder = folder
        self.num_steps = num_steps
        self.seed = seed
        self.ema_decay = ema_decay
        self.warmup_steps = warmup_steps
        self.checkpoint_seconds = checkpoint_seconds
        self.step = 0
        folder.mkdir(parents=True, exist_ok=True)
        if self.checkpoint.exists():
            self._load()

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint.pt"

    def run(self, loss: Callable[[random.Random], tuple[Tensor, dict[str, float]]], log_every: int = 100) -> nn.Module:
        """Trains until `num_steps` and returns the averaged model.

        Args:
            loss: maps the step's random generator to a scalar loss and figures to log.
        """
        started, saved, totals, device_steps = time.monotonic(), time.monotonic(), {}, 0
        while self.step < self.num_steps:
            torch.manual_seed(self.seed * 1_000_003 + self.step)
            value, figures = loss(random.Random(self.seed * 1_000_003 + self.step))
            self._update(value)
            self.step += 1
            device_steps += 1
            for name, figure in {"loss": value.item(), **figures}.items():
                totals[name] = totals.get(name, 0.0) + figure
            if self.step % log_every == 0:
                speed = device_steps / (time.monotonic() - started)
                means = " ".join(f"{name} {total / log_every:.4f}" for name, total in totals.items())
                logger.info("step %d/%d  %.2f steps/s  %s", self.step, self.num_steps, speed, means)
                totals = {}
            if time.monotonic() - saved > self.checkpoint_seconds:
                self._save()
                saved = time.monotonic()
        self._save()
        return self.averaged

    def _update(self, loss: Tensor) -> None:
        warmup = min(1.0, (self.step + 1) / self.warmup_steps)
        scale = warmup * 0.5 * (1 + math.cos(math.pi * self.step / self.num_steps))
        for optimizer, rates in zip(self.optimizers, self.peak_rates, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * scale
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        decay = min(self.ema_decay, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            averaged, current = list(self.averaged.parameters()), list(self.model.parameters())
            torch._foreach_lerp_(averaged, current, 1 - decay)

    def _save(self) -> None:
        state = {
            "step": self.step,
            "model": self.model.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }
        with whole_file(self.checkpoint) as partial:
            torch.save(state, partial)

    def _load(self) -> None:
        state = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        self.averaged.load_state_dict(state["averaged"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        logger.info("resumed at step %d", self.step)

"""Transitions: how a particle moves from one noise level to the next."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from .flow_map import has_map_to_data
from .glass import check_inner_options, sample_transition
from .levels import add_noise, expand, ode_step, signal_and_noise
from .network import Capabilities, Network, UsesNetwork


class Transition(UsesNetwork, ABC):
    """A map of a particle, its predicted clean sample and driving noise to the particle at the next level.

    Attributes:
        uses_prediction: whether a step depends on the denoised sample that it starts from.
    """

    uses_prediction: bool = True

    def needs_prediction(self, network: Network) -> bool:
        """Whether a step needs `predicted` of this network; where not, plain sampling does without it."""
        return self.uses_prediction

    @abstractmethod
    def step(
        self,
        network: Network,
        x: Tensor,
        noise_to_signal: float,
        next_noise_to_signal: float,
        predicted: Tensor | None,
        noise: Tensor,
    ) -> Tensor:
        """Moves particles one level on.

        Args:
            network: the model, for transitions that take more than one evaluation.
            x: particles `[N, ...]` in the bounded coordinate.
            noise_to_signal: level of `x`, at most infinity.
            next_noise_to_signal: the lower level to reach, at least 0.
            predicted: what the model as loaded predicts at `x`: `network.predict(x, noise_to_signal)`, perhaps tilted;
                None where it is not needed.
            noise: driving noise, standard normal of the shape of `x`; the step is a deterministic map of it.

        Returns:
            Particles at the next level, `[N, ...]`.
        """

    @abstractmethod
    def tilt_gain(self, noise_to_signal: float, next_noise_to_signal: float) -> float:
        """The mean of the driving noise that a unit shift of the denoised sample is worth.

        A shift `d` of the denoised sample moves the mean of a stochastic step as much as driving noise of mean
        `tilt_gain * d` does. It is 0 where the step does not depend on the driving noise.
        """

    @property
    def is_stochastic(self) -> bool:
        """Whether steps between positive levels depend on their driving noise."""
        return self.tilt_gain(2.0, 1.0) != 0


@dataclass(frozen=True)
class ODETransition(Transition):
    """Euler step of the probability-flow ODE (DDIM, and rectified flow's Euler step); no noise."""

    def step(
        self,
        network: Network,
        x: Tensor,
        noise_to_signal: float,
        next_noise_to_signal: float,
        predicted: Tensor,
        noise: Tensor,
    ) -> Tensor:
        return ode_step(x, predicted, noise_to_signal, next_noise_to_signal)

    def tilt_gain(self, noise_to_signal: float, next_noise_to_signal: float) -> float:
        return 0.0


@dataclass(frozen=True)
class AncestralTransition(Transition):
    """Gaussian step around the denoised sample (DDIM with eta, arXiv 2010.02502); `eta=1` is DDPM.

    Args:
        eta: share in `[0, 1]` of the DDPM noise that is fresh.
    """

    eta: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta is {self.eta}; it must lie between 0 (deterministic) and 1 (DDPM)")

    def _fresh_noise(self, kappa: float, kappa_next: float) -> float:
        """Standard deviation of the fresh noise in `y' = x' / alpha'`."""
        return self.eta * kappa_next * math.sqrt(1 - (kappa_next / kappa) ** 2)

    def step(
        self,
        network: Network,
        x: Tensor,
        noise_to_signal: float,
        next_noise_to_signal: float,
        predicted: Tensor,
        noise: Tensor,
    ) -> Tensor:
        fresh = self._fresh_noise(noise_to_signal, next_noise_to_signal)
        kept = math.sqrt(max(next_noise_to_signal**2 - fresh**2, 0.0))
        alpha_next, _ = signal_and_noise(next_noise_to_signal)
        return expand(alpha_next, x) * fresh * noise + _with_noise_kept(
            x, predicted, noise_to_signal, next_noise_to_signal, kept
        )

    def tilt_gain(self, noise_to_signal: float, next_noise_to_signal: float) -> float:
        fresh = self._fresh_noise(noise_to_signal, next_noise_to_signal)
        if fresh == 0:
            return 0.0
        # y' = D + kept (y - D) / kappa + fresh eps.
        kept = math.sqrt(max(next_noise_to_signal**2 - fresh**2, 0.0))
        return (1 - kept / noise_to_signal) / fresh


@dataclass(frozen=True)
class RenoiseTransition(Transition):
    """Takes the predicted sample as clean and noises it afresh: how consistency models and SCM sample."""

    def step(
        self,
        network: Network,
        x: Tensor,
        noise_to_signal: float,
        next_noise_to_signal: float,
        predicted: Tensor,
        noise: Tensor,
    ) -> Tensor:
        return add_noise(predicted, noise, next_noise_to_signal)

    def tilt_gain(self, noise_to_signal: float, next_noise_to_signal: float) -> float:
        return 0.0 if next_noise_to_signal == 0 else 1 / next_noise_to_signal


@dataclass(frozen=True)
class FlowMapTransition(Transition):
    """Follows a flow map from level to level (arXiv 2506.14603), a model's own or its Diamond Map's; no noise."""

    uses_prediction = False
    follows_flow_map = True

    def check(self, model: Capabilities) -> None:
        if not has_map_to_data(model):
            raise ValueError(
                f"FlowMapTransition needs a flow map, but this {model.family} model is a denoiser; "
                "load a few-step LoRA (and name it in few_step=...) or a Diamond Map, or use ODETransition()"
            )

    def step(
        self,
        network: Network,
        x: Tensor,
        noise_to_signal: float,
        next_noise_to_signal: float,
        predicted: Tensor | None,
        noise: Tensor,
    ) -> Tensor:
        return network.flow_map(x, noise_to_signal, next_noise_to_signal)

    def tilt_gain(self, noise_to_signal: float, next_noise_to_signal: float) -> float:
        return 0.0


def _with_noise_kept(x: Tensor, predicted: Tensor, kappa: float, kappa_next: float, kept: float) -> Tensor:
    """`alpha' (D + kept eps)` with `eps` the noise that the predicted sample leaves in `x`."""
    alpha_next, _ = signal_and_noise(kappa_next)
    at_kept = ode_step(x, predicted, kappa, kept)
    alpha_kept, _ = signal_and_noise(kept)
    return at_kept * expand(alpha_next / alpha_kept, x)


class InnerFlowTransition(Transition):
    """An inner flow that is stopped early.

    Attributes:
        correlation: `rho` in `[0, 1]` between the noises before and after; `"ddpm"` is `kappa_next / kappa`, for
            which the chain is Markov.
    """

    correlation: float | str

    def __post_init__(self) -> None:
        if self.correlation != "ddpm" and not (
            isinstance(self.correlation, int | float) and 0 <= self.correlation <= 1
        ):
            raise ValueError(f"correlation is {self.correlation!r}; give 'ddpm' or a number between 0 and 1")

    def correlation_at(self, kappa: float, kappa_next: float) -> float:
        """`rho` of a step between two levels."""
        return kappa_next / kappa if self.correlation == "ddpm" else float(self.correlation)

    def tilt_gain(self, noise_to_signal: float, next_noise_to_signal: float) -> float:
        correlation = self.correlation_at(noise_to_signal, next_noise_to_signal)
        fresh = next_noise_to_signal * math.sqrt(1 - correlation**2)
        if fresh == 0:
            # The inner flow runs through: its noise spans the whole posterior, whose deviation is about
            # kappa / sqrt(1 + kappa^2) for data of unit variance.
            return math.sqrt(1 + noise_to_signal**-2)
        return (1 - correlation * next_noise_to_signal / noise_to_signal) / fresh


@dataclass(frozen=True)
class GlassTransition(InnerFlowTransition):
    """Early-stopped inner GLASS flow (arXiv 2509.25170), exact for its correlation as `num_inner_steps` grows.

    A step costs `num_inner_steps` evaluations, the denoised sample at its start included.

    Args:
        num_inner_steps: steps of the inner flow.
        correlation: `rho` in `[0, 1]` between the noises before and after; `"ddpm"` is `kappa_next / kappa`, for
            which the chain is Markov.
        solver: `euler`, `multistep` or `exponential`.
    """

    num_inner_steps: int = 1
    correlation: float | str = "ddpm"
    solver: str = "exponential"

    needs_denoiser = True
    without_denoiser = "RenoiseTransition() or AncestralTransition()"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_inner_options(self.num_inner_steps, self.solver)

    def needs_prediction(self, network: Network) -> bool:
        # It starts from the posterior mean.
        return network.predicts_mean

    def step(
        self,
        network: Network,
        x: Tensor,
        noise_to_signal: float,
        next_noise_to_signal: float,
        predicted: Tensor | None,
        noise: Tensor,
    ) -> Tensor:
        return sample_transition(
            network.denoise,
            x,
            noise_to_signal,
            next_noise_to_signal,
            self.correlation_at(noise_to_signal, next_noise_to_signal),
            noise,
            num_inner_steps=self.num_inner_steps,
            solver=self.solver,
            denoised=network.mean(x, noise_to_signal, predicted),
        )

    def tilt_gain(self, noise_to_signal: float, next_noise_to_signal: float) -> float:
        runs_through = next_noise_to_signal == 0 or self.correlation_at(noise_to_signal, next_noise_to_signal) == 1
        if runs_through and self.num_inner_steps == 1:
            # One inner step ends at the denoised sample, whatever the noise.
            return 0.0
        return super().tilt_gain(noise_to_signal, next_noise_to_signal)

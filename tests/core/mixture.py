"""A Gaussian mixture whose posteriors, values and tilted laws are known in closed form, in float64.

Everything rests on one fact: a mixture times `exp(b . z - z' A z / 2)` is a mixture again. An observation of `z` and an
exponentiated linear or quadratic reward are both such factors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor


def coefficients(kappa: float | Tensor) -> tuple[Tensor, Tensor]:
    """`alpha` and `sigma` of the bounded coordinate: cosine and sine of the angle whose tangent is `kappa`."""
    angle = torch.atan(torch.as_tensor(kappa, dtype=torch.float64))
    return torch.where(torch.isinf(torch.as_tensor(kappa)), 0.0, torch.cos(angle)), torch.sin(angle)


@dataclass(frozen=True)
class GaussianMixture:
    """Mixtures of `C` normals in `d` dimensions, any number of them at once.

    Attributes:
        log_weights: `[..., C]`, normalised.
        means: `[..., C, d]`.
        covariances: `[C, d, d]`, or `[..., C, d, d]`.
    """

    log_weights: Tensor
    means: Tensor
    covariances: Tensor

    @property
    def mean(self) -> Tensor:
        return torch.einsum("...c,...cd->...d", self.log_weights.exp(), self.means)

    @property
    def covariance(self) -> Tensor:
        centred = self.means - self.mean.unsqueeze(-2)
        second = self.covariances + centred.unsqueeze(-1) * centred.unsqueeze(-2)
        return torch.einsum("...c,...cij->...ij", self.log_weights.exp(), second)

    def tilt(self, linear: Tensor, quadratic: Tensor) -> tuple[GaussianMixture, Tensor]:
        """The law times `exp(linear . z - z' quadratic z / 2)`, normalised, and the logarithm of its mass."""
        precisions = torch.linalg.inv(self.covariances)
        covariances = torch.linalg.inv(precisions + quadratic.unsqueeze(-3))
        information = torch.einsum("...cij,...cj->...ci", precisions, self.means)
        tilted_information = information + linear.unsqueeze(-2)
        means = torch.einsum("...cij,...cj->...ci", covariances, tilted_information)
        exponent = (means * tilted_information).sum(-1) - (self.means * information).sum(-1)
        volume = torch.logdet(covariances) - torch.logdet(self.covariances)
        joint = self.log_weights + (exponent + volume) / 2
        evidence = torch.logsumexp(joint, -1)
        return GaussianMixture(joint - evidence.unsqueeze(-1), means, covariances), evidence

    def affine(self, scale: Tensor, offset: Tensor, variance: Tensor) -> GaussianMixture:
        """The law of `scale * z + offset + sqrt(variance) * eps`."""
        identity = torch.eye(self.means.shape[-1], dtype=torch.float64)
        means = scale * self.means + offset.unsqueeze(-2)
        return GaussianMixture(self.log_weights, means, scale**2 * self.covariances + variance * identity)

    def observation(self, kappa: float) -> GaussianMixture:
        """The law of observations `alpha z + sigma eps`."""
        alpha, sigma = coefficients(kappa)
        return self.affine(alpha, torch.zeros(self.means.shape[-1], dtype=torch.float64), sigma**2)

    def posterior(self, x: Tensor, kappa: float | Tensor) -> GaussianMixture:
        """The law of `z` given `x = alpha z + sigma eps`; one level, or one a row of `x`."""
        return self.given(x, *coefficients(kappa))

    def given(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> GaussianMixture:
        """The law of `z` given `x = alpha z + sigma eps` for any pair of coefficients."""
        identity = torch.eye(x.shape[-1], dtype=torch.float64)
        information = (alpha / sigma**2).unsqueeze(-1) * x.double()
        return self.tilt(information, (alpha / sigma)[..., None, None] ** 2 * identity)[0]

    def denoised(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """The mean `[N, d]` of `given` alone, as a network returns it, at a fraction of its price.

        In the eigenbasis of each covariance, whose axes of all components stand side by side, everything but the choice
        of the component is a product of numbers. Rows come last, over which torch is vectorised.
        """
        variances, basis, means = self._axes
        alpha, sigma = torch.as_tensor(alpha), torch.as_tensor(sigma)
        total = alpha**2 * variances + sigma**2
        residual = basis.mT @ x.double().reshape(-1, x.shape[-1]).mT - alpha * means
        scaled = residual / total
        distance = (residual * scaled + total.log()).unflatten(0, self.means.shape).sum(1)
        weights = torch.softmax(self.log_weights.unsqueeze(-1) - distance / 2, 0)
        moved = (alpha * variances * scaled).unflatten(0, self.means.shape) * weights.unsqueeze(1)
        return (self.means.mT @ weights + basis @ moved.flatten(0, 1)).mT.reshape(x.shape)

    @cached_property
    def _axes(self) -> tuple[Tensor, Tensor, Tensor]:
        """Variances `[C d, 1]`, directions `[d, C d]` and the means' coordinates `[C d, 1]` of all components' axes."""
        variances, basis = torch.linalg.eigh(self.covariances)
        means = torch.einsum("cij,ci->cj", basis, self.means)
        return variances.reshape(-1, 1), basis.movedim(1, 0).flatten(1), means.reshape(-1, 1)

    def transition(self, x: Tensor, kappa: float, next_kappa: float, correlation: float) -> GaussianMixture:
        """The law of `x_u = alpha_u z + sigma_u eps'` given `x_t = alpha_t z + sigma_t eps`, correlating the noises.

        Given `z` too, `eps` is known and `eps' ~ N(rho eps, (1 - rho^2) I)`: an affine map of the posterior.
        """
        (alpha, sigma), (next_alpha, next_sigma) = coefficients(kappa), coefficients(next_kappa)
        kept = correlation * next_sigma / sigma
        fresh_variance = next_sigma**2 * (1 - correlation**2)
        return self.posterior(x, kappa).affine(next_alpha - kept * alpha, kept * x.double(), fresh_variance)

    def flow(self, x: Tensor, kappa: float, next_kappa: float = 0.0, num_steps: int = 16) -> Tensor:
        """The flow map of `x` from one level to a lower one, by the classical Runge-Kutta method in the angle.

        `x = cos z + sin eps` has `dx / d angle = (cos x - D) / sin`; close to the data its end is the posterior mean.
        """
        last = max(math.atan(next_kappa), 1e-3)
        angles = torch.linspace(math.atan(kappa), last, num_steps + 1, dtype=torch.float64).tolist()

        def slope(x: Tensor, angle: float) -> Tensor:
            level = math.inf if angle == math.pi / 2 else math.tan(angle)
            return (math.cos(angle) * x - self.denoised(x, *coefficients(level))) / math.sin(angle)

        x = x.double()
        for angle, next_angle in pairwise(angles):
            step, middle = next_angle - angle, (angle + next_angle) / 2
            first = slope(x, angle)
            second = slope(x + step / 2 * first, middle)
            third = slope(x + step / 2 * second, middle)
            fourth = slope(x + step * third, next_angle)
            x = x + step / 6 * (first + 2 * second + 2 * third + fourth)
        return x if math.atan(next_kappa) == last else self.denoised(x, *coefficients(math.tan(last)))

    def log_density(self, z: Tensor) -> Tensor:
        centred = (z.unsqueeze(-2) - self.means).unsqueeze(-1)
        distance = (centred * torch.linalg.solve(self.covariances, centred)).sum((-1, -2))
        volume = torch.logdet(self.covariances) + z.shape[-1] * math.log(2 * math.pi)
        return torch.logsumexp(self.log_weights - (distance + volume) / 2, -1)

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """`[..., count, d]`."""
        *batch, components, dimension = self.means.shape
        weights = self.log_weights.exp().reshape(-1, components)
        index = torch.multinomial(weights, count, replacement=True, generator=generator)
        eps = torch.randn(*index.shape, dimension, generator=generator, dtype=torch.float64)
        roots = torch.linalg.cholesky(self.covariances).expand(*batch, components, dimension, dimension)
        rows = torch.arange(len(index))[:, None]
        root = roots.reshape(-1, components, dimension, dimension)[rows, index]
        means = self.means.reshape(-1, components, dimension)[rows, index]
        return (means + torch.einsum("nkij,nkj->nki", root, eps)).reshape(*batch, count, dimension)


def make_mixture(dimension: int = 3) -> GaussianMixture:
    """Three unequal, correlated clusters of about unit variance in all, in up to 4 dimensions."""
    means = torch.tensor([[1.0, 0.3, -0.4, 0.5], [-0.9, 1.0, 0.5, -0.8], [-0.4, -1.3, 0.9, 0.6]], dtype=torch.float64)
    stds = torch.tensor([[0.5, 0.3, 0.6, 0.4], [0.3, 0.5, 0.4, 0.6], [0.6, 0.4, 0.3, 0.3]], dtype=torch.float64)
    correlations = torch.tensor([0.4, -0.3, 0.2], dtype=torch.float64)[:, None, None]
    identity = torch.eye(dimension, dtype=torch.float64)
    stds = stds[:, :dimension]
    covariances = stds[:, :, None] * stds[:, None, :] * (correlations + (1 - correlations) * identity)
    weights = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    return GaussianMixture(weights.log(), means[:, :dimension], covariances)


def make_spread_mixture(dimension: int) -> GaussianMixture:
    """Four clusters, most of them far apart, in any number of dimensions."""
    generator = seeded(11)
    means = 0.9 * torch.randn(4, dimension, generator=generator, dtype=torch.float64)
    roots = torch.randn(4, dimension, dimension, generator=generator, dtype=torch.float64)
    covariances = 0.05 * torch.eye(dimension, dtype=torch.float64) + 0.15 / dimension * roots @ roots.mT
    return GaussianMixture(torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64).log(), means, covariances)


def make_gaussian() -> GaussianMixture:
    """One correlated normal in three dimensions, whose denoiser is linear."""
    mixture = make_mixture(3)
    return GaussianMixture(torch.zeros(1, dtype=torch.float64), mixture.means[:1], mixture.covariances[:1])


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def energy_distance(first: Tensor, second: Tensor) -> Tensor:
    """Unbiased estimate `[...]` of `2 E|X-Y| - E|X-X'| - E|Y-Y'|` from samples `[..., n, d]`; 0 for equal laws."""
    between = torch.cdist(first, second).mean((-1, -2))
    return 2 * between - _mean_distance(first) - _mean_distance(second)


def _mean_distance(samples: Tensor) -> Tensor:
    count = samples.shape[-2]
    return torch.cdist(samples, samples).sum((-1, -2)) / (count * (count - 1))


def excess_variance(samples: Tensor, law: GaussianMixture) -> Tensor:
    """How much wider samples `[..., n, d]` are than their laws: relative variance less one, mean over dimensions."""
    exact = law.covariance.diagonal(dim1=-2, dim2=-1)
    return (samples.double().var(-2) / exact).mean(-1) - 1


def standard_error(draws: Tensor) -> Tensor:
    """Of the mean of independent draws over the first dimension."""
    return draws.std(0) / math.sqrt(len(draws))

"""A Diamond Map around the exact denoiser of a Gaussian mixture, whose posterior is known in closed form."""

from __future__ import annotations

import torch
from diffusers.models.embeddings import TimestepEmbedding
from torch import Tensor, nn
from torch.nn.functional import silu

from diamond_diffusers.core.levels import Level, as_level, signal_and_noise
from diamond_diffusers.core.model import Conditions
from diamond_diffusers.maps.conditioning import Sites
from diamond_diffusers.maps.diamond_map import DiamondMap
from diamond_diffusers.training.data.trajectories import Trajectories
from diamond_diffusers.training.losses.base import DistillationLoss
from diamond_diffusers.transitions.sampled_model import SampledModel

from ..core.mixture import GaussianMixture, energy_distance, make_mixture, seeded

FAMILY = "mixture"
SITES = Sites("x_embedder", "time_text_embed")
WIDTH = 128
UNCONDITIONAL = Conditions({})
LEVELS = (0.2, 0.5, 1.0, 2.5, 8.0)


class MixtureNetwork(nn.Module):
    """The exact denoiser plus a residual network that is zero until adapters make it something else.

    It takes in its latents and its time where the networks of the families do.
    """

    def __init__(self, mixture: GaussianMixture) -> None:
        super().__init__()
        # Rotated to the axes of each cluster, all is elementwise.
        variances, axes = torch.linalg.eigh(mixture.covariances.float())
        centres = torch.einsum("cdi,cd->ci", axes, mixture.means.float())
        for name, tensor in {"variances": variances, "axes": axes, "centres": centres}.items():
            self.register_buffer(name, tensor)
        self.register_buffer("log_weights", mixture.log_weights.float())
        self.x_embedder = nn.Linear(mixture.means.shape[-1], WIDTH)
        self.time_text_embed = TimestepEmbedding(3, WIDTH)
        self.blocks = nn.ModuleList([*(nn.Linear(WIDTH, WIDTH) for _ in range(3)), nn.Linear(WIDTH, 2)])
        nn.init.zeros_(self.blocks[-1].weight)
        nn.init.zeros_(self.blocks[-1].bias)

    def forward(self, x: Tensor, noise_to_signal: Tensor) -> Tensor:
        angle = torch.atan(noise_to_signal).float()
        hidden = self.x_embedder(x) + self.time_text_embed(torch.stack([angle, angle.cos(), angle.sin()], 1))
        for block in self.blocks[:-1]:
            hidden = hidden + block(silu(hidden))
        return self.exact(x, noise_to_signal) + self.blocks[-1](silu(hidden))

    def exact(self, x: Tensor, noise_to_signal: Tensor) -> Tensor:
        """`E[z | x]`."""
        alpha, sigma = (coefficient.float()[:, None, None] for coefficient in signal_and_noise(noise_to_signal))
        variances = alpha**2 * self.variances + sigma**2
        residual = torch.einsum("cdi,nd->nci", self.axes, x) - alpha * self.centres
        weights = torch.softmax(self.log_weights - (residual**2 / variances + variances.log()).sum(-1) / 2, 1)
        means = self.centres + alpha * self.variances / variances * residual
        return torch.einsum("nc,cdi,nci->nd", weights, self.axes, means)


class MixtureModel(SampledModel):
    """Reads the network as families read those of diffusers."""

    name = FAMILY
    few_step = None

    def __init__(self) -> None:
        self.mixture = make_mixture(2)
        self.network_module = MixtureNetwork(self.mixture).requires_grad_(False)

    def predict(self, x: Tensor, noise_to_signal: Level, conditions: Conditions) -> Tensor:
        return self.network_module(x, as_level(noise_to_signal).expand(len(x)))

    def decode(self, z: Tensor, conditions: Conditions, preview: bool = False) -> Tensor:
        raise NotImplementedError


def distil(loss: DistillationLoss, num_steps: int, batch_size: int = 256, learning_rate: float = 3e-3) -> DiamondMap:
    """A map of the mixture, trained with the trainer's own loss."""
    torch.manual_seed(0)
    family = MixtureModel()
    diamond_map = DiamondMap(family, rank=WIDTH)
    parameters = diamond_map.trained_parameters()
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, num_steps, pct_start=0.05)
    generator = seeded(1)
    for step in range(num_steps):
        z = family.mixture.sample(batch_size, generator).float()
        data = Trajectories.draw(family, z, UNCONDITIONAL) if loss.needs_trajectories else z
        value, _ = loss(diamond_map, data, UNCONDITIONAL, step)
        optimizer.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
    return diamond_map


@torch.no_grad()
def one_step_samples(diamond_map: DiamondMap, x: Tensor, noise_to_signal: float, count: int, seed: int) -> Tensor:
    """`X_{1 -> 0}` of fresh noise, `[N, count, 2]`, at observations `x [N, 2]`."""
    rows = x.float().repeat_interleave(count, 0)
    noise = torch.randn(rows.shape, generator=seeded(seed))
    return diamond_map(noise, 1.0, 0.0, rows, noise_to_signal, UNCONDITIONAL).double().unflatten(0, (-1, count))


def observe(mixture: GaussianMixture, noise_to_signal: float, count: int, seed: int) -> Tensor:
    return mixture.observation(noise_to_signal).sample(count, seeded(seed))


def distances(diamond_map: DiamondMap, num_observations: int = 64, count: int = 100) -> dict[str, float]:
    """Mean energy distances between sets of `count` samples over five levels: of the one-step map to the exact
    posterior, of two exact sets to each other (the noise floor), and of the denoiser's point to the exact posterior.

    Sets are compared with the biased estimate, whose noise floor is positive.
    """
    totals = {"map": 0.0, "floor": 0.0, "point": 0.0}
    mixture = diamond_map.family.mixture
    for seed, level in enumerate(LEVELS):
        x = observe(mixture, level, num_observations, 10 + seed)
        law = mixture.posterior(x, level)
        first, second = (law.sample(count, seeded(number + seed)) for number in (20, 40))
        drawn = one_step_samples(diamond_map, x, level, count, 60 + seed)
        points = law.mean.unsqueeze(-2).expand_as(first)
        for name, samples in (("map", drawn), ("floor", second), ("point", points)):
            totals[name] += biased_energy_distance(samples, first).mean().item() / len(LEVELS)
    return totals


def biased_energy_distance(first: Tensor, second: Tensor) -> Tensor:
    """Energy distance `[...]` of the empirical laws of `[..., n, d]`."""

    def within(samples: Tensor) -> Tensor:
        return torch.cdist(samples, samples).mean((-1, -2)) / (samples.shape[-2] - 1)

    return energy_distance(first, second) + within(first) + within(second)

"""What the scale of a reward buys, and at what distance from the plain law: `python -m benchmarks.scales --help`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from torch import Tensor

from diamond_diffusers.alignment.base import Method
from diamond_diffusers.alignment.methods.none import NoAlignment
from diamond_diffusers.alignment.methods.smc import SMC
from diamond_diffusers.alignment.smc_parts.resampling import effective_sample_size
from diamond_diffusers.cli.options import MAX_COUNT, MAX_SEED, positive_numbers, text_table
from diamond_diffusers.evaluation.benchmark.prompts import miniature_suite
from diamond_diffusers.evaluation.files import write_json
from diamond_diffusers.evaluation.scoring.divergence import divergence_from_plain
from diamond_diffusers.evaluation.scoring.diversity import mean_pairwise_distance
from diamond_diffusers.files.foreign import read_json
from diamond_diffusers.files.output import prepare_folder
from diamond_diffusers.miniature.judge import judge
from diamond_diffusers.pipelines.output import DiamondMapPipelineOutput
from diamond_diffusers.pipelines.pipeline import DiamondMapPipeline
from diamond_diffusers.pipelines.resolution import own_reward_scale
from diamond_diffusers.rewards import MiniatureReward, Reward, as_reward
from diamond_diffusers.transitions.glass import GlassTransition

from .command_line import command

TRANSITION = GlassTransition()
"""How particles move in all runs, so that the plain law is one and the same."""


@dataclass(frozen=True)
class Settings:
    """What every row depends on.

    Attributes:
        num_prompts: held-out captions of the miniature.
        num_images: independent runs of each prompt, at least 2.
        num_particles: of each run.
        num_steps: of the sampler.
        seed: of the first run; run `j` of them all has the seed `seed + j`.
    """

    num_prompts: int
    num_images: int
    num_particles: int
    num_steps: int
    seed: int


@dataclass(frozen=True)
class Row:
    """The figures of a reward at one scale, as means over runs.

    Attributes:
        reward_scale: of the law; 0 for plain samples.
        reward: unscaled, of the particles by their weights.
        right: share of right images by the judge, likewise.
        divergence: `KL(tilted || plain)` in nats, from the evidence.
        effective_share: share of the plain samples of a prompt that count at this scale.
        diversity: `1 - cosine`, in the space of the embedded CLIP, of two images of a prompt from independent runs.
        deviation: of the rewards of plain samples of one prompt; known for plain samples alone.
    """

    reward_scale: float
    reward: float
    right: float
    divergence: float
    effective_share: float
    diversity: float
    deviation: float | None = None


class Bench:
    """Draws and measures rows.

    Args:
        settings: of all rows.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.pipe = DiamondMapPipeline.from_pretrained()
        self.pipe.set_progress_bar_config(disable=True)
        self.clip = MiniatureReward()
        self.prompts = [prompt.text for prompt in miniature_suite().first(settings.num_prompts)]

    def plain(self, reward: Reward) -> tuple[Row, Tensor]:
        """The row of plain samples, and their rewards `[prompts, n]`."""
        out = self._draw(reward, 1.0, NoAlignment(TRANSITION, self.settings.num_particles))
        assert out.rewards is not None, "there is a reward"
        rewards = out.rewards.double().unflatten(0, (self.settings.num_prompts, -1))
        return self._row(out, 0.0, torch.zeros(1), 1.0, rewards.std(1).mean().item()), rewards

    def tilted(self, reward: Reward, reward_scale: float, plain_rewards: Tensor) -> Row:
        """The row of the law at a scale."""
        out = self._draw(reward, reward_scale, SMC(self.settings.num_particles, transition=TRANSITION))
        assert out.rewards is not None and out.log_evidence is not None, "SMC estimates it"
        rewards, log_weights = (part.double().unflatten(0, (-1, self.settings.num_particles)) for part in _parts(out))
        divergence = divergence_from_plain(reward_scale, rewards, log_weights, out.log_evidence)
        share = effective_sample_size(reward_scale * plain_rewards).mean().item() / plain_rewards.shape[1]
        return self._row(out, reward_scale, divergence, share)

    def _draw(self, reward: Reward, reward_scale: float, method: Method) -> DiamondMapPipelineOutput:
        settings = self.settings
        seeds = range(settings.seed, settings.seed + settings.num_prompts * settings.num_images)
        return self.pipe(
            self.prompts,
            reward=reward,
            reward_scale=reward_scale,
            alignment=method,
            final_selection="all",
            num_images_per_prompt=settings.num_images,
            num_inference_steps=settings.num_steps,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            particle_batch_size=settings.num_particles,
            output_type="pt",
        )

    def _row(
        self,
        out: DiamondMapPipelineOutput,
        reward_scale: float,
        divergence: Tensor,
        effective_share: float,
        deviation: float | None = None,
    ) -> Row:
        settings = self.settings
        rewards, log_weights = (part.double().unflatten(0, (-1, settings.num_particles)) for part in _parts(out))
        weights = log_weights.exp()
        texts = [text for text in self.prompts for _ in range(settings.num_images * settings.num_particles)]
        right = judge(out.images.float(), texts).double().reshape(weights.shape)
        # One particle of each run, drawn by weight, as the call would return it.
        chosen = torch.multinomial(weights, 1, generator=torch.Generator().manual_seed(settings.seed)).flatten()
        images = out.images[chosen + settings.num_particles * torch.arange(len(chosen))]
        with torch.no_grad():
            features = self.clip.image_features(images).unflatten(0, (settings.num_prompts, settings.num_images))
        diversity = torch.stack([mean_pairwise_distance(of_prompt) for of_prompt in features]).mean().item()
        means = ((weights * part).sum(1).mean().item() for part in (rewards, right))
        return Row(reward_scale, *means, divergence.mean().item(), effective_share, diversity, deviation)


def _parts(out: DiamondMapPipelineOutput) -> tuple[Tensor, Tensor]:
    assert out.rewards is not None, "there is a reward"
    return out.rewards, out.log_weights


def measured(name: str, factors: Sequence[float], settings: Settings, output: Path) -> list[Row]:
    """The rows of a reward: of plain samples, and at multiples of its own scale; finished rows are read from `output`.

    Raises:
        ValueError: the folder holds rows of other settings.
    """
    reward, bench = as_reward(name), Bench(settings)
    own = own_reward_scale(reward, {})
    facts: dict[str, Any] = {"reward": reward.name, **asdict(settings)}
    rows, plain_rewards = [], None
    for scale in (0.0, *(factor * own for factor in sorted(factors))):
        path = output / f"{reward.name}_{scale:g}.json"
        if not path.exists():
            if plain_rewards is None:
                plain_row, plain_rewards = bench.plain(reward)
            row = plain_row if scale == 0 else bench.tilted(reward, scale, plain_rewards)
            write_json(path, {"settings": facts, "row": asdict(row)})
        found = read_json(path, "remove it, so that it is measured again")
        if found["settings"] != facts:
            raise ValueError(f"{path} holds a row of other settings, {found['settings']}; name another --output")
        rows.append(Row(**found["row"]))
    return rows


Rewards = Annotated[str, typer.Option(help="Rewards by name, separated by commas.")]
Factors = Annotated[str, typer.Option(help="Multiples of each reward's own scale, separated by commas.")]
NumPrompts = Annotated[int, typer.Option(min=1, max=300, help="Held-out captions.")]
NumImages = Annotated[int, typer.Option(min=2, max=MAX_COUNT, help="Independent runs of each prompt.")]
NumParticles = Annotated[int, typer.Option(min=2, max=MAX_COUNT, help="Particles of each run.")]
NumSteps = Annotated[int, typer.Option("--num-inference-steps", min=1, max=MAX_COUNT, help="Steps of the sampler.")]
Seed = Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Of the first run.")]
Output = Annotated[Path, typer.Option(help="Folder of the finished rows, with which a run goes on.")]


def benchmark_scales(
    rewards: Rewards = "miniature,colour",
    factors: Factors = "0.0625,0.125,0.25,0.5,1,2",
    num_prompts: NumPrompts = 6,
    num_images: NumImages = 3,
    num_particles: NumParticles = 8,
    num_inference_steps: NumSteps = 8,
    seed: Seed = 0,
    output: Output = Path("out/scales"),
) -> None:
    """Prints, for scales of a reward, what SMC reaches and how far that is from the embedded model's own law."""
    multiples = positive_numbers("--factors", factors, float, "0.25,0.5,1")
    settings = Settings(num_prompts, num_images, num_particles, num_inference_steps, seed)
    prepare_folder(output)
    torch.set_num_threads(1)
    for name in rewards.split(","):
        rows = measured(name.strip(), multiples, settings, output)
        deviation = rows[0].deviation or math.nan
        table = text_table("scale", "scale x deviation", "reward", "right, %", "KL, nats", "effective, %", "diversity")
        table.title = f"{name.strip()}: plain samples of a prompt have the deviation {deviation:.3g}"
        for row in rows:
            table.add_row(
                f"{row.reward_scale:.4g}",
                f"{row.reward_scale * deviation:.2f}",
                f"{row.reward:.4g}",
                f"{100 * row.right:.0f}",
                f"{row.divergence:.2f}",
                f"{100 * row.effective_share:.0f}",
                f"{row.diversity:.3f}",
            )
        Console().print(table)


app = command(benchmark_scales)

if __name__ == "__main__":
    app()

"""Sequential Monte Carlo: particles, weights, resampling, and an estimate of the evidence."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self

import torch
from torch import Tensor

from ...core.checks import check_choice
from ...core.deferred import read
from ...core.interval import Interval
from ...core.tensors import expand, row_dot, sent
from ...posteriors.base import PosteriorSampler
from ...posteriors.denoiser import DenoiserPoint
from ...rewards.base import Reward
from ...transitions.base import Transition
from ...transitions.sampled_model import SampledModel
from ..base import Method
from ..cloud import Cloud
from ..guide import Guide
from ..law import Law
from ..look_ahead import LookAhead, look_ahead
from ..random_source import RandomSource, driving_noise
from ..result import FINAL_SELECTIONS, AlignmentResult
from ..scalings import limiting_factor, root_mean_square
from ..smc_parts.potentials import POTENTIALS
from ..smc_parts.resampling import RESAMPLING_SCHEMES, effective_sample_size
from ..smc_parts.tempering import Tempering, tempered
from ..trace import Trace
from . import METHODS

SCHEDULE: Mapping[str, Any] = {"num_valuations": 4, "resampling_threshold": 0.5, "default_selection": "sample"}
FEW_STEP_SCHEDULE: Mapping[str, Any] = {"num_valuations": 1, "resampling_threshold": 1.0, "default_selection": "best"}
"""What `"auto"` stands for: in general, and where the steps of a few-step model move the particles."""


@dataclass(frozen=True, kw_only=True)
class PathCloud(Cloud):
    """A cloud that remembers what its weights are made of.

    `log w = log_offset + inverse_temperature * log(G_0 ... G_k)`, with potentials of the values along each path.

    Attributes:
        path_values: `V_0 ... V_k` of each particle and its ancestors, `[B, P, k + 1]` float64 on the CPU; paths begin
            with `V_0 = 0`.
        log_offset: what resamplings and guided proposals add, `[B, P]`.
        inverse_temperature: of the last valuation, `[B]`.
        valuations: numbers of moves after which particles are valued.
        log_ratio: what the last move, if it was a guided proposal, adds to the log-weights, `[B P]` on the device; None
            once it is added.
        num_moves: that they have made.
        is_valued: whether the last of the values is that of this level.
    """

    path_values: Tensor
    log_offset: Tensor
    inverse_temperature: Tensor
    valuations: frozenset[int]
    log_ratio: Tensor | None = None
    num_moves: int = 0
    is_valued: bool = False


@METHODS.register("smc")
@dataclass(frozen=True)
class SMC(Method):
    """Samples the reward-tilted law `p(z) exp(r(z))` with a cloud of particles an image.

    With values `V(y, kappa) = log E[exp(r(z)) | y]`, potentials `G_k` of the values along a particle's path, and
    inverse temperatures `lambda_k` that end at 1::

        each step:  y' ~ transition(y)
        at the k-th of num_valuations steps:
                    log w += lambda_k log(G_0 ... G_k) - lambda_(k-1) log(G_0 ... G_(k-1))
                    where ESS(w) < threshold * P:  log Z += log mean w;  resample;  log w = 0
        end:        G_0 ... G_K = exp(r(z));  log Z += log mean w

    By default `lambda_k` is 1 and `log(G_0 ... G_k)` is `V_k`, so that the target at each valuation is
    `p_kappa(y) exp(V(y, kappa))`.

    *Which law.* The value of a particle is carried with it, never drawn again, so that the weights telescope to
    `exp(r(z))`. The final law, as P grows, and `E[exp log Z]` are therefore those of `q(z) exp(r(z))` for any estimate
    of `V`, where `q` is the law that the *transitions* sample; a better estimate only lowers the variance. `q` is the
    model's own law where transitions are exact, as several inner steps make them. With one Gaussian step a level, the
    default, it is so only as the steps shrink: on a Gaussian mixture under a strong tilt `log Z` is 1.3, .8, .5 and .2
    too low with 5, 10, 20 and 50 steps, and within .05 of the truth with two inner steps or more. With
    `DiamondTransition` it is the law of the map. The accurate choice are GLASS transitions of two inner steps or more,
    whatever draws the look-aheads; `docs/methods.md` has the tables.

    *On a few-step model*, whose predictions are samples and whose steps noise them afresh, SMC is a search for the best
    if the transition is left to the model: particles are valued once, after half of the steps, resampled by that
    wherever weights differ, and the best is returned. At as many evaluations this is ahead of the best of plain samples
    by the same steps, and at as many scores of the reward it is level with it. (With the options of other models it is
    far behind the latter, since every step of a particle asks for a score.)

    *How often to value.* Values estimated from fresh look-aheads are noisy, and where particles are resampled by noise
    at every step, few lineages are left: on a mixture, with one look-ahead of an exact Diamond Map and 16 particles,
    the mean error of `log Z` is -.9, -2 and -6 with 5, 12 and 40 steps if particles are valued after every one, and
    -.9 each time if they are valued four times.

    With `DenoiserPoint` and one inner step this is FK steering (arXiv 2501.06848); guided and tempered, it is DAS
    (arXiv 2501.05803).

    Values may be any numbers below infinity. A particle of value `-inf` has weight zero, and resampling drops it even
    where its end might be allowed: hard constraints need exact values, or `resampling="none"`. Those that a threshold
    makes of a reward, such as `nsfw < 0.2`, are therefore soft in values and hard in the last weights. While all
    particles of an image have weight zero they go on without resampling, and if that lasts to the end they are equally
    weighted and `log Z` is `-inf`.

    With `reward_scale=0` no look-ahead is drawn, and particles and selection are those of `NoAlignment` with the same
    transition, number of particles and generator, bit for bit.

    Args:
        num_particles: particles P of each image.
        posterior: draws the look-aheads from which values are estimated.
        transition: how particles move; None for `GlassTransition()`, and `RenoiseTransition()` where the model is a
            few-step one. Stochastic, since copies of a particle must part.
        resampling: a name in `RESAMPLING_SCHEMES`, or `none` to carry the weights to the end.
        resampling_threshold: share of P under which the effective sample size triggers resampling, in [0, 1]. `"auto"`
            is 0.5, and 1 with the steps of a few-step model.
        potential: a name in `POTENTIALS`: `value`, `max` or `sum`.
        tempering: raises the inverse temperature along the valuations; None for 1 throughout.
        max_noise_to_signal: values are taken as zero above this level, where look-aheads say little; exact too.
        guide: tilts the mean of the driving noise towards the reward, as much as the inverse temperature says; the
            weights account for it exactly. Look-aheads are drawn at each of its levels, valued or not. Leave its
            `max_shift` on, or take `tilted_mean` or `hybrid`: unlimited `isotropic` gradients
            *raise* the variance of `log Z` on some laws of several modes, and `pathwise` ones may lower it less.
        max_tilt: limit of the root-mean-square of that mean, in units of the noise's own deviation.
        num_valuations: how many times particles are valued, weighed and resampled on their way, at even shares of the
            steps: 4 for after 20, 40, 60 and 80 % of them. None for after every step but the last, which suits values
            without noise (`DenoiserPoint`) and tempering; 0 for the end alone. At other steps no look-aheads are drawn.
            `"auto"` is 4, and 1 with the steps of a few-step model.
        default_selection: which particle is returned if the call does not say: `sample`, `heaviest`, `best` or `all`.
            `"auto"` is `sample`, and `best` with the steps of a few-step model.

    Example:
        >>> method = SMC(num_particles=2, transition=GlassTransition(num_inner_steps=2))
        >>> out = pipe("a red star", alignment=method, num_inference_steps=2)
        >>> len(out.images), out.log_evidence.shape
        (1, torch.Size([1]))
    """

    num_particles: int = 4
    posterior: PosteriorSampler = field(default_factory=DenoiserPoint)
    transition: Transition | None = None
    resampling: str = "systematic"
    resampling_threshold: float | Literal["auto"] = "auto"
    max_noise_to_signal: float = math.inf
    guide: Guide | None = None
    max_tilt: float = 1.0
    potential: str = "value"
    tempering: Tempering | None = None
    num_valuations: int | Literal["auto"] | None = "auto"
    default_selection: str = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("resampling", self.resampling, (*RESAMPLING_SCHEMES.names(), "none"))
        check_choice("potential", self.potential, POTENTIALS)
        if self.resampling_threshold != "auto" and not 0 <= self.resampling_threshold <= 1:
            raise ValueError(f"resampling_threshold is {self.resampling_threshold}; give a number between 0 and 1")
        if not self.max_noise_to_signal >= 0:
            raise ValueError(f"max_noise_to_signal is {self.max_noise_to_signal}; give at least 0")
        if not self.max_tilt > 0:
            raise ValueError(f"max_tilt is {self.max_tilt}; give a positive number, or math.inf for no limit")
        if isinstance(self.num_valuations, int) and self.num_valuations < 0:
            raise ValueError(
                f"num_valuations is {self.num_valuations}; give a whole number of at least 0, or None for every step"
            )
        if self.tempering is not None and self.num_valuations == 0:
            raise ValueError(
                f"tempering is {self.tempering}, but num_valuations is 0, so that nothing is tempered on the way; take "
                "num_valuations=None, or leave tempering out"
            )
        check_choice("default_selection", self.default_selection, (*FINAL_SELECTIONS, "auto"))
        if self.transition is not None and not self._parts_copies(self.transition):
            raise ValueError(
                f"transition is {self.transition}, which draws no noise, so copies of a particle would never part; "
                "leave it out, or take AncestralTransition()"
            )
        if self.guide is not None:
            self.guide.check_comparable(self.posterior)

    def _parts_copies(self, transition: Transition) -> bool:
        """Whether copies of a particle move to different places."""
        return transition.is_stochastic

    @property
    def needs_reward_gradient(self) -> bool:  # type: ignore[override]
        return self.guide is not None and self.guide.needs_reward_gradient

    def check(self, reward: Reward | None) -> None:
        super().check(reward)
        if self.guide is not None and reward is not None:
            self.guide.check_reward(reward)

    def resolve(self, model: SampledModel) -> Self:
        return super(SMC, self.with_schedule(model)).resolve(model)

    def with_schedule(self, model: SampledModel) -> Self:
        """This method with the options filled in that are `"auto"`."""
        is_few_step = self.transition is None and not model.predicts_mean
        own = FEW_STEP_SCHEDULE if is_few_step else SCHEDULE
        filled = {name: value for name, value in own.items() if getattr(self, name) == "auto"}
        return replace(self, **filled) if filled else self

    def start(self, law: Law, x: Tensor, num_steps: int) -> PathCloud:
        # That of a method that is resolved stays as it is.
        count = self.with_schedule(law.model).num_valuations
        assert count != "auto", "`with_schedule` fills it in"
        cloud = super().start(law, x, num_steps)
        return PathCloud(
            x=x,
            log_weights=cloud.log_weights,
            log_evidence=cloud.log_evidence,
            path_values=cloud.log_weights.new_zeros(*cloud.log_weights.shape, 1),
            log_offset=cloud.log_weights,
            inverse_temperature=torch.full_like(cloud.log_evidence, 1.0 if self.tempering is None else 0.0),
            valuations=valuations(count, num_steps),
        )

    def step(self, law: Law, cloud: Cloud, interval: Interval, random: RandomSource) -> PathCloud:
        assert isinstance(cloud, PathCloud), "`start` makes one"
        if cloud.ahead is None:
            # At the first level, or where a caller replaced the particles.
            cloud = self._weigh(self._look_ahead(law, cloud, interval.start, random))
        cloud = self._move(law, cloud, interval, random)
        if interval.is_last:
            return self._weigh_by_reward(law, cloud)
        cloud = self._weigh(self._look_ahead(law, cloud, interval.end, random))
        return self._resample(cloud, random)

    def replace_particles(self, cloud: Cloud, x: Tensor) -> PathCloud:
        """The new particles take over the paths, in which their own values will stand for the old ones."""
        assert isinstance(cloud, PathCloud), "`start` makes one"
        values = cloud.path_values[..., :-1] if cloud.is_valued else cloud.path_values
        replaced = super().replace_particles(cloud, x)
        assert isinstance(replaced, PathCloud), "it is the same cloud with other particles"
        return replace(replaced, path_values=values, is_valued=False)

    def finish(self, law: Law, cloud: Cloud, trace: Trace) -> AlignmentResult:
        """The last factor makes the product of potentials `exp(r(z))`, wherever the run has ended."""
        assert isinstance(cloud, PathCloud), "`start` makes one"
        result = super().finish(law, cloud, trace)
        assert result.rewards is not None, "`check` has seen to it that there is a reward"
        cloud, values = self._read(cloud, result.values.flatten())
        log_weights = cloud.log_offset + values
        weightless = torch.isneginf(log_weights).all(1, keepdim=True)
        log_evidence = cloud.log_evidence + _log_mean(log_weights)
        return replace(
            result,
            log_weights=torch.log_softmax(torch.where(weightless, 0.0, log_weights), 1),
            log_evidence=log_evidence.masked_fill(_none_holds(result.violation, log_weights), -math.inf),
        )

    def _look_ahead(self, law: Law, cloud: PathCloud, noise_to_signal: float, random: RandomSource) -> PathCloud:
        """The cloud with estimates at its particles."""
        is_valued = cloud.num_moves in cloud.valuations and self._counts_at(law, noise_to_signal)
        cloud = self._with_estimates(law, cloud, noise_to_signal, random, is_valued)
        return replace(cloud, is_valued=is_valued, figures={})

    def _counts_at(self, law: Law, noise_to_signal: float) -> bool:
        """Whether the reward counts at a level, in values and in proposals."""
        return noise_to_signal <= self.max_noise_to_signal and law.is_tilted

    def _guides_at(self, law: Law, noise_to_signal: float) -> bool:
        counts = self._counts_at(law, noise_to_signal)
        return counts and self.guide is not None and self.guide.acts_at(noise_to_signal)

    def _with_estimates(
        self, law: Law, cloud: PathCloud, noise_to_signal: float, random: RandomSource, is_valued: bool
    ) -> PathCloud:
        """Look-aheads are drawn where weights or proposals ask for them."""
        x, network = cloud.x, law.rows(cloud.x).network
        with_prediction = self.moves.needs_prediction(network)
        drawn = (law, self.posterior, x, noise_to_signal, random)
        if self.guide is not None and self._guides_at(law, noise_to_signal):
            ahead = self.guide.look_ahead(*drawn, with_prediction=with_prediction)
        elif is_valued:
            ahead = look_ahead(*drawn, with_prediction=with_prediction)
        else:
            predicted = network.predict(x, noise_to_signal) if with_prediction else None
            ahead = LookAhead(predicted, torch.zeros(len(x), device=x.device, dtype=x.dtype))
        return replace(cloud, ahead=ahead)

    def _read(self, cloud: PathCloud, values: Tensor | None) -> tuple[PathCloud, Tensor]:
        """The cloud after the weights of its proposal, and its values as float64 on the CPU, in one transfer.

        Args:
            cloud: whose particles they are.
            values: scaled rewards or values, `[B P]`; None for none.

        Returns:
            The cloud, and `[B, P]`; of none nothing, `[0]`.

        Raises:
            ValueError: a value is not below infinity.
        """
        asked = [part for part in (values, cloud.log_ratio) if part is not None]
        if not asked:
            return cloud, cloud.log_weights.new_zeros(0)
        # What is read here is all that a step waits for.
        known = read(torch.stack(asked)).double().unflatten(1, (-1, self.num_particles))
        if cloud.log_ratio is not None:
            added = {name: getattr(cloud, name) + known[-1] for name in ("log_weights", "log_offset")}
            cloud = replace(cloud, **added, log_ratio=None)
        if values is not None and not (known[0] < math.inf).all():
            raise ValueError(
                f"the largest value is {known[0].max().item()}, but values weigh particles by their exponential and "
                "must be numbers below infinity; lower reward_scale, or mend the reward or the posterior"
            )
        return cloud, known[0]

    def _weigh(self, cloud: PathCloud) -> PathCloud:
        """Weighs the particles by the values of their paths, of which those of `cloud.ahead` are the last."""
        cloud, values = self._read(cloud, cloud.estimates.values if cloud.is_valued else None)
        if not cloud.is_valued:
            return cloud
        path_values = torch.cat([cloud.path_values, values[..., None]], 2)
        log_potentials = POTENTIALS.get(self.potential)(path_values)
        inverse_temperature = cloud.inverse_temperature
        if self.tempering is not None:
            inverse_temperature = self.tempering.inverse_temperature(
                cloud.num_moves, inverse_temperature, cloud.log_offset, log_potentials
            )
        log_weights = cloud.log_offset + tempered(log_potentials, inverse_temperature)
        return self._recorded(
            replace(
                cloud,
                values=values,
                path_values=path_values,
                log_weights=log_weights,
                inverse_temperature=inverse_temperature,
            )
        )

    def _weigh_by_reward(self, law: Law, cloud: PathCloud) -> PathCloud:
        """Weighs clean particles, whose potentials' product is `exp(r(z))`."""
        final = law.rows(cloud.x).evaluate(cloud.x)
        ahead = LookAhead(None, law.values(final).to(cloud.x.device))
        cloud, values = self._read(cloud, law.final_values(final).to(cloud.x.device))
        cloud = self._recorded(
            replace(
                cloud,
                ahead=ahead,
                final=final,
                values=values,
                log_weights=cloud.log_offset + values,
                inverse_temperature=torch.ones_like(cloud.inverse_temperature),
                is_valued=False,
            )
        )
        none_holds = _none_holds(final.violation, values)
        log_evidence = cloud.figures["log_evidence"].masked_fill(none_holds, -math.inf)
        return replace(cloud, figures={**cloud.figures, "log_evidence": log_evidence})

    def _recorded(self, cloud: PathCloud) -> PathCloud:
        """The cloud with what the trace records of it."""
        figures = {
            **cloud.estimates.figures(self.num_particles),
            "effective_sample_size": effective_sample_size(cloud.log_weights),
            "log_evidence": cloud.log_evidence + _log_mean(cloud.log_weights),
        }
        if self.tempering is not None:
            figures["inverse_temperature"] = cloud.inverse_temperature
        return replace(cloud, figures=figures)

    def _move(self, law: Law, cloud: PathCloud, interval: Interval, random: RandomSource) -> PathCloud:
        noise, log_ratio = self._propose(cloud, interval, random)
        return replace(
            cloud,
            x=self._moved(law, cloud, interval, noise),
            log_ratio=log_ratio,
            num_moves=cloud.num_moves + 1,
        )

    def _moved(self, law: Law, cloud: PathCloud, interval: Interval, noise: Tensor) -> Tensor:
        """The particles at the next level, from their driving noise."""
        network = law.rows(cloud.x).network
        return self.moved(network, cloud.x, interval, cloud.estimates.predicted, noise)

    def _propose(self, cloud: PathCloud, interval: Interval, random: RandomSource) -> tuple[Tensor, Tensor | None]:
        """Driving noise `e ~ N(mu, I)` and `log N(e; 0, I) - log N(e; mu, I)`; without a guide `mu` is zero."""
        noise = driving_noise(random, self.moves, cloud.x, self.num_particles, interval)
        mu = self._noise_mean(cloud, interval)
        if mu is None:
            return noise, None
        noise = noise + mu
        return noise, row_dot(mu, mu / 2 - noise)

    def _noise_mean(self, cloud: PathCloud, interval: Interval) -> Tensor | None:
        """The mean `mu` of the driving noise, `[B P, ...]`; None where it is zero."""
        gain = self.moves.tilt_gain(interval)
        if self.guide is None or cloud.estimates.shift is None or gain == 0:
            return None
        mu = gain * self.guide.shift(cloud.estimates, interval.start)
        scale = sent(self._proposal_inverse_temperature(cloud), mu.device, mu.dtype)
        scale = scale.repeat_interleave(self.num_particles)
        return mu * expand(scale * limiting_factor(root_mean_square(mu), self.max_tilt), mu)

    def _proposal_inverse_temperature(self, cloud: PathCloud) -> Tensor:
        """By how much of the tilt the next move is drawn, `[B]` on the CPU."""
        if self.tempering is None:
            return cloud.inverse_temperature
        return self.tempering.proposal_inverse_temperature(cloud.num_moves, cloud.inverse_temperature)

    def _resample(self, cloud: PathCloud, random: RandomSource) -> PathCloud:
        """Resamples each image's particles where their effective sample size has fallen under the threshold."""
        if not cloud.is_valued:
            return cloud
        size = cloud.figures["effective_sample_size"]
        # Where every weight is zero there is nothing to resample by.
        assert self.resampling_threshold != "auto", "`resolve` fills it in, and comes before the first step"
        poor = (size < self.resampling_threshold * self.num_particles) & (size > 0) & (self.resampling != "none")
        ancestors = torch.arange(self.num_particles).repeat(len(size), 1)
        for image in torch.nonzero(poor).flatten().tolist():
            weights = torch.softmax(cloud.log_weights[image], 0)
            ancestors[image] = RESAMPLING_SCHEMES.get(self.resampling)(weights, random.of_image(image))
        rows = (ancestors + self.num_particles * torch.arange(len(size))[:, None]).flatten()
        chosen = sent(rows, cloud.x.device)
        assert cloud.values is not None, "a valued cloud has values"
        log_tilt = (cloud.log_weights - cloud.log_offset).gather(1, ancestors)
        return replace(
            cloud,
            x=cloud.x[chosen],
            ahead=cloud.estimates.rows(chosen),
            values=cloud.values.flatten()[rows].reshape(cloud.values.shape),
            path_values=cloud.path_values.flatten(0, 1)[rows].reshape(cloud.path_values.shape),
            log_weights=torch.where(poor[:, None], 0.0, cloud.log_weights),
            log_offset=torch.where(poor[:, None], -log_tilt, cloud.log_offset),
            log_evidence=torch.where(poor, cloud.figures["log_evidence"], cloud.log_evidence),
            figures={**cloud.figures, "resampled": poor},
        )


def valuations(count: int | None, num_steps: int) -> frozenset[int]:
    """After how many moves of a run particles are valued.

    They are after the shares `j / (count + 1)` of the steps, rounded up to whole ones, and never after the last; None
    stands for every step. The start is not valued: without its values, weights up to there are equal.
    """
    if count is None or count >= num_steps:
        return frozenset(range(1, num_steps))
    return frozenset(-(-num_steps * share // (count + 1)) for share in range(1, count + 1)) - {num_steps}


def _none_holds(violations: Tensor | None, like: Tensor) -> Tensor:
    """For which images no particle, `[B, P]` as those of `like`, is known to hold, so that they tell no evidence.

    Args:
        violations: `[B, P]` or `[B P]`; None where there are no constraints.
        like: any figure of the particles.
    """
    if violations is None:
        return torch.zeros(len(like), dtype=torch.bool)
    # NaN where the reward has failed.
    return (read(violations).reshape(like.shape) != 0).all(1)


def _log_mean(log_weights: Tensor) -> Tensor:
    return torch.logsumexp(log_weights, 1) - math.log(log_weights.shape[1])

"""A call that runs step by step, and can be ended early."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Self
from weakref import WeakSet

import torch
from diffusers.utils import logging
from torch import Tensor

from ..alignment.auto_scale import AutoRewardScale
from ..alignment.base import Method
from ..alignment.budget import Budget, fit_to_budget, warn_of_many_scores
from ..alignment.execution import Execution
from ..alignment.law import Law
from ..alignment.memory_plan import MemoryPlan
from ..alignment.processes import DistributedState, ParticleShards
from ..alignment.progress import InterruptedWithin, Progress
from ..alignment.random_source import RandomSource
from ..alignment.reward_errors import RewardErrors
from ..alignment.stages import check_stages, judged
from ..core.cost import Cost, charged_to
from ..core.deferred import own_checks
from ..core.interruption import Interrupted
from ..rewards import Reward
from ..rewards.stages import stages_of
from .attributes import StockAttributes
from .auto_scale import found_reward_scale, random_of_prompts
from .best_images import keep_best_images
from .call import Call, starting_particles
from .callbacks import StepEnd, check_callback
from .output import DiamondMapPipelineOutput, make_output
from .planning import AUTO, MemoryOptions, with_plan
from .resolution import (
    check_gradients,
    checked_selection,
    resolve_method,
    resolve_reward,
    resolve_reward_scale,
    try_reward,
)
from .run_options import RunOptions
from .shared_budget import Sharing
from .watch import Watching

logger = logging.get_logger(__name__)

_open_runs: WeakSet[Run] = WeakSet()
# A signal handler may interrupt a pipeline wherever this thread is.
_lock = threading.RLock()


def interrupt_runs(pipe: StockAttributes) -> None:
    """Interrupts every run of a pipeline that is on its way, in whichever thread."""
    with _lock:
        runs = [run for run in _open_runs if run.pipe is pipe]
    for run in runs:
        run.interrupt()


class Run(Iterator[Progress]):
    """A call on its way, which is stepped by iterating over it and ended early by closing it.

    `DiamondMapPipeline.iterate` starts a run; a call of the pipeline is a run that goes to its end. While a run is
    open, the model is set up for the call and its weights are frozen. So close a run that you do not iterate to its
    end: leave its `with` block, or call `close()`. Runs of one pipeline may be open together, in threads or in turns;
    another thread may end one with `interrupt()`.

    Args:
        pipe: the pipeline, which callbacks are given.
        call: the call, as prepared by the pipeline.
        options: options of the call.
        defaults: defaults of the pipeline, for options that are not given.
        named_rewards: the rewards that the pipeline has loaded by name; new ones are added.

    Raises:
        TypeError, ValueError: an option does not fit the model, the reward or the other arguments; raised before any
            sampling.

    Example:
        >>> with pipe.iterate("a red circle", alignment="smc") as run:
        ...     for progress in run:
        ...         progress.previews()[0].save(f"step_{progress.index}.png")
        ...         if progress.cost.seconds > 60:
        ...             break
        >>> run.output().images[0].save("circle.png")
    """

    def __init__(
        self,
        pipe: StockAttributes,
        call: Call,
        options: RunOptions,
        defaults: Mapping[str, Any],
        named_rewards: dict[str, Reward],
    ) -> None:
        self.pipe, self._call, self._options = pipe, call, options
        self._latest: Progress | None = None
        self._output: DiamondMapPipelineOutput | None = None
        self._interruption = threading.Event()
        self._is_stepping = self._is_complete = False
        call.family.pipeline._interrupt = False
        with _lock:
            if not any(run.pipe is pipe for run in _open_runs):
                pipe.pipeline._interrupt = False
            _open_runs.add(self)
        self._open = ExitStack()
        with _apart(), self._open:
            self._open.callback(self._forget)
            self._open.enter_context(call.active())
            self._prepare(defaults, named_rewards)
            # Open for as long as the run is; closed here where anything is refused.
            self._open = self._open.pop_all()

    def _prepare(self, defaults: Mapping[str, Any], named_rewards: dict[str, Reward]) -> None:
        call, options, family = self._call, self._options, self._call.family
        reward = resolve_reward(options.reward, options.alignment, call, defaults, named_rewards)
        budget = options.max_network_evaluations, options.max_reward_calls
        method, choice = resolve_method(options.alignment, reward, call, defaults, *budget)
        self._choice = None if choice is None else choice.reason
        if self._choice is not None:
            logger.info("%s.", self._choice)
        if method.needs_reward_gradient:
            check_gradients(call, method)
        watched = check_callback(family, method, options.callback_on_step_end, call.arguments.callback_tensors)
        selection = "best" if stages_of(reward) else method.default_selection
        selection = selection if options.final_selection is None else options.final_selection
        self._selection = checked_selection(selection, reward, call.texts)
        self._scale = scale = resolve_reward_scale(options.reward_scale, reward, call, defaults)
        self._random = RandomSource(call.arguments.generator, call.num_images, call.device)
        shards = _checked_shards(options.distributed_state, call, method, self._random, reward, scale)
        self._reward_errors = errors = RewardErrors(options.on_reward_error)
        cost = Cost()
        with charged_to(cost):
            num_tried = try_reward(reward, call, method, errors)

        self._watching = None
        if options.watch is not None:
            self._watching = Watching(options.watch, method, reward, call, named_rewards)
        self._sharing = None
        if options.shared_budget is not None:
            self._sharing = Sharing(options.shared_budget, method, reward, call, named_rewards)
        levels = call.levels()
        memory = MemoryOptions.of_call(call, options.particle_batch_size, options.gradient_checkpointing)
        execution = Execution(
            None if memory.particle_batch_size == AUTO else memory.particle_batch_size,
            memory.checkpointings[0],
            shards,
            cost,
            is_interrupted=self._is_to_end,
        )
        # Before anything is drawn, so that neither the method nor a given start counts.
        self._random_of_prompts = random_of_prompts(call) if isinstance(scale, AutoRewardScale) else None
        # What is to be found is found in the first step.
        known = 1.0 if isinstance(scale, AutoRewardScale) else scale
        law = Law(family, call.conditions, call.texts, reward, known, call.scores, execution, reward_errors=errors)
        is_budgeted = any(limit is not None for limit in budget)
        if is_budgeted:
            method = fit_to_budget(method, law, levels, *budget)
        if self._sharing is not None:
            self._sharing.plan(method, law, levels, Budget(*budget))
        check_stages(reward, method, options.final_selection, is_budgeted)
        if options.max_reward_calls is None:
            warn_of_many_scores(method, law, levels)
        x = starting_particles(call, method, levels[0], self._random)
        with charged_to(cost):
            num_tried += try_reward(reward, call, method, errors, latents=x[:1])
        cost.reward_calls += num_tried
        law, self._plan = with_plan(memory, self.pipe.pipeline, method, law, x, levels)
        family.pipeline._num_timesteps = len(levels) - 1
        self._method, self._shards = method, shards
        self._start = method.at_start(law, x, levels)
        self._stages = self._stepped(law, x, levels, watched)

    def _stepped(
        self, law: Law, x: Tensor, levels: list[float], watched: Sequence[str]
    ) -> Generator[Progress, None, None]:
        """The stages of the run, with the stock pipeline's progress bar and callback."""
        random = self._random_of_prompts
        if isinstance(self._scale, AutoRewardScale) and random is not None and self._method.needs_reward:
            self._scale = found_reward_scale(self._scale, self._call, law, levels, random)
            law = replace(law, reward_scale=self._scale)
        sharing = self._sharing
        total = self._method.num_stages(law, levels) if sharing is None else sharing.rounds.num_turns
        with self._call.family.pipeline.progress_bar(total=total) as progress_bar:
            on_step = StepEnd(
                self.pipe,
                self._call.family,
                self._method,
                levels,
                progress_bar,
                self._options.callback_on_step_end,
                watched,
            )
            iterate = partial(self._method.iterate, levels=levels) if sharing is None else sharing.iterate
            for progress in iterate(law, x, random=self._random):
                self._latest = progress
                self._is_complete = progress.index + 1 == progress.num_stages
                on_step(progress)
                if self._watching is not None:
                    self._watching.check(progress)
                yield progress
                if self._is_ended_by_watch:
                    return

    @property
    def _is_ended_by_watch(self) -> bool:
        return self._watching is not None and self._watching.watched.is_ended

    def __next__(self) -> Progress:
        self._check_between_steps("stepped")
        self._is_stepping = True
        try:
            with _apart():
                self._check_interruption()
                return next(self._stages)
        except Interrupted as interruption:
            if self._latest is None and isinstance(interruption, InterruptedWithin):
                within = interruption.latest.detached()
                # Some rounds sample the particles of several images as images of their own.
                self._latest = within if within.law.num_images == self._call.num_images else None
            self._close()
            raise StopIteration from None
        except BaseException as error:
            # The end of the run, too.
            self._keep_best_images(error)
            self._close()
            raise
        finally:
            self._is_stepping = False

    def _keep_best_images(self, error: BaseException) -> None:
        """Hands the best images so far to an exception of the reward."""
        if isinstance(error, Exception) and error is self._reward_errors.raised:
            # An interruption has nothing left to end.
            self._is_stepping = False
            with _apart(), self._call.active():
                keep_best_images(error, self._call.family, self._latest)

    def interrupt(self) -> None:
        """Ends the run before its next evaluation; any thread may call it.

        Iterating over the run then comes to an end, and a call of the pipeline returns: with the best clean look-aheads
        so far, as of `output`.
        """
        self._interruption.set()

    def _is_to_end(self) -> bool:
        stock = (self._call.family.pipeline, self.pipe.pipeline)
        is_interrupted = self._interruption.is_set() or any(pipeline._interrupt for pipeline in stock)
        # Not where the caller looks at a progress, or asks for the output.
        return is_interrupted and self._is_stepping

    def _check_interruption(self) -> None:
        is_to_end = self._is_to_end()
        if self._shards is not None:
            is_to_end = self._shards.any(is_to_end)
        if is_to_end:
            raise Interrupted

    def _forget(self) -> None:
        with _lock:
            _open_runs.discard(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the run where it is, and leaves the model as it was before the run.

        Raises:
            RuntimeError: the run is within a step, of another thread or of the callback that calls this.
        """
        self._check_between_steps("closed")
        self._close()

    def _check_between_steps(self, done: str) -> None:
        if self._is_stepping:
            raise RuntimeError(
                f"The run is {done} within a step of its own, in another thread or a callback; call its interrupt(), "
                "which ends it there"
            )

    def _close(self) -> None:
        self._stages.close()
        self._open.close()

    @property
    def choice(self) -> str | None:
        """Which method alignment `"auto"` has chosen and why, known before the first step; None where one was named."""
        return self._choice

    @property
    def plan(self) -> MemoryPlan | None:
        """How the run is fitted into memory, known before its first step; see `DiamondMapPipelineOutput.plan`."""
        return self._plan

    def output(self) -> DiamondMapPipelineOutput:
        """Ends the run and returns its output.

        If the run has not reached its end, the images are clean look-aheads of its particles, of which the best is
        chosen unless `final_selection` was given. A run that has not been stepped takes its first step, unless it was
        interrupted or closed.

        Raises:
            RuntimeError: the run is within a step, of another thread or of the callback that calls this.
        """
        self._check_between_steps("asked for its output")
        if self._output is None:
            progress = self._latest or next(self, self._start)
            if self._watching is not None:
                progress = self._watching.best(progress)
            selection = self._selection
            if not progress.is_final and self._options.final_selection is None and progress.law.reward is not None:
                selection = "best"
            with _apart(), self._call.active():
                try:
                    result, stage_calls = judged(progress.law, progress.result())
                except Exception as error:
                    self._keep_best_images(error)
                    raise
                self._output = make_output(
                    progress.law,
                    self._method,
                    result,
                    selection,
                    self._random,
                    self._options.output_type,
                    interrupted=not (self._is_complete or self._is_ended_by_watch),
                    plan=self._plan,
                    has_scale=not isinstance(self._scale, AutoRewardScale),
                    stage_calls=stage_calls or None,
                    watched=None if self._watching is None else self._watching.watched,
                    choice=self._choice,
                    shared=None if self._sharing is None else self._sharing.shared,
                )
            self.close()
            self.pipe.pipeline.maybe_free_model_hooks()
        return self._output


@contextmanager
def _apart() -> Iterator[None]:
    """Context in which only methods build graphs and defer checks, whatever the caller, such as a reward, is within."""
    with torch.inference_mode(False), torch.no_grad(), own_checks():
        yield


def _checked_shards(
    state: DistributedState | None,
    call: Call,
    method: Method,
    random: RandomSource,
    reward: Reward | None,
    scale: Tensor | AutoRewardScale,
) -> ParticleShards | None:
    """Checks that all processes make the same call, and returns them."""
    shards = ParticleShards.of(state)
    if shards is not None:
        shards.check_same(
            prompt=call.arguments.prompt,
            reward_prompt=list(call.texts),
            num_inference_steps=call.arguments.num_inference_steps,
            alignment=(type(method).__name__, method.num_particles),
            generator=random.states(),
            latents=call.arguments.latents,
            reward=[] if reward is None else [each.name for each in getattr(reward, "rewards_of_rows", (reward,))],
            reward_scale=scale,
        )
    return shards

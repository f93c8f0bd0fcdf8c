"""What a run does where its reward fails."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..core.checks import check_choice
from ..core.deferred import checks_at_once, faults_shown_to, require
from ..core.interruption import Interrupted, pause
from ..core.memory_errors import want_of_memory
from ..core.pending import Pending
from ..rewards.base import Reward
from ..rewards.errors import LimitError, RefusedError, UnavailableError, first_line
from ..rewards.output import RewardOutput
from .execution import Execution
from .faults import NotFiniteError

logger = logging.getLogger(__name__)

REWARD_ERRORS = ("raise", "retry", "skip")
RETRY_DELAYS = (0.5, 1.0, 2.0)
"""Seconds before each further call of a reward that has failed."""

Result = TypeVar("Result")
Scored = TypeVar("Scored", RewardOutput, Pending[RewardOutput])
"""What a method of a reward returns."""


def is_of_reward(error: Exception) -> bool:
    """Whether an exception raised while a reward scores is a failure of that reward."""
    return not isinstance(error, Interrupted | NotFiniteError) and want_of_memory(error) is None


@dataclass
class RewardErrors:
    """What a run does where its reward fails: raises an exception, or returns what cannot be read as finite scores.

    Attributes:
        action: `raise` lets the reward's own exception through. `retry` calls the reward again after `RETRY_DELAYS`
            first, which suits rewards on a network. `skip` calls it again image by image, and goes on without those
            that fail: their reward is NaN and stands for a value of `-inf`, without a gradient. Neither does what is of
            no use, as the reward says by its exception; see `rewards.errors`.
        raised: the last exception of a reward, by which a run knows whose one is.
        num_skipped: how many scores are NaN.

    Raises:
        ValueError: `action` is none of these.
    """

    action: str = "raise"
    raised: Exception | None = None
    num_skipped: int = 0

    def __post_init__(self) -> None:
        check_choice("on_reward_error", self.action, REWARD_ERRORS)

    def retried(self, function: Callable[[], Result], delays: tuple[float, ...], again: Callable[[], None]) -> Result:
        """What a function that calls the reward returns, which is called once more after each delay while it fails.

        Args:
            function: the function.
            delays: seconds.
            again: called before each further call.
        """
        for delay in delays:
            try:
                return function()
            except Exception as error:
                if not is_of_reward(error) or isinstance(error, RefusedError):
                    raise
                logger.warning("The reward failed (%s), and is called again in %g s.", first_line(error), delay)
            pause(delay)
            again()
        return function()

    def scored(
        self,
        made_of: Callable[[RewardOutput], Tensor],
        execution: Execution,
        reward: Reward,
        call: Callable[..., Any],
        *rows: Tensor,
    ) -> Tensor | Pending[Tensor]:
        """What is made of the scores of rows, of which the last tensor are the images; pending where these are awaited.

        Args:
            made_of: is given the scores.
            execution, reward: as of `scores`.
            call: calls a reward with rows by its method that an `attrgetter` gets, `evaluate` or `begin`.
            *rows: indices, latents and images.
        """
        score = partial(call, attrgetter("evaluate"))
        if awaits(reward, rows[-1]):
            begin = partial(call, attrgetter("begin"))
            return self.begun(execution, reward, begin, score, *rows).then(made_of)
        return made_of(self.scores(execution, reward, score, *rows))

    def begun(
        self,
        execution: Execution,
        reward: Reward,
        begin: Callable[..., Pending[RewardOutput]],
        score: Callable[..., RewardOutput],
        *rows: Tensor,
    ) -> Pending[RewardOutput]:
        """The scores as of `scores`, whose first call is begun by `begin` here, and awaited when they are."""
        try:
            with execution.around_reward():
                first = [begin(*rows)]
        except Exception as error:
            first = [Pending(partial(_raise, error))]

        def await_or_score(*rows: Tensor) -> RewardOutput:
            return first.pop().result() if first else score(*rows)

        def cancel() -> None:
            with execution.around_reward():
                for pending in first:
                    pending.cancel()

        return Pending(lambda: self.scores(execution, reward, await_or_score, *rows), cancel)

    def scores(
        self, execution: Execution, reward: Reward, score: Callable[..., RewardOutput], *rows: Tensor
    ) -> RewardOutput:
        """The scores of rows, of which the last tensor are the images; NaN for those that are skipped.

        Args:
            execution: evaluates rows, and counts further calls.
            reward: which is called.
            score: maps the rows to their scores.
            *rows: indices, latents and images.
        """
        with execution.around_reward():
            return self._scores(execution, reward, score, *rows)

    def _scores(
        self, execution: Execution, reward: Reward, score: Callable[..., RewardOutput], *rows: Tensor
    ) -> RewardOutput:
        images = rows[-1]

        def again() -> None:
            if execution.shards is None and execution.is_interrupted():
                raise Interrupted
            execution.cost.reward_calls += len(images)

        def score_finite(*rows: Tensor) -> RewardOutput:
            # Where a graph is checkpointed, this is called once more on the way back.
            try:
                # Who calls again has to know at once.
                with faults_shown_to(self._noted) if self.action == "raise" else checks_at_once():
                    output = self.retried(lambda: score(*rows), RETRY_DELAYS if self.action == "retry" else (), again)
                    check_no_nan(reward, output)
            except Exception as error:
                self._noted(error)
                raise
            return output

        outputs: list[RewardOutput | None]
        try:
            return execution.checkpointed("reward", score_finite, *rows)
        except Exception as error:
            if self.action != "skip" or not is_of_reward(error) or isinstance(error, LimitError):
                raise
            failed = error
        # One image alone has just been tried.
        is_lost = len(images) == 1 or isinstance(failed, UnavailableError)
        outputs = [None] * len(images) if is_lost else self._one_by_one(execution, score_finite, *rows)
        missing = sum(output is None for output in outputs)
        if missing and not self.num_skipped:
            logger.warning(
                "Reward '%s' failed on %d of %d images (%s). They get no weight and the reward NaN; where all of a "
                "prompt's fail, they count as equal. This is said once a run.",
                *(reward.name, missing, len(images), first_line(failed)),
            )
        self.num_skipped += missing
        return _joined(reward, images, outputs)

    def _noted(self, error: Exception) -> None:
        self.raised = error if is_of_reward(error) else None

    def _one_by_one(
        self, execution: Execution, score: Callable[..., RewardOutput], *rows: Tensor
    ) -> list[RewardOutput | None]:
        """The scores of each row, after all of them together have failed; None where it fails by itself."""
        outputs: list[RewardOutput | None] = [None] * len(rows[0])
        for row in range(len(rows[0])):
            execution.cost.reward_calls += 1
            try:
                outputs[row] = execution.checkpointed("reward", score, *(part[row : row + 1] for part in rows))
            except Exception as error:
                if not is_of_reward(error) or isinstance(error, LimitError):
                    raise
                if isinstance(error, UnavailableError):
                    break
        return outputs


def awaits(reward: Reward, rows: Tensor) -> bool:
    """Whether the scores of latents or images are awaited later: what has a graph is evaluated at its place in it."""
    return reward.is_concurrent and not (torch.is_grad_enabled() and rows.requires_grad)


def _raise(error: Exception) -> RewardOutput:
    raise error


def check_no_nan(reward: Reward, output: RewardOutput) -> None:
    """Raises a `ValueError` for a NaN that has been made of finite scores: NaN stands for images without one."""
    require(
        output.total.isnan().logical_not(),
        lambda: ValueError(
            f"Reward '{reward.name}' makes NaN of the scores of its terms; mend its `transform`, or clip the scores"
        ),
    )


def _joined(reward: Reward, images: Tensor, outputs: list[RewardOutput | None]) -> RewardOutput:
    """The scores of all rows, NaN for those without."""
    scored = next((output for output in outputs if output is not None), None)
    names = reward.term_names if scored is None else list(scored.terms)
    nan = torch.full((1,), math.nan, device=images.device)
    # Of a graph whose gradient is zero.
    missing = [nan + 0 * images[row].float().sum() if images.requires_grad else nan for row in range(len(images))]
    total = [missing[row] if output is None else output.total for row, output in enumerate(outputs)]
    terms = {name: torch.cat([nan if output is None else output.terms[name] for output in outputs]) for name in names}
    if not reward.is_constrained:
        return RewardOutput(torch.cat(total), terms)
    violations = [None if output is None else output.violation for output in outputs]
    known = [missing[row] if violation is None else violation for row, violation in enumerate(violations)]
    return RewardOutput(torch.cat(total), terms, torch.cat(known))

"""Checkpoints of a run, each of which is complete or absent."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict

import torch
from torch import Tensor

from ..files.json_forms import fitted
from ..files.output import writing
from .errors import TrainingError
from .figures import SkippedUpdates
from .options.records import Options

if TYPE_CHECKING:
    from accelerate import Accelerator

_NAME = re.compile(r"checkpoint-[0-9]+")
_PARTIAL = ".partial"
_REPLACED = ".replaced"
_LEFT_BEHIND = re.compile(rf"{_NAME.pattern}(\.old)?{re.escape(_PARTIAL)}")


ANOTHER = "resume from another checkpoint"
HELD_OUT = "num_validation_observations"


class _Average(TypedDict):
    shadow_params: list[Tensor]


# Not what accelerate's save_state writes: that holds the frozen base too, reads what is not accelerate's own as pickles
# of anything, and needs the base to be loaded, before which the options of a checkpoint are compared here.
class RunState(TypedDict):
    """The state of a run in every checkpoint, beside the state of the optimiser."""

    options: dict[str, str]
    weights: dict[str, Tensor]
    average: _Average | None
    schedule: dict[str, Any]
    scaler: dict[str, Any] | None
    skipped: SkippedUpdates
    # Earlier versions did not count them.
    seconds: NotRequired[float]


def decisive_options(options: Options, accelerator: Accelerator, num_taken: int = 0) -> dict[str, str]:
    """The options that a resumed run may not change, as text: they decide whether a checkpoint belongs to the run.

    Args:
        num_taken: rows that are held out of those that would be trained on. The option that says so decides only then.
    """
    decisive = {option.flag: str(value) for option, value in options.values() if not option.may_change}
    if num_taken:
        decisive[HELD_OUT] = str(options.validation.num_validation_observations)
    machine = {name: str(getattr(accelerator, name)) for name in ("mixed_precision", "num_processes")}
    return {**decisive, **machine}


def _of_earlier_versions() -> dict[str, str]:
    """The values of options that a checkpoint does not name, as it is older: defaults, which change nothing."""
    return {option.flag: str(option.default) for option, _ in Options().values() if not option.may_change}


class Checkpoints:
    """The checkpoints of a run, `checkpoint-<step>` in its output folder.

    A checkpoint is written under another name and renamed when it is complete; before it is deleted it is renamed, too.
    If a run dies while it replaces a checkpoint, the next run puts the old one back.

    Args:
        folder: output folder of the run.
        total_limit: number of checkpoints to keep; None for all.
        process_index, num_processes: index of this process, and number of all.
        one_state: whether the first process writes the state for all; else each process writes its own.
        barrier: waits for all processes.

    Raises:
        UnwritableError: the folder cannot be made, or the remains of an earlier run in it cannot be put in order.
    """

    def __init__(
        self,
        folder: Path,
        total_limit: int | None = None,
        process_index: int = 0,
        num_processes: int = 1,
        one_state: bool = True,
        barrier: Callable[[], None] = lambda: None,
    ) -> None:
        self.folder, self.total_limit, self.barrier = folder, total_limit, barrier
        self.process_index = process_index
        self.num_states = 1 if one_state else num_processes
        self.is_first = process_index == 0
        if self.is_first:
            with writing(folder):
                folder.mkdir(parents=True, exist_ok=True)
                self._put_in_order()
        barrier()

    def _put_in_order(self) -> None:
        """Finishes the renamings and deletions that a killed run had begun."""
        for path in list(self.folder.iterdir()):
            final = path.with_suffix("")
            if path.suffix == _REPLACED and _NAME.fullmatch(final.name):
                if final.exists():
                    shutil.rmtree(path)
                else:
                    os.replace(path, final)
            elif _LEFT_BEHIND.fullmatch(path.name):
                shutil.rmtree(path)

    def save(self, step: int, state: dict[str, Any], write_more: Callable[[Path], None] | None = None) -> None:
        """Writes the state at a step; called by all processes.

        Args:
            state: tensors in dictionaries and lists.
            write_more: writes further files of all processes into the folder that it is given.

        Raises:
            UnwritableError: the checkpoint cannot be written; the existing ones stay.
        """
        final = self.folder / f"checkpoint-{step}"
        partial = final.with_name(final.name + _PARTIAL)
        with writing(final):
            try:
                partial.mkdir(exist_ok=True)
                if self.process_index < self.num_states:
                    torch.save({**state, "step": step, "num_states": self.num_states}, partial / self._file_name())
                if write_more is not None:
                    write_more(partial)
            except Exception:
                # Half of one takes room that the next needs.
                shutil.rmtree(partial, ignore_errors=True)
                raise
        self.barrier()
        if self.is_first:
            replaced = final.with_name(final.name + _REPLACED)
            if final.exists():
                os.replace(final, replaced)
            os.replace(partial, final)
            if replaced.exists():
                self._delete(replaced)
            if self.total_limit:
                self._keep(final, self.total_limit)
        self.barrier()

    def _keep(self, newest: Path, count: int) -> None:
        """Deletes all checkpoints but so many: those kept are the last written one and those of the highest steps."""
        others = [checkpoint for checkpoint in self.complete() if checkpoint != newest]
        for checkpoint in others[: max(len(others) - (count - 1), 0)]:
            self._delete(checkpoint)

    def check_none_is_ahead(self, step: int) -> None:
        """Checks that there is no checkpoint beyond the step from which a run starts: it would be another run's.

        Raises:
            TrainingError: there is such a checkpoint.
        """
        newest = self.complete()[-1:]
        if newest and _step_of(newest[0]) > step:
            raise TrainingError(
                f"--output_dir {self.folder} holds {newest[0].name} already, and this run starts at step {step}; give "
                "--resume_from_checkpoint latest, name another --output_dir, or delete the later checkpoints"
            )

    def complete(self) -> list[Path]:
        """The complete checkpoints, oldest first."""
        found = (path for path in self.folder.iterdir() if _NAME.fullmatch(path.name) and path.is_dir())
        return sorted(found, key=_step_of)

    def find(self, name: str) -> Path | None:
        """The checkpoint of a name or a path, or for `latest` the latest one; None if there is no latest.

        Raises:
            TrainingError: the named checkpoint does not exist.
        """
        if name == "latest":
            complete = self.complete()
            return complete[-1] if complete else None
        for path in (Path(name), self.folder / name):
            if path.is_dir() and _NAME.fullmatch(path.name):
                return path
        there = ", ".join(path.name for path in self.complete()) or "none"
        raise TrainingError(f"--resume_from_checkpoint {name} is no checkpoint; there are {there}")

    def load(self, checkpoint: Path) -> dict[str, Any]:
        """The state of this process.

        Raises:
            TrainingError: the checkpoint holds states of another number of processes, cannot be read, or holds no
                state.
        """
        num_states = len(list(checkpoint.glob("state-*.pt")))
        if num_states != self.num_states:
            raise TrainingError(
                f"{checkpoint} holds the states of {num_states} processes, and this run has {self.num_states}; "
                "start as many processes, with the same kind of distribution"
            )
        try:
            state = torch.load(checkpoint / self._file_name(), map_location="cpu", weights_only=True)
        except Exception as error:
            # A damaged archive fails in as many ways as it has parts.
            raise TrainingError(f"{checkpoint} cannot be read; {ANOTHER}") from error
        if not isinstance(state, dict) or type(state.get("step")) is not int or state["step"] < 0:
            raise TrainingError(f"{checkpoint} holds no state of a run; {ANOTHER}")
        return state

    @staticmethod
    def check_same_run(checkpoint: Path, state: Mapping[str, Any], now: Mapping[str, Any]) -> None:
        """Checks that a state is a `RunState`, and compares the options that decide a run with those of this one.

        Raises:
            ForeignFileError: it is no `RunState`.
            TrainingError: an option differs.
        """
        written = fitted(state, RunState, f"the state in '{checkpoint}'", ANOTHER)["options"]
        then = {**_of_earlier_versions(), **written}
        for name in [*then, *now]:
            if then.get(name) == now.get(name):
                continue
            if name == HELD_OUT:
                raise TrainingError(
                    f"{checkpoint} is of a run that held out {then.get(name, 'none')} of its rows, and this one holds "
                    f"out {now.get(name, 'none')}; resume with the same --validation_metrics and --{HELD_OUT}, or "
                    "start a new run in another --output_dir"
                )
            raise TrainingError(
                f"{checkpoint} is of a run with --{name} {then.get(name)}, and this one has {now.get(name)}; "
                "resume with its options, or start a new run in another --output_dir"
            )

    def _file_name(self) -> str:
        return f"state-{self.process_index if self.num_states > 1 else 0}.pt"

    def _delete(self, checkpoint: Path) -> None:
        doomed = checkpoint.with_name(f"{checkpoint.name}.old{_PARTIAL}")
        os.replace(checkpoint, doomed)
        shutil.rmtree(doomed)


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])

"""What a run has cost, so that methods can be compared at equal cost."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass
class Cost:
    """Counts over all images and particles of a run: of everything that was evaluated, even if in vain for memory.

    Attributes:
        network_evaluations: forward passes of the network, one a row; a row under classifier-free guidance counts 2.
        backward_passes: backward passes through the network, counted like its evaluations.
        decodes: latents brought to images.
        reward_calls: images scored, with those on which a call tries its reward before it samples.
        seconds: wall-clock time of the sampling loop, rewards and decoding included.

    Example:
        >>> Cost(network_evaluations=24).network_evaluations
        24
    """

    network_evaluations: int = 0
    backward_passes: int = 0
    decodes: int = 0
    reward_calls: int = 0
    seconds: float = 0.0

    @property
    def equivalent_evaluations(self) -> int:
        """Network evaluations with each backward pass counted as two."""
        return self.network_evaluations + 2 * self.backward_passes

    def as_dict(self) -> dict[str, float]:
        return {**asdict(self), "equivalent_evaluations": self.equivalent_evaluations}

    def __str__(self) -> str:
        return (
            f"{self.network_evaluations} network evaluations, {self.backward_passes} backward passes, "
            f"{self.decodes} decodes, {self.reward_calls} reward calls, {self.seconds:.1f} s"
        )

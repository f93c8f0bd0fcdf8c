"""What the flow schedulers of this package take over from the configurations of stock ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

from diffusers import ConfigMixin


class FlowOptionsMixin(ConfigMixin):
    """Configurations of stock flow schedulers for a scheduler with the options of `FlowMatchEulerDiscreteScheduler`.

    Attributes:
        instead: what serves models that are not flows.
    """

    # Their configurations hold options of their own, which are kept without a word.
    _compatibles: ClassVar[list[str]] = [
        "DPMSolverMultistepScheduler",
        "FlowMatchEulerDiscreteScheduler",
        "FlowMatchHeunDiscreteScheduler",
        "UniPCMultistepScheduler",
    ]
    instead: ClassVar[str]

    @staticmethod
    def _refuse_unsupported(options: Mapping[str, Any]) -> None:
        """Raises a `ValueError` for options of the stock scheduler that stochastic transitions cannot honour."""
        for name, reason in (
            ("invert_sigmas", "rising sigmas are not supported"),
            ("stochastic_sampling", "the transitions are stochastic themselves"),
        ):
            if options.get(name):
                raise ValueError(f"{name} is True, but {reason}; pass {name}=False")

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], return_unused_kwargs: bool = False, **kwargs: Any
    ) -> Self | tuple[Self, dict[str, Any]]:
        """Makes this scheduler of another flow scheduler's configuration.

        Args:
            config: of a stock scheduler; `flow_shift`, which SANA's scheduler has in place of `shift`, is understood.
            return_unused_kwargs: whether options that were not used are returned too.
            **kwargs: options that take precedence over the configuration.

        Raises:
            ValueError: the configuration is not one of rectified flow.
        """
        prediction_type = config.get("prediction_type", "flow_prediction")
        if prediction_type != "flow_prediction":
            raise ValueError(
                f"config has prediction_type {prediction_type!r}, which is not that of a flow; use {cls.instead}"
            )
        if "flow_shift" in config and "shift" not in config:
            kwargs.setdefault("shift", config["flow_shift"])
        return super().from_config(config, return_unused_kwargs, **kwargs)

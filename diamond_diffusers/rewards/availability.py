"""Whether a reward can be used on this machine as it is."""

from __future__ import annotations

import importlib

from .base import Reward
from .errors import first_line
from .registry import Registered, required_arguments


def availability(registered: Registered) -> str:
    """What a registered reward still needs before its first score, or "yes" if nothing. Loads no weights.

    Args:
        registered: the class or function that `registered_reward` returns.
    """
    return "".join(verdict_and_details(registered))


def verdict_and_details(registered: Registered) -> tuple[str, str]:
    """The same in two parts, of which the first is a few words and can stand alone."""
    import_package = getattr(registered, "import_package", importlib.import_module)
    for package in getattr(registered, "requires", ()):
        try:
            import_package(package)
        except Exception as error:
            return f"no: package {package}", f" does not import ({first_line(error)})"
    if required := required_arguments(registered):
        return "in Python", f", with {', '.join(required)}"
    absent: list[str] = []
    if isinstance(registered, Reward) or (isinstance(registered, type) and issubclass(registered, Reward)):
        absent = registered.missing_downloads()
    return ("after download", f" of {', '.join(absent)}") if absent else ("yes", "")

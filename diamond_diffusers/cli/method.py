"""How the command line describes an alignment method: a name or a file, options, and flags for frequent options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..alignment import AUTO

if TYPE_CHECKING:
    from ..alignment.base import Method
    from ..core.model import Model

FLAGS = {
    "--num-particles": "num_particles",
    "--posterior": "posterior",
    "--num-inner-steps": "posterior.num_inner_steps",
    "--num-lookaheads": "posterior.num_samples",
    "--gradient": "guide.gradient",
    "--guidance-strength": "guide.strength",
}
"""Other spellings of frequent options."""

LOOK_AHEAD_FLAGS = ("--num-inner-steps", "--num-lookaheads")
FORM_SUFFIXES = (".json", ".yaml", ".yml")


@dataclass(frozen=True)
class MethodRequest:
    """A method as the command line describes it.

    Attributes:
        form: its name, or its serial form.
        options: by dotted path, which change those of the form.
        flags: by the path that one stands for: the flag and its value.
    """

    form: str | Mapping[str, Any]
    options: Mapping[str, Any] = field(default_factory=dict)
    flags: Mapping[str, tuple[str, Any]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """By which errors call the method."""
        return self.form if isinstance(self.form, str) else str(self.form.get("name"))

    @property
    def is_auto(self) -> bool:
        """Whether the call is to choose its method by itself."""
        return self.form == AUTO

    def build(self, model: Model | None = None) -> Method:
        """The method; what is not given is its own default.

        Args:
            model: on which the settings of published methods depend.

        Raises:
            TypeError, ValueError: the name or an option is unknown, or has a value that is refused.
        """
        from ..alignment.named import as_method
        from ..core.serial import UnknownOptionError, nested, with_options

        form = self.form if isinstance(self.form, str) else nested(self.form)
        try:
            return with_options(as_method(form, model), nested(self.options))
        except UnknownOptionError as error:
            if error.path not in self.flags:
                raise
            flag, value = self.flags[error.path]
            raise ValueError(f"{flag} is {value}, but {error.owner} does not use it; drop {flag}") from error


def method_request(
    form: str | Mapping[str, Any], flags: Mapping[str, Any], options: Sequence[str] = ()
) -> MethodRequest:
    """What the command line asks for.

    Args:
        form: a name, the path of a `.json` or `.yaml` file with a serial form, or such a form.
        flags: values of those in `FLAGS`; None where they are not given.
        options: texts such as "posterior.num_samples=4".

    Raises:
        TypeError, ValueError: the file cannot be read, an option is malformed or given twice, or a flag is of no use to
            the method.
    """
    if isinstance(form, str) and form.lower().endswith(FORM_SUFFIXES):
        form = read_form(Path(form))
    spelled = parsed_options(options)
    request = MethodRequest(form)
    given = {flag: value for flag, value in flags.items() if value is not None}
    paths = _paths_of(given, request) if given else {}
    for path, (flag, value) in paths.items():
        if path in spelled:
            raise ValueError(f"{flag} is {value}, which -o {path}={spelled[path]} would replace; drop one of them")
    found = {path: value for path, (_, value) in paths.items()} | spelled
    names_posterior = "posterior" in found or "posterior.name" in found
    idle = [] if names_posterior else [flag for flag in LOOK_AHEAD_FLAGS if flag in given]
    if idle:
        raise ValueError(
            f"{idle[0]} is {given[idle[0]]}, but {' and '.join(LOOK_AHEAD_FLAGS)} describe look-aheads; add "
            "--posterior glass"
        )
    return MethodRequest(form, found, paths)


def read_form(path: Path) -> Mapping[str, Any]:
    """The serial form of a method in a file of JSON or YAML.

    Raises:
        ForeignFileError: the file cannot be read, or holds none.
    """
    from ..files.foreign import ForeignFileError, read_json
    from ..files.yaml_files import read_yaml

    remedy = "give a file with the 'name' of a method and its options"
    form = (read_json if path.suffix.lower() == ".json" else read_yaml)(path, remedy)
    if not isinstance(form, Mapping) or not isinstance(form.get("name"), str):
        raise ForeignFileError(f"--alignment is '{path}', which names no method; {remedy}")
    return form


def parsed_options(options: Sequence[str]) -> dict[str, str]:
    """Texts such as "posterior.num_samples=4" by the path of the option."""
    found: dict[str, str] = {}
    for option in options:
        path, equals, value = option.partition("=")
        if not (path and equals):
            raise ValueError(
                f"--option is {option!r}; give NAME=VALUE, such as num_particles=8 or posterior.num_samples=4"
            )
        if path in found:
            raise ValueError(f"--option gives {path!r} twice; give it once")
        found[path] = value
    return found


def _paths_of(flags: Mapping[str, Any], request: MethodRequest) -> dict[str, tuple[str, Any]]:
    """By the path of the option that each flag stands for on a method: the flag and its value."""
    from ..core.serial import option_names

    method = request.build()
    names = set(option_names(type(method)))
    if not method.needs_reward:
        # Plain sampling has particles too, but nothing to choose among them by.
        names.discard("num_particles")
    paths: dict[str, tuple[str, Any]] = {}
    for flag, value in flags.items():
        path = FLAGS[flag]
        if path.partition(".")[0] not in names:
            raise ValueError(f"{flag} is {value}, but alignment {request.name!r} does not use it; drop {flag}")
        paths[path] = (flag, value)
    return paths

"""The serial form of methods and their parts: plain values, which JSON, YAML and the command line can hold.

A part is an object of a class that a `Registry` knows by name, such as a posterior sampler. Its serial form is its name
and its options, in which parts are nested. Records, saved models and the command line all use it.

Example:
    >>> from diamond_diffusers import GlassPosterior, SMC
    >>> from diamond_diffusers.alignment.methods import METHODS
    >>> smc = from_dict(METHODS, {"name": "smc", "num_particles": 8, "posterior": {"name": "glass", "num_samples": 2}})
    >>> smc == SMC(num_particles=8, posterior=GlassPosterior(num_samples=2))
    True
    >>> with_options(smc, {"posterior.num_samples": "4"}).posterior.num_samples
    4
    >>> to_dict(smc)["posterior"]
    {'name': 'glass', 'num_inner_steps': 4, 'num_samples': 2, 'solver': 'exponential'}
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from types import NoneType
from typing import Any, TypeVar, Union, get_args

from .conversions import Texts, Values, WrongTypeError, field_hints, members
from .registry import REGISTRIES, Registry, bases_of
from .wording import did_you_mean, shown

Part = TypeVar("Part")

NAME = "name"
"""The key under which a serial form holds the name of its part."""
_TEXTS = Texts()


class UnknownOptionError(ValueError):
    """A part does not have an option.

    Attributes:
        path: that was given, such as "posterior.num_samples".
        owner: the part without such an option, such as "posterior 'denoiser'".
    """

    def __init__(self, path: str, owner: str, options: Sequence[str], place: str = "") -> None:
        name = path.rpartition(".")[2]
        known = f"choose one of {', '.join(options)}" if options else "it has none; leave it out"
        where = f"{place} takes {owner}, which" if place else owner
        super().__init__(f"{where} has no option {name!r}{did_you_mean(name, options)}; {known}")
        self.path, self.owner = path, owner


def to_dict(part: Any) -> dict[str, Any]:
    """The serial form of a part.

    Args:
        part: a dataclass object: of a registered class, or a record of options that is in no registry. A class that is
            not registered is given under its dotted name, which `from_dict` refuses.

    Returns:
        `{"name": ..., <option>: ...}`, without a name for a record. Numbers that are not finite become the texts `inf`,
        `-inf` and `nan`. Fields that are not compared or not arguments of the class are left out.
    """
    registry, cls = registry_of(type(part)), type(part)
    named = {}
    if registry is not None:
        named = {NAME: registry.name_of(cls) or f"{cls.__module__}.{cls.__qualname__}"}
    return named | {option: _plain(getattr(part, option)) for option in _serial_fields(cls)}


def from_dict(registry: Registry[type[Part]], form: str | Mapping[str, Any], argument: str | None = None) -> Part:
    """The part of a serial form; what the form leaves out has its default.

    Args:
        registry: of the part.
        form: as `to_dict` returns it, or a name alone. Options are as of `with_options`.
        argument: by which the caller knows the form, for errors; by default the registry's kind.

    Raises:
        UnknownOptionError: the part has no such option.
        ValueError: the name is unknown or that of a class that is not registered, an option has another type or is
            missing, or the part refuses it.
    """
    form = {NAME: form} if isinstance(form, str) else form
    where = argument or registry.kind
    if not isinstance(form, Mapping) or NAME not in form:
        raise ValueError(f"{where} is {shown(form)}; give a name, or a mapping with a {NAME!r} and options")
    return _named(registry, object, form, "", where)


def with_options(part: Part, options: Mapping[str, Any]) -> Part:
    """A part with other options, of its own and of parts within it.

    Args:
        options: a nested mapping, or dotted paths, as in `{"posterior": "glass", "posterior.num_samples": 4}`. A part
            is given by its name, and then starts from its defaults; options of one that is not named change the one
            that is there, or, where there is none, the default one. Values have the type of the option, or are texts:
            "none" (or "null") for None, "inf" for infinity, "true" and "false", commas between several.

    Raises:
        UnknownOptionError: there is no such option.
        ValueError: an option has another type, or the part refuses it.
    """
    return _changed(part, nested(options), "")


def nested(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options with dotted paths as nested ones; the name of a part that has options too becomes one of them.

    Example:
        >>> nested({"posterior": "glass", "posterior.num_samples": 4, "num_particles": 8})
        {'posterior': {'name': 'glass', 'num_samples': 4}, 'num_particles': 8}
    """
    tree: dict[str, Any] = {}
    for path, value in options.items():
        first, _, rest = str(path).partition(".")
        if rest:
            value = nested({rest: value})
        elif isinstance(value, Mapping):
            value = nested(value)
        tree[first] = _merged(tree[first], value) if first in tree else value
    return tree


def registry_of(cls: type) -> Registry[Any] | None:
    """The registry whose entries a class belongs to; None where it belongs to none."""
    bases = bases_of(cls)
    return next((registry for registry in REGISTRIES if registry.base in bases), None)


def option_names(cls: type) -> list[str]:
    """The options of a class in their order."""
    return list(_serial_fields(cls))


def _serial_fields(cls: type) -> dict[str, dataclasses.Field[Any]]:
    fields = dataclasses.fields(cls) if dataclasses.is_dataclass(cls) else ()
    return {field.name: field for field in fields if field.init and field.compare}


def _plain(value: Any) -> Any:
    if isinstance(value, type):
        return f"{value.__module__}.{value.__qualname__}"
    if dataclasses.is_dataclass(value) or registry_of(type(value)) is not None:
        return to_dict(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value) if math.isfinite(value) else str(float(value))
    # What has no plain form is shown, and refused when it is read back.
    return str(value)


def _merged(old: Any, new: Any) -> Any:
    if not isinstance(old, Mapping) and not isinstance(new, Mapping):
        return new
    old, new = (part if isinstance(part, Mapping) else {NAME: part} for part in (old, new))
    shared = {key: _merged(old[key], new[key]) for key in old if key in new}
    return {**old, **new, **shared}


def _changed(part: Part, tree: Mapping[str, Any], place: str) -> Part:
    found = _arguments(type(part), tree, place, lambda option: getattr(part, option))
    return dataclasses.replace(part, **found) if found else part  # type: ignore[type-var]


def _named(registry: Registry[Any], kind: type, form: Mapping[str, Any], place: str, where: str) -> Any:
    """The part that a form with a name stands for; it has to be of a kind."""
    name = form[NAME]
    if isinstance(name, str) and "." in name and name not in registry:
        first, _, rest = name.partition(".")
        if first in registry:
            raise ValueError(f"{where} is {name!r}; give the name {first!r} and {rest!r} as an option of its own")
        raise ValueError(
            f"{where} is {name!r}, a class that is not registered; decorate it with "
            f'@{registry.plural.upper()}.register("...") and give that name'
        )
    cls = registry.get(name, argument=where) if isinstance(name, str) else None
    if cls is None or not issubclass(cls, kind):
        fitting = [each for each in registry.names() if issubclass(registry.get(each), kind)]
        raise ValueError(f"{where} is {shown(name)}; choose one of {', '.join(fitting)}")
    return _built(cls, {key: value for key, value in form.items() if key != NAME}, place)


def _built(cls: type, tree: Mapping[str, Any], place: str) -> Any:
    """An object of a class, of its defaults where a tree of options does not say."""
    found = _arguments(cls, tree, place, lambda option: _default(cls, option))
    fields = dataclasses.fields(cls) if dataclasses.is_dataclass(cls) else ()
    missing = [each.name for each in fields if each.init and each.name not in found and not _has_default(each)]
    if missing:
        remedy = "give it" if missing[0] in _serial_fields(cls) else "make the object in Python"
        given = f"{place} is {shown(tree)}, but " if place and registry_of(cls) is None else ""
        raise ValueError(f"{given}{_owner(cls)} needs the option {missing[0]!r}, which has no default; {remedy}")
    return cls(**found)


def _arguments(cls: type, tree: Mapping[str, Any], place: str, current: Callable[[str], Any]) -> dict[str, Any]:
    """Options of a class as its fields are typed.

    Args:
        place: path that leads to the object, for errors.
        current: gives the value that an option has before.
    """
    known, found = _serial_fields(cls), {}
    for option, raw in tree.items():
        path = f"{place}.{option}" if place else str(option)
        if option not in known:
            # The kind of a part says where it is; the name of a record's class need not.
            raise UnknownOptionError(path, _owner(cls), list(known), place if registry_of(cls) is None else "")
        found[option] = fitted_option(_TEXTS, raw, field_hints(cls)[option], path, current(option))
    return found


def fitted_option(values: Values, raw: Any, hint: Any, path: str, current: Any) -> Any:
    """A value as the annotation of an option asks for it; parts also from their names and their serial forms.

    Args:
        values: how plain values are taken.
        raw: to be taken.
        hint: the annotation, resolved.
        path: of the option, for errors.
        current: the part that a mapping without a name changes; None where there is none.

    Raises:
        WrongTypeError: it is of another type.
        ValueError: a part is unknown, or refuses one of its options.
    """
    kind = _part_kind(hint)
    if kind is None:
        return values.fitted(raw, hint, path)
    if isinstance(raw, kind):
        return raw
    is_optional = NoneType in get_args(hint)
    if is_optional and values.is_none(raw):
        return None
    others, before = [member for member in members(hint) if member not in (kind, NoneType)], ""
    if others:
        plain: Any = Union[tuple(others)]  # noqa: UP007 - of as many as there are
        try:
            return values.fitted(raw, plain, path)
        except WrongTypeError:
            before = f"{values.described(plain)}, or "
    return _part(values, raw, kind, path, current, before, f", or {values.words[NoneType]}" if is_optional else "")


def _part(values: Values, raw: Any, kind: type, path: str, current: Any, before: str, none: str) -> Any:
    """A part of some kind from its name, its form, or options that change the current one.

    Args:
        before: what errors say of values that are no parts, where such are allowed.
        none: what they say of None, where that is allowed.
    """
    registry = registry_of(kind)
    if isinstance(raw, type) and issubclass(raw, kind):
        raise WrongTypeError(f"{path} is {shown(raw)}; give an instance, {raw.__name__}()")
    if isinstance(raw, str) and registry is not None:
        raw = {NAME: raw}
    if not isinstance(raw, Mapping):
        raise WrongTypeError(f"{path} is {shown(raw)}; give {before}{_ways_to_give(values, kind, path)}{none}")
    raw = nested(raw)
    if registry is not None and NAME in raw:
        return _named(registry, kind, raw, path, path)
    if current is not None:
        return _changed(current, raw, path)
    if inspect.isabstract(kind):
        names = "" if registry is None else f": {', '.join(registry.names())}"
        lack = f"none, which has no option {next(iter(raw))!r}" if raw else "{}, which names none"
        raise ValueError(f"{path} is {lack}; name one first{names}")
    return _built(kind, raw, path)


def _ways_to_give(values: Values, kind: type, path: str) -> str:
    """How a part of some kind is given, for errors."""
    registry = registry_of(kind)
    if registry is None:
        options = {option: _default(kind, option) for option in option_names(kind)}
        spelled = next((f"{path}.{option}={default}" for option, default in options.items()), None)
        return values.ways_to_give_a_record(kind, spelled)
    fitting = {name: entry for name in registry.names() if issubclass(entry := registry.get(name), kind)}
    return values.ways_to_give_a_part(next(iter(fitting.values()), kind), list(fitting))


def _part_kind(hint: Any) -> type | None:
    """The class of the parts that a field holds, perhaps beside others; None where it holds plain values."""
    for kind in members(hint):
        if isinstance(kind, type) and (dataclasses.is_dataclass(kind) or registry_of(kind) is not None):
            return kind
    return None


def _has_default(field: dataclasses.Field[Any]) -> bool:
    return field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING


def _default(cls: type, option: str) -> Any:
    field = _serial_fields(cls)[option]
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return None if field.default is dataclasses.MISSING else field.default


def _owner(cls: type) -> str:
    registry = registry_of(cls)
    name = None if registry is None else registry.name_of(cls)
    return cls.__name__ if registry is None or name is None else f"{registry.kind} {name!r}"

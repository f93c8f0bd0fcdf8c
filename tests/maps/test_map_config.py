"""The configuration of a map is a file of others: read right, or refused in one sentence that names it."""

from __future__ import annotations

import codecs
import json
from pathlib import Path
from typing import Any

import pytest

from diamond_diffusers import SMC, GlassPosterior
from diamond_diffusers.alignment.named import as_method
from diamond_diffusers.core.serial import to_dict
from diamond_diffusers.maps.map_config import CONFIG_NAME, config_text, read_config, read_map_config

CONFIG = {
    "format_version": 1,
    "family": "flux",
    "base_model": "someone/base",
    "base_revision": None,
    "license": "mit",
    "base_config": {"network": "FluxTransformer2DModel", "axes_dims_rope": [8, 12, 12]},
    "path": {"path": "RectifiedFlowPath", "prediction_type": "velocity"},
    "condition_on_observation": False,
    "training": {"steps": 5, "data": "größer", "loss": "lagrangian"},
    "defaults": {"height": 64, "true_cfg_scale": 3, "negative_prompt": "", "alignment": "smc", "reward": None},
}


def write(folder: Path, content: bytes) -> Path:
    (folder / CONFIG_NAME).write_bytes(content)
    return folder


def changed(**settings: Any) -> bytes:
    return json.dumps({**CONFIG, **settings}).encode()


def without(*names: str) -> bytes:
    return json.dumps({name: value for name, value in CONFIG.items() if name not in names}).encode()


@pytest.mark.parametrize(
    "content",
    [
        json.dumps(CONFIG, ensure_ascii=False).encode(),
        codecs.BOM_UTF8 + json.dumps(CONFIG, ensure_ascii=False).encode(),
        json.dumps(CONFIG, ensure_ascii=False).encode("utf-16"),
        codecs.BOM_UTF16_BE + json.dumps(CONFIG, ensure_ascii=False).encode("utf-16-be"),
    ],
    ids=["utf-8", "marked utf-8", "utf-16", "big-endian"],
)
def test_unicode_is_read_whatever_its_encoding(content: bytes, tmp_path: Path) -> None:
    assert read_map_config(write(tmp_path, content)) == CONFIG


def test_what_may_be_missing_may_be(tmp_path: Path) -> None:
    content = without("license", "condition_on_observation")
    assert read_map_config(write(tmp_path, content)) == json.loads(content)


BROKEN = {
    "nested": (b"[" * 100_000, "is nested deeper than 64 levels"),
    "deep": (changed(training={"a": json.loads("[" * 70 + "]" * 70)}), "is nested deeper than 64 levels"),
    "repeated": (json.dumps(CONFIG).encode()[:-1] + b', "family": "sana"}', "the key 'family' comes twice"),
    "nan": (changed(defaults={"true_cfg_scale": float("nan")}), "is nan, which is no number"),
    "infinity": (changed(training={"x": [float("inf")]}), r"training\.x\[0\]"),
    "latin-1": (json.dumps(CONFIG, ensure_ascii=False).encode("latin-1"), "is not in UTF-8"),
    "empty": (b"", "is no JSON"),
    "digits": (b'{"format_version": ' + b"1" * 5000 + b"}", "is no JSON"),
    "list": (b"[1]", "is a list in place of an object"),
    "null": (b"null", "is null in place of an object|is None in place of an object"),
    "version": (changed(format_version=True), "has format_version True"),
    "no version": (without("format_version"), "has format_version None"),
    "no base model": (without("base_model"), "has no 'base_model'"),
    "no revision": (without("base_revision"), "has no 'base_revision'"),
    "no base config": (without("base_config"), "has no 'base_config'"),
    "no path": (without("path"), "has no 'path'"),
    "no training": (without("training"), "has no 'training'"),
    "no defaults": (without("defaults"), "has no 'defaults'"),
    "defaults": (changed(defaults=[1]), "defaults of .* is a list in place of an object"),
    "base config": (changed(base_config=[]), "base_config of .* is a list in place of an object"),
    "training": (changed(training="long"), "training of .* is 'long' in place of an object"),
    "family": (changed(family=None), "family of .* is None in place of a text"),
    "base": (changed(base_model=5), "base_model of .* is 5 in place of a text or null"),
    "empty base": (changed(base_model=""), "base_model of .* is '', which is no name"),
    "long base": (changed(base_model="a/" + "b" * 10_000), "which is no name"),
    "line in the licence": (changed(license="mit\nbase_model: evil"), "license of .* which is no name"),
    "observation": (changed(condition_on_observation=1), "is 1 in place of true or false"),
    "unknown": (changed(colour="red"), "has 'colour', which is unknown"),
    "guidance": (changed(defaults={"true_cfg_scale": "3"}), "true_cfg_scale among the defaults of .* is '3'"),
    "count": (changed(defaults={"height": 0}), "height among the defaults of .* is 0, not a whole number from 1"),
    "huge count": (changed(base_defaults={"num_inference_steps": 10**12}), "among the base_defaults of"),
    "truth": (changed(defaults={"width": True}), "width among the defaults of .* is True"),
    "method": (changed(defaults={"alignment": {"type": "SMC"}}), "alignment among the defaults of .* has no 'name'"),
    "method's name": (
        changed(defaults={"alignment": 3}),
        "among the .* is 3 in place of a text or an object",
    ),
    "huge method": (
        changed(defaults={"alignment": {"name": "smc", "posterior": {"num_samples": 10**12}}}),
        r"alignment\.posterior\.num_samples among the defaults of .* is above 100000",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_other_files_are_refused_in_a_sentence(name: str, tmp_path: Path) -> None:
    content, message = BROKEN[name]
    with pytest.raises(ValueError, match=message) as refused:
        read_map_config(write(tmp_path, content))
    assert str(tmp_path / CONFIG_NAME) in str(refused.value) and "\n" not in str(refused.value)


def test_defaults_without_a_map_are_checked_too(tmp_path: Path) -> None:
    declared = {"format_version": 1, "family": "flux", "defaults": {"height": 64}}
    assert read_config(write(tmp_path, json.dumps(declared).encode())) == declared
    for change, message in (({"defaults": [1]}, "in place of an object"), ({"color": 1}, "'color', which is unknown")):
        with pytest.raises(ValueError, match=message):
            read_config(write(tmp_path, json.dumps(declared | change).encode()))


class Method:
    def __repr__(self) -> str:
        return "Method()"


def endless() -> dict[str, Any]:
    nested: dict[str, Any] = {}
    nested["again"] = nested
    return nested


@pytest.mark.parametrize(
    ("defaults", "error", "message"),
    [
        ({"alignment": Method()}, TypeError, r"defaults\['alignment'\] is Method\(\), which cannot be saved"),
        ({"sigmas": [1.0, {2}]}, TypeError, r"defaults\['sigmas'\]\[1\] is \{2\}, which cannot be saved"),
        ({"sigmas": {1: 2}}, TypeError, r"defaults\['sigmas'\] has the key 1, which is no text"),
        ({"eta": float("inf")}, ValueError, r"defaults\['eta'\] is inf"),
        (endless(), ValueError, "is nested deeper than 64 levels"),
        ({"height": -1}, ValueError, "height among the defaults of what would be saved is -1"),
        ({"negative_prompt": "\ud800"}, ValueError, "no Unicode text"),
    ],
)
def test_what_could_not_be_read_again_is_not_written(
    defaults: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        config_text({**CONFIG, "defaults": defaults})


def test_a_method_with_options_is_written_and_read(tmp_path: Path) -> None:
    method = SMC(num_particles=8, posterior=GlassPosterior(num_samples=2))
    config = {**CONFIG, "defaults": {"alignment": to_dict(method)}}
    write(tmp_path, config_text(config).encode())
    read = read_config(tmp_path)
    assert read == config and as_method(read["defaults"]["alignment"]) == method


def test_what_is_written_is_read(tmp_path: Path) -> None:
    config = {**CONFIG, "defaults": {"sigmas": (1.0, 0.5), "height": 64}}
    write(tmp_path, config_text(config).encode())
    assert read_config(tmp_path) == {**CONFIG, "defaults": {"sigmas": [1.0, 0.5], "height": 64}}

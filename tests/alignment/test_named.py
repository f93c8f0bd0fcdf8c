"""Methods by name, and by their serial form."""

import re

import pytest

from diamond_diffusers import SMC, BestOfN, GlassPosterior
from diamond_diffusers.alignment.named import as_method
from diamond_diffusers.alignment.presets import PRESETS


def test_a_mapping_is_a_name_and_options():
    form = {"name": "smc", "num_particles": 8, "posterior": {"name": "glass", "num_samples": 2}}
    assert as_method(form) == SMC(num_particles=8, posterior=GlassPosterior(num_samples=2))
    assert as_method({"name": "best_of_n"}) == as_method("best_of_n") == BestOfN()


def test_options_change_a_published_method():
    assert as_method({"name": "fk_steering", "num_particles": 8}) == PRESETS.get("fk_steering")(num_particles=8)


@pytest.mark.parametrize(
    ("alignment", "error", "message"),
    [
        ({"name": "magic"}, ValueError, "alignment is 'magic'; choose one of beam_search"),
        ({"name": "smc", "luck": 1}, ValueError, "alignment 'smc' has no option 'luck'; choose one of"),
        ({"name": "fk_steering", "luck": 1}, ValueError, "alignment 'smc' has no option 'luck'; choose one of"),
        ({"name": "my_file.Mine"}, ValueError, "'my_file.Mine', a class that is not registered; decorate it with"),
        ({"num_particles": 1}, TypeError, "alignment is {'num_particles': 1}; give a method, such as SMC"),
        ({"name": 3}, TypeError, "alignment is {'name': 3}; give a method"),
        (3, TypeError, "alignment is 3; give a method"),
    ],
)
def test_what_is_no_method_gets_one_sentence(alignment, error, message):
    with pytest.raises(error, match=re.escape(message)):
        as_method(alignment)


def test_a_name_of_a_method_and_of_a_preset_is_refused(monkeypatch):
    monkeypatch.setitem(PRESETS._entries, "smc", lambda model=None, **options: BestOfN())
    with pytest.raises(ValueError, match=r"alignment is 'smc', the name of both a method and a preset; rename"):
        as_method("smc")


def test_a_preset_that_returns_no_method_is_refused(monkeypatch):
    monkeypatch.setitem(PRESETS._entries, "wrong", lambda model=None, **options: "smc")
    with pytest.raises(TypeError, match=r"the preset 'wrong' returned 'smc'; let it return a method"):
        as_method("wrong")

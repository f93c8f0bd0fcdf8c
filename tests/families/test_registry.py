"""A family is found by the class of its stock pipeline, and a user's own is added with one decorator."""

import pytest

from diamond_diffusers import register_family
from diamond_diffusers.core.registry import Registry
from diamond_diffusers.families import registry
from diamond_diffusers.families.flux import FluxFamily
from diamond_diffusers.families.registry import check_supported, family_of


@pytest.fixture
def own_families(monkeypatch):
    """A registry of the test's own, which has the package's families."""
    families = Registry("family", "families", registry.FAMILIES.folder, files=registry.FAMILIES.files)
    families._entries.update({name: registry.FAMILIES.get(name) for name in registry.FAMILIES})
    monkeypatch.setattr(registry, "FAMILIES", families)


def test_a_family_of_one_s_own(own_families):
    class MyPipeline: ...

    @register_family("MyPipeline", "MyOtherPipeline")
    class MyFamily(FluxFamily):
        name = "mine"

    assert type(family_of(MyPipeline())) is MyFamily
    assert check_supported("MyOtherPipeline") is MyFamily
    assert registry.FAMILIES.get("MyPipeline") is MyFamily and "FluxPipeline" in registry.FAMILIES.names()


def test_a_pipeline_class_has_one_family(own_families):
    with pytest.raises(ValueError, match=r"the family name 'FluxPipeline' belongs to .*FluxFamily; choose another"):

        @register_family("FluxPipeline")
        class MyFamily(FluxFamily): ...


def test_an_unknown_pipeline_is_refused_with_the_known_ones():
    with pytest.raises(TypeError, match=r"pipeline is a MyPipeline, .*; choose one of FluxPipeline, .*adding_a_family"):
        check_supported("MyPipeline")

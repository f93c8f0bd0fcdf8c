"""Everything that has a name: a file, a decorator or an entry point makes it known, and nothing is imported before."""

import importlib
from pathlib import Path

import pytest

from diamond_diffusers.alignment.methods import METHODS
from diamond_diffusers.alignment.presets import PRESETS
from diamond_diffusers.core.registry import Registry
from diamond_diffusers.families import FAMILIES
from diamond_diffusers.posteriors import POSTERIORS
from diamond_diffusers.rewards import REWARDS
from diamond_diffusers.transitions import TRANSITIONS

from ..plug_ins import install

FOLDERS = {registry.plural: registry for registry in (METHODS, PRESETS, POSTERIORS, TRANSITIONS, REWARDS, FAMILIES)}
NAMES = [(plural, name) for plural, registry in FOLDERS.items() for name in registry._own_modules]


@pytest.fixture
def shapes():
    registry = Registry("shape", "shapes")

    @registry.register("circle", aliases=["round-shape"])
    class Circle: ...

    return registry


class TestFolders:
    """Of each registry that has a folder: the names that are known from its files are those that its files register."""

    @pytest.mark.parametrize(("plural", "name"), NAMES)
    def test_a_name_is_registered_by_its_own_file(self, plural, name):
        registry = FOLDERS[plural]
        entry = registry.get(name)
        assert registry.get(registry.name_of(entry)) is entry
        module = registry._own_modules[name]
        assert f"{entry.__module__}.".startswith(f"{module}.")
        assert registry.files or registry.name_of(entry) == name

    @pytest.mark.parametrize("plural", FOLDERS)
    def test_every_file_is_an_entry_or_a_helper(self, plural):
        registry = FOLDERS[plural]
        folder = Path(importlib.import_module(registry.folder).__file__).parent
        if registry.files is not None:
            registered = {file.stem for file in folder.glob("*.py") if "\n@register_family(" in file.read_text()}
            assert set(registry.files.values()) == registered
        else:
            files = {path.stem for path in folder.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
            assert files - {"__init__"} == {*registry._own_modules, *registry.helpers}

    @pytest.mark.parametrize("plural", FOLDERS)
    def test_an_alias_stands_for_a_name(self, plural):
        assert set(FOLDERS[plural].aliases.values()) <= set(FOLDERS[plural].names())

    def test_a_name_of_the_package_s_own_is_taken_before_its_file_is_imported(self):
        with pytest.raises(ValueError, match=r"alignment name 'smc' belongs to diamond_diffusers.*; choose another"):
            METHODS.register("smc")(type("Mine", (), {}))


class TestDecorator:
    def test_makes_a_name_and_its_aliases_known(self, shapes):
        circle = shapes.get("circle")
        assert shapes.names() == ["circle"] and shapes.name_of(circle) == "circle"
        assert shapes.get("round-shape") is circle and "round-shape" in shapes and "square" not in shapes
        assert shapes.name_of(object) is None

    def test_a_definition_can_be_repeated_but_a_name_has_one_owner(self, shapes):
        def define():
            @shapes.register("square")
            class Square: ...

            return Square

        define()
        assert define() is shapes.get("square")
        for word in ("square", "round-shape"):
            with pytest.raises(ValueError, match=rf"the shape name '{word}' belongs to .*; choose another name"):
                shapes.register("other", aliases=[word])(type("Other", (), {}))
        assert shapes.names() == ["circle", "square"]

    def test_malformed_names_are_refused(self, shapes):
        with pytest.raises(ValueError, match=r"the shape name 'a-b' is no identifier; use letters"):
            shapes.register("a-b")
        with pytest.raises(ValueError, match=r"the shape alias 'a--b' is malformed; use letters"):
            shapes.register("a", aliases=["a--b"])

    def test_a_decorator_without_a_name_is_refused(self, shapes):
        with pytest.raises(TypeError, match=r"the shape name is <class .*>; decorate with the name in parentheses"):

            @shapes.register
            class Square: ...

    @pytest.mark.parametrize("entry", [lambda: None, type("Stranger", (), {})])
    def test_what_is_no_class_of_the_kind_is_refused(self, entry):
        with pytest.raises(
            TypeError, match=r"the transition 'stranger' is .*; give a class that derives from Transition"
        ):
            TRANSITIONS.register("stranger")(entry)
        assert "stranger" not in TRANSITIONS

    def test_an_unknown_name_is_refused_with_the_known_ones(self, shapes):
        with pytest.raises(
            ValueError, match=r"^shape is 'square'; choose one of circle, or import .* registers it \(--import"
        ):
            shapes.get("square")
        with pytest.raises(ValueError, match=r"^outline is 'square'; choose one of circle, or import"):
            shapes.get("square", argument="outline")

    @pytest.mark.parametrize("written", ["Circle", "circel"])
    def test_a_misspelt_name_is_told_the_nearest(self, shapes, written):
        with pytest.raises(ValueError, match=r"; did you mean 'circle'\?$"):
            shapes.get(written)
        with pytest.raises(ValueError) as error:
            shapes.get("square")
        assert "did you mean" not in str(error.value)


class TestEntryPoints:
    @pytest.fixture
    def plug_in(self, tmp_path, monkeypatch):
        """An installed distribution that offers a shape, one that cannot be imported, and one of a malformed name."""
        (tmp_path / "shape_plug_in.py").write_text("class Star: ...\n")
        entries = "star = shape_plug_in:Star\nbroken = shape_plug_in.absent:Star\nfour-star = shape_plug_in:Star\n"
        install(monkeypatch, tmp_path, "shape-plug-in", f"[diamond_diffusers.shapes]\n{entries}")

    def test_are_entries_like_others(self, plug_in, shapes):
        assert shapes.names() == ["broken", "circle", "four-star", "star"]
        assert shapes.get("star").__name__ == "Star" and shapes.name_of(shapes.get("star")) == "star"

    def test_one_that_does_not_import_is_named(self, plug_in, shapes):
        with pytest.raises(ImportError, match=r"shape 'broken' .* 'shape_plug_in.absent:Star', .*; mend or uninstall"):
            shapes.get("broken")

    def test_a_name_that_is_no_identifier_is_refused(self, plug_in, shapes):
        with pytest.raises(ImportError, match=r"'four-star' of an entry point in diamond_diffusers.shapes .*; rename"):
            shapes.get("four-star")

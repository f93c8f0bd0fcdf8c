"""The layouts in which images and their prompts are found, and what is refused."""

import json
import os
from pathlib import Path

import pytest
from PIL import Image

from diamond_diffusers.evaluation.benchmark.prompts import Prompt
from diamond_diffusers.evaluation.benchmark.records import RecordFolder
from diamond_diffusers.evaluation.judging.image_sets import find_image_sets

from .made_up import BEST, PLAIN, made_up_records

CATS = Prompt(0, "two cats", "counting", {"tag": "counting", "item_id": "coco12"})
DOGS = Prompt(1, "a red dog", "colors", {"tag": "colors", "item_id": "drawtext3"})


def draw(path, colour=(10, 20, 30)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), colour).save(path)


def benchmark_run(folder):
    for method, reward in ((BEST[12], 2.0), (PLAIN, 1.0)):
        records = RecordFolder(folder / "images" / method.label, {"seed": 0})
        for record in made_up_records(method, None, [reward, reward, reward, reward], num_images=2):
            records.add(record, Image.new("RGB", (8, 8)))
    return folder


def geneval_folder(folder):
    for prompt in (CATS, DOGS):
        inner = folder / f"{prompt.index:05d}"
        for number in range(2):
            draw(inner / "samples" / f"{number:04d}.png")
        (inner / "metadata.jsonl").write_text(
            json.dumps({"prompt": prompt.text, "tag": prompt.category, "include": []})
        )
    return folder


def table_folder(folder, rows=(("a.png", "two cats"), ("inner/b.jpg", "a red dog"))):
    for name, _ in rows:
        draw(folder / name)
    lines = [json.dumps({"file_name": name, "prompt": text, "noun_phrases": [text]}) for name, text in rows]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


def names(image_set):
    return [(image.name, image.prompt.index, image.prompt.text) for image in image_set.images]


def test_methods_of_a_benchmark_are_sets_of_their_own_with_plain_first(tmp_path):
    sets = find_image_sets([benchmark_run(tmp_path / "run")])
    assert [each.name for each in sets] == ["plain_6", "best_of_n_12"]
    assert names(sets[0])[:2] == [
        ("images/plain_6/0000_0.png", 0, "a star"),
        ("images/plain_6/0000_1.png", 0, "a star"),
    ]
    assert sets[1].images[0].figures == {"reward": 2.0, "budget used": 12.0}
    assert sets[1].images[0].prompt.category == "single_object"
    (alone,) = find_image_sets([tmp_path / "run" / "images" / "plain_6"])
    assert alone.name == "plain_6" and len(alone.images) == 4
    both = find_image_sets([tmp_path / "run", geneval_folder(tmp_path / "other")])
    assert [each.name for each in both] == ["run/plain_6", "run/best_of_n_12", "other"]


def test_plain_and_aligned_images_of_generate(tmp_path):
    images = []
    for number, text in enumerate(["a ring", "a star", "a ring"]):
        for run in ("plain", "aligned"):
            draw(tmp_path / f"{run}_{number:03d}.png")
        images.append(
            {"prompt": text, "seed": 0, **{run: {"file": f"{run}_{number:03d}.png"} for run in ("plain", "aligned")}}
        )
    (tmp_path / "record.json").write_text(json.dumps({"images": images}))
    plain, aligned = find_image_sets([tmp_path])
    assert names(plain) == [
        ("plain_000.png", 0, "a ring"),
        ("plain_001.png", 1, "a star"),
        ("plain_002.png", 0, "a ring"),
    ]
    assert aligned.name == "aligned"


def test_genevals_folders(tmp_path):
    (found,) = find_image_sets([geneval_folder(tmp_path / "model")])
    assert found.name == "model"
    assert names(found)[-1] == ("00001/samples/0001.png", 1, "a red dog")
    assert found.images[-1].prompt.metadata["include"] == [] and found.images[-1].prompt.category == "colors"


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_images_with_a_table(tmp_path, form):
    table_folder(tmp_path)
    if form == "csv":
        (tmp_path / "metadata.jsonl").unlink()
        (tmp_path / "metadata.csv").write_text(
            "file_name,prompt,noun_phrases\na.png,two cats,x\ninner/b.jpg,a red dog,x\n"
        )
    (found,) = find_image_sets([tmp_path])
    assert names(found) == [("a.png", 0, "two cats"), ("inner/b.jpg", 1, "a red dog")]
    assert list(found.images[0].prompt.metadata) == ["noun_phrases"]


def test_prompts_give_images_their_metadata(tmp_path):
    (found,) = find_image_sets([table_folder(tmp_path)], [CATS, DOGS])
    assert [image.prompt for image in found.images] == [CATS, DOGS]
    # Of two prompts with one text, that of the image's number.
    twin = Prompt(1, "two cats", "counting", {"item_id": "second"})
    folder = tmp_path / "geneval"
    geneval_folder(folder)
    (folder / "00001" / "metadata.jsonl").write_text(json.dumps({"prompt": "two cats"}))
    (found,) = find_image_sets([folder], [CATS, twin])
    assert [image.prompt for image in found.images] == [CATS, CATS, twin, twin]


@pytest.mark.parametrize("name", ["coco12", "coco12_3", "0", "0_0", "00000", "0000_2", "two cats_000000", "two cats"])
def test_images_named_after_their_prompts(tmp_path, name):
    draw(tmp_path / f"{name}.png")
    (found,) = find_image_sets([tmp_path], [CATS, DOGS])
    assert found.images[0].prompt == CATS


def broken(folder, how):
    """A folder in which something is wrong."""
    if how == "empty":
        folder.mkdir()
    elif how == "file":
        folder.write_text("")
    elif how == "no prompts":
        draw(folder / "a.png")
    elif how == "missing":
        table_folder(folder)
        (folder / "a.png").unlink()
    elif how == "twice":
        table_folder(folder, [("a.png", "two cats"), ("a.png", "a red dog")])
    elif how == "two forms":
        table_folder(folder, [("a.png", "two cats"), ("a.jpg", "two cats")])
    elif how == "no row":
        draw(table_folder(folder) / "c.png")
    elif how == "outside":
        draw(folder.parent / "x.png")
        table_folder(folder, [("../x.png", "two cats")])
    elif how == "no name":
        table_folder(folder)
        (folder / "metadata.jsonl").write_text('{"file_name": "", "prompt": "a cat"}')
    elif how == "no field":
        table_folder(folder)
        (folder / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "a cat"}')
    elif how == "no samples":
        geneval_folder(folder)
        for number in range(2):
            (folder / "00000" / "samples" / f"{number:04d}.png").unlink()
    elif how == "no metadata":
        geneval_folder(folder)
        (folder / "00000" / "metadata.jsonl").write_text("[]")
    elif how == "no image of a record":
        benchmark_run(folder)
        (folder / "images" / "plain_6" / "0000_0.png").unlink()
    elif how == "a record of another":
        benchmark_run(folder)
        os.rename(folder / "images/plain_6/0000_0.json", folder / "images/plain_6/0009_0.json")
    return folder


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("nothing", "FOLDER is '.*', which does not exist; give a run of"),
        ("file", "FOLDER is '.*', which is no folder; give a run of"),
        ("empty", "FOLDER is '.*', which holds no images; give a run of"),
        ("no prompts", "whose images come without prompts; put metadata.jsonl beside them"),
        ("missing", "a.png' does not exist; draw the image again"),
        ("twice", "names 'a.png' twice; remove one of the lines"),
        ("two forms", "has 'a.png' and 'a.jpg' for one image; remove one of the two"),
        ("no row", "has no row for 'c.png'; add one, or remove the image"),
        ("outside", "names '../x.png', which is no file within"),
        ("no name", "line 1 of '.*' names '', which is no file within"),
        ("no field", "line 1 of '.*' has no 'prompt'; give file_name and prompt"),
        ("no samples", "samples' holds no images; draw those of the prompt 'two cats'"),
        ("no metadata", "metadata.jsonl' is a list in place of an object; give the prompt's line of GenEval's"),
        ("no image of a record", "0000_0.png' does not exist; draw the image again"),
        ("a record of another", "holds the record of image 0000_0; give the run as it was written"),
    ],
)
def test_what_is_refused(tmp_path, how, message):
    with pytest.raises(ValueError, match=message) as refused:
        find_image_sets([broken(tmp_path / "folder", how)])
    assert "\n" not in str(refused.value)


def test_prompts_that_do_not_match(tmp_path):
    with pytest.raises(ValueError, match="was drawn for 'a red dog', which --prompts does not hold"):
        find_image_sets([table_folder(tmp_path / "a")], [CATS])
    draw(tmp_path / "b" / "fox_0.png")
    with pytest.raises(ValueError, match="is named after no prompt of --prompts; name it after the number"):
        find_image_sets([tmp_path / "b"], [CATS])
    with pytest.raises(ValueError, match="twice; name each folder once"):
        find_image_sets([tmp_path / "a", tmp_path / "b" / ".." / "a"])


def test_folders_of_one_name_go_by_their_paths(tmp_path, monkeypatch):
    folders = [table_folder(tmp_path / parent / "samples") for parent in ("x", "y")]
    assert [each.name for each in find_image_sets(folders)] == ["x/samples", "y/samples"]
    monkeypatch.chdir(tmp_path / "x")
    deeper = table_folder(tmp_path / "z" / "x" / "samples")
    # However they are spelled.
    found = find_image_sets([Path("samples"), Path("../z/x/samples")])
    assert [each.name for each in found] == [f"{tmp_path.name}/x/samples", "z/x/samples"] and deeper.is_dir()


def test_a_link_to_nowhere_is_a_missing_image(tmp_path):
    draw(tmp_path / "0.png")
    (tmp_path / "1.png").symlink_to("nowhere.png")
    with pytest.raises(ValueError, match=r"1\.png' does not exist; draw the image again"):
        find_image_sets([tmp_path], [CATS, DOGS])


def test_names_are_compared_as_they_are_read(tmp_path):
    draw(tmp_path / "a" / "cafe\u0301_0.png")
    (found,) = find_image_sets([tmp_path / "a"], [CATS, Prompt(7, "caf\u00e9")])
    assert found.images[0].prompt.index == 7
    (found,) = find_image_sets([table_folder(tmp_path / "b", [("./a.png", "a cat"), ("c//d.png", "a dog")])])
    assert [image.name for image in found.images] == ["a.png", "c/d.png"]

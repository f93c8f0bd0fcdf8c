"""Captioned images from every source, in an order that survives a restart."""

from __future__ import annotations

import json
import random
import re
from itertools import chain, islice

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict, Features, Image, Value
from PIL import Image as PILImage

from diamond_diffusers.files.foreign import ForeignFileError
from diamond_diffusers.training.data.batches import Order, batches_from
from diamond_diffusers.training.data.folder import ImageFolder
from diamond_diffusers.training.data.held_out import evenly_spaced, load_split_rows
from diamond_diffusers.training.data.images import Preparation, open_image
from diamond_diffusers.training.data.loading import load_captioned
from diamond_diffusers.training.data.miniature import MiniatureWorld
from diamond_diffusers.training.data.rows import Captioned
from diamond_diffusers.training.errors import TrainingError
from diamond_diffusers.training.options.parser import parse_options


def picture(number: int, size: tuple[int, int] = (24, 16)) -> PILImage.Image:
    """Its number in its left half, brighter on the right."""
    image = PILImage.new("RGB", size, (number, 0, 0))
    image.paste((number, 200, 0), (size[0] // 2, 0, *size))
    return image


def flat(lists) -> list:
    return list(chain.from_iterable(lists))


def given(*arguments):
    fixed = ("--pretrained_model_name_or_path", "miniature", "--report_to", "none")
    return parse_options([*fixed, *map(str, arguments)]).data


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    (folder / "more").mkdir(parents=True)
    for number, name in enumerate(("a.png", "b.jpg", "more/c.webp")):
        picture(number).save(folder / name)
    return folder


@pytest.fixture
def hub_folder(tmp_path):
    """A folder that `datasets` loads, of six rows."""
    rows = {"photo": [picture(number) for number in range(6)], "words": [f"caption {n}" for n in range(6)]}
    folder = tmp_path / "hub"
    folder.mkdir()
    features = Features({"photo": Image(), "words": Value("string")})
    Dataset.from_dict(rows, features=features).to_parquet(folder / "train.parquet")
    return folder


COLUMNS = ("--image_column", "photo", "--caption_column", "words")


@pytest.mark.parametrize("kind", ["jsonl", "csv", "txt"])
def test_a_folder_has_captions_in_any_of_three_forms(images, kind):
    names = ("a.png", "b.jpg", "more/c.webp")
    if kind == "txt":
        for name in names:
            (images / name).with_suffix(".txt").write_text(f"this is {name}\n")
    elif kind == "jsonl":
        lines = [json.dumps({"file_name": name, "text": f"this is {name}"}) for name in names]
        (images / "metadata.jsonl").write_text("\n".join(lines))
    else:
        (images / "metadata.csv").write_text("file_name,text\n" + "\n".join(f"{n},this is {n}" for n in names))
    rows = load_captioned(given("--train_data_dir", images))
    assert sorted(rows[index].captions for index in range(len(rows))) == [f"this is {name}" for name in names]
    assert open_image(rows[0]).size == (24, 16)


def test_a_dataset_is_read_from_the_disk(hub_folder):
    rows = load_captioned(given("--dataset_name", hub_folder, *COLUMNS, "--max_train_samples", 4))
    assert len(rows) == 4
    assert [rows[index].captions for index in range(4)] == [f"caption {n}" for n in range(4)]
    assert open_image(rows[3]).getpixel((0, 0)) == (3, 0, 0)


def test_a_stream_repeats_in_the_same_order_and_is_shared_by_processes(hub_folder, monkeypatch):
    # At the end of every epoch datasets waits five seconds for others.
    monkeypatch.setattr("datasets.iterable_dataset.time.sleep", lambda seconds: None)
    arguments = ("--dataset_name", hub_folder, *COLUMNS, "--streaming", "--shuffle_buffer_size", 3)

    def captions(process: int, processes: int, first: int, count: int) -> list[list[str]]:
        rows = load_captioned(given(*arguments))
        order = Order(0, 2, process, processes, seed=0)
        batches = batches_from(rows, lambda row, rng: row.captions, order, first, 0, True)
        return list(islice(batches, count))

    alone = captions(0, 1, 0, 9)
    assert sorted(flat(alone[:3])) == [f"caption {n}" for n in range(6)]
    assert sorted(flat(alone[3:6])) == [f"caption {n}" for n in range(6)]
    assert alone[:3] != alone[3:6]
    assert captions(0, 1, 4, 3) == alone[4:7]
    together = zip(flat(captions(0, 2, 0, 3)), flat(captions(1, 2, 0, 3)), strict=True)
    assert flat(together) == flat(alone[:6])


def test_the_order_is_a_permutation_an_epoch_and_resumes():
    alone = list(islice(Order(7, 3, seed=2).batches(0), 14))
    rows, positions = zip(*flat(alone), strict=True)
    assert sorted(rows[:7]) == sorted(rows[7:14]) == list(range(7))
    assert rows[:7] != rows[7:14]
    assert positions == tuple(range(42))
    assert list(islice(Order(7, 3, seed=2).batches(5), 4)) == alone[5:9]
    pairs = zip(*(islice(Order(7, 3, process, 2, seed=2).batches(0), 7) for process in range(2)), strict=True)
    assert flat(pairs) == alone
    assert next(Order(7, 3, seed=3).batches(0)) != alone[0]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_resumed_run_sees_the_same_crops_and_flips(num_workers):
    rows = [Captioned(picture(number), ["one", "two", "three"], str(number)) for number in range(5)]
    prepare = Preparation(12, random_flip=True)

    def batches(first: int, count: int) -> list:
        return list(islice(batches_from(rows, prepare, Order(5, 2), first, num_workers, False), count))

    for resumed, unbroken in zip(batches(3, 2), batches(0, 5)[3:], strict=True):
        for (image, caption), (expected, same) in zip(resumed, unbroken, strict=True):
            assert torch.equal(image, expected) and caption == same


def test_images_are_resized_cropped_and_flipped():
    row = Captioned(picture(255, (40, 20)), "a caption", "row")
    image, caption = Preparation(10, center_crop=True)(row, random.Random(0))
    assert image.shape == (3, 10, 10) and caption == "a caption"
    # Red throughout; the left half of the crop has no green, the right half 200 / 255 of it.
    torch.testing.assert_close(image[0], torch.ones(10, 10))
    torch.testing.assert_close(image[1, :, :4], -torch.ones(10, 4), atol=0.1, rtol=0)
    torch.testing.assert_close(image[1, :, 6:], torch.full((10, 4), 2 * 200 / 255 - 1), atol=0.1, rtol=0)
    flipping = Preparation(10, center_crop=True, random_flip=True)
    flipped = [torch.equal(flipping(row, random.Random(seed))[0], image.flip(2)) for seed in range(100)]
    assert 30 < sum(flipped) < 70
    crops = {float(Preparation(10)(row, random.Random(seed))[0][1].mean()) for seed in range(40)}
    assert len(crops) > 3


def test_a_stripe_is_no_image_to_learn_from():
    """At a resolution of 512 its other side would be of 25 million pixels."""
    with pytest.raises(TrainingError, match="the image of row 3 is 50000 by 1 pixels, too long for a square; crop or"):
        Preparation(512)(Captioned(PILImage.new("RGB", (50_000, 1)), "a line", "row 3"), random.Random(0))


def test_images_are_turned_upright():
    image = picture(9)
    exif = image.getexif()
    exif[0x0112] = 6
    image.info["exif"] = exif.tobytes()
    assert open_image(Captioned(image, "", "")).size == (16, 24)


def test_scenes_of_the_miniature_world_follow_from_their_number():
    world = MiniatureWorld(10)
    assert world[3].image.tobytes() == MiniatureWorld(10)[3].image.tobytes()
    assert world[3].captions == MiniatureWorld(10)[3].captions
    assert len({world[index].captions for index in range(10)}) > 5
    assert world[0].image.size == (64, 64)


def test_every_mistake_is_named(images, hub_folder, tmp_path):
    with pytest.raises(TrainingError, match=r"a.png has no caption; write it to a.txt"):
        ImageFolder(images)
    (images / "metadata.jsonl").write_text(json.dumps({"file_name": "a.png", "label": "x"}))
    with pytest.raises(TrainingError, match=r"has no column 'text'; set --caption_column to one of file_name, label"):
        ImageFolder(images)
    (images / "metadata.jsonl").write_text("")
    with pytest.raises(TrainingError, match="is empty; give a row"):
        ImageFolder(images)
    with pytest.raises(TrainingError, match="holds no images"):
        ImageFolder(hub_folder)
    with pytest.raises(TrainingError, match="is no folder"):
        ImageFolder(tmp_path / "nothing")
    for streaming in ((), ("--streaming",)):
        with pytest.raises(TrainingError, match=r"has no column 'image'; set --image_column to one of photo, words"):
            load_captioned(given("--dataset_name", hub_folder, *streaming))
        with pytest.raises(TrainingError, match=r"has no column 'text'; set --caption_column"):
            load_captioned(given("--dataset_name", hub_folder, "--image_column", "photo", *streaming))
    with pytest.raises(TrainingError, match=r"--dataset_name .*nothing cannot be loaded"):
        load_captioned(given("--dataset_name", tmp_path / "nothing"))
    empty = Dataset.from_dict({"image": [], "text": []}, features=Features({"image": Image(), "text": Value("string")}))
    empty.save_to_disk(tmp_path / "empty")
    with pytest.raises(TrainingError, match="empty is empty; name a dataset with rows"):
        load_captioned(given("--dataset_name", tmp_path / "empty"))
    DatasetDict({"test": Dataset.from_dict({"text": ["a ring"]})}).save_to_disk(tmp_path / "splits")
    with pytest.raises(TrainingError, match=r"has no split 'train'; set --dataset_split to one of test"):
        load_captioned(given("--dataset_name", tmp_path / "splits"))
    (images / "a.png").write_bytes(b"no image")
    with pytest.raises(TrainingError, match=r"the image of a.png cannot be decoded .*; remove or replace it"):
        open_image(Captioned(images / "a.png", "", "a.png"))
    for captions in (None, [], [None]):
        with pytest.raises(TrainingError, match=rf"the caption of row 3 is {re.escape(str(captions))}"):
            Preparation(8)(Captioned(picture(1), captions, "row 3"), random.Random(0))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ('{"file_name": "a.png", "text": null}', "line 1 of .* has no caption in column 'text'"),
        ('{"file_name": "a.png", "text": ""}', "all captions of .* are empty"),
        ('{"file_name": "z.png", "text": "x"}', "line 1 of .* names 'z.png', which does not exist"),
        (f'{{"file_name": "{"z" * 5000}", "text": "x"}}', r"line 1 of .* names 'z{56}\.\.\., which does not exist"),
        (r'{"file_name": "a\nb", "text": "x"}', r"line 1 of .* names 'a\\nb', which does not exist"),
        ('{"file_name": "a.png", "text": "x"}\n{"file', "line 2 of .* is no JSON .*; write one row a line"),
        ('["a.png"]', "line 1 of .* is a list in place of an object; write one row a line"),
        ('{"file_name": 7, "text": "x"}', "file_name in line 1 of .* is 7 in place of a text; write file names"),
        ('{"file_name": "a.png", "text": 7}', "text in line 1 of .* is 7 in place of a text or a list"),
        ('{"file_name": "a.png", "text": ["x", 7]}', r"\[1\] of text in line 1 of .* is 7 in place of a text"),
        ('{"file_name": "a.png", "text": "x", "text": "y"}', "line 1 of .*'text' comes twice"),
        ('\n{"file_name": "a.png", "text": "x", "score": NaN}', "score of line 2 of .* is nan"),
    ],
)
def test_every_mistake_of_metadata_is_named(images, lines, message):
    (images / "metadata.jsonl").write_text(lines)
    with pytest.raises((TrainingError, ForeignFileError), match=message):
        load_captioned(given("--train_data_dir", images))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"file_name,text\na.png\n", "line 2 of .*metadata.csv' has 1 cells for 2 columns"),
        (b"file_name,text\na.png,x,y\n", "line 2 of .*metadata.csv' has 3 cells for 2 columns"),
        (b'file_name,text\na.png,"x\n', "line 2 of .*metadata.csv' is no CSV"),
        (b"file_name,text\na.png,caf\xe9\n", "line 2 of .*metadata.csv' is not in UTF-8; save the file as UTF-8"),
        (b"name,text\na.png,x\n", "line 2 of .*metadata.csv' has no column 'file_name'; its columns are name, text"),
        (b"", "metadata.csv is empty"),
    ],
)
def test_every_mistake_of_a_table_is_named(images, content, message):
    (images / "metadata.csv").write_bytes(content)
    with pytest.raises((TrainingError, ForeignFileError), match=message):
        load_captioned(given("--train_data_dir", images))


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_metadata_of_any_editor_is_read(images, encoding):
    text = "caf\u00e9\u2028by night"
    (images / "7.png").write_bytes((images / "a.png").read_bytes())
    (images / "metadata.csv").write_bytes(f"file_name,text\r\n7.png,{text}\r\n".encode(encoding))
    assert [row.captions for row in ImageFolder(images).rows] == [text]
    row = json.dumps({"file_name": "7.png", "text": text}, ensure_ascii=False)
    (images / "metadata.jsonl").write_bytes(f"{row}\r\n".encode(encoding))
    assert [row.captions for row in ImageFolder(images).rows] == [text]
    (images / "metadata.csv").unlink()
    (images / "metadata.jsonl").unlink()
    for image in ("7.png", "a.png", "b.jpg", "more/c.webp"):
        (images / image).with_suffix(".txt").write_bytes(f"{text}\r\n".encode(encoding))
    assert {row.captions for row in ImageFolder(images).rows} == {text}
    (images / "a.txt").write_bytes(b"ok\ncaf\xe9")
    with pytest.raises(ForeignFileError, match=r"^line 2 of '.*a.txt' is not in UTF-8"):
        ImageFolder(images)


def test_an_error_in_another_process_stays_one_sentence():
    rows = [Captioned(picture(1), [None], "row 3")]
    batches = batches_from(rows, Preparation(8), Order(1, 1), 0, 1, False)
    with pytest.raises(TrainingError, match=r"^the caption of row 3 is .*; it must be a text or a list of texts$"):
        next(batches)


def test_blank_lines_of_metadata_are_passed_over(images):
    (images / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "x"}\n\n')
    assert len(load_captioned(given("--train_data_dir", images))) == 1


def test_images_of_any_mode_look_as_they_are_shown(tmp_path, monkeypatch):
    def opened(image: PILImage.Image) -> tuple[int, ...]:
        image.save(tmp_path / "image.png")
        return open_image(Captioned(tmp_path / "image.png", "", "image")).getpixel((0, 0))

    grey = PILImage.fromarray(np.full((4, 4), 40_000, dtype=np.uint16))
    assert opened(grey) == (40_000 // 257,) * 3
    assert opened(PILImage.new("RGBA", (4, 4), (10, 200, 30, 0))) == (255, 255, 255)
    assert opened(PILImage.new("LA", (4, 4), (10, 0))) == (255, 255, 255)
    assert opened(PILImage.new("RGBA", (4, 4), (10, 200, 30, 255))) == (10, 200, 30)
    monkeypatch.setattr(PILImage, "MAX_IMAGE_PIXELS", 4)
    with pytest.raises(TrainingError, match="the image of image cannot be decoded"):
        opened(picture(0))


def names_of(rows) -> list[str]:
    return [rows[index].name for index in range(len(rows))]


@pytest.mark.parametrize(("limit", "training", "held_out"), [(None, [0, 2, 3, 5], [1, 4]), (3, [0, 1, 2], [3, 5])])
def test_rows_are_held_out_at_even_distances_or_beyond_those_that_are_used(hub_folder, limit, training, held_out):
    arguments = ("--dataset_name", hub_folder, *COLUMNS, *([] if limit is None else ["--max_train_samples", limit]))
    rows = load_split_rows(given(*arguments), None, 0, 2)
    for found, expected in ((rows.training, training), (rows.held_out, held_out)):
        assert names_of(found) == [f"row {number} of {hub_folder}" for number in expected]
    assert rows.num_taken == (2 if limit is None else 0)
    plain = load_split_rows(given(*arguments), None, 0, 0)
    assert (rows.training.fingerprint == plain.training.fingerprint) == (limit is not None)
    assert rows.fingerprint != load_split_rows(given(*arguments), None, 0, 3).fingerprint
    assert list(plain.held_out) == [] and plain.num_taken == 0


def test_rows_at_even_distances_are_different_and_of_the_whole():
    for total in range(1, 12):
        for count in range(1, total + 1):
            chosen = evenly_spaced(count, total)
            assert len(set(chosen)) == count and chosen[0] >= 0 and chosen[-1] < total
            assert max(np.diff([-1, *chosen, total])) <= total / count + 1


def test_the_first_rows_of_a_stream_are_held_out_of_every_epoch(hub_folder):
    rows = load_split_rows(given("--dataset_name", hub_folder, *COLUMNS, "--streaming"), None, 0, 2)
    assert [row.captions for row in rows.held_out] == ["caption 0", "caption 1"] and rows.is_streamed
    for epoch in range(3):
        seen = sorted(row.captions for row in rows.training.stream(epoch))
        assert seen == [f"caption {number}" for number in range(2, 6)]
    with pytest.raises(TrainingError, match=r"is 6, but the data has 5 rows to hold out; lower it"):
        load_split_rows(given("--dataset_name", hub_folder, *COLUMNS, "--streaming"), None, 0, 6)


def test_held_out_scenes_have_captions_that_no_scene_has():
    rows = load_split_rows(given("--dataset_name", "miniature", "--max_train_samples", 200), None, 0, 292)
    held_out = {caption.text for caption in rows.held_out.captions}
    assert len(held_out) == 292 and rows.num_taken == 0
    assert not held_out & {rows.training[index].captions for index in range(200)}
    assert rows.held_out[7].image.size == (64, 64)


def test_a_folder_is_split_and_too_small_ones_are_refused(images):
    (images / "metadata.jsonl").write_text(
        "\n".join(json.dumps({"file_name": name, "text": name}) for name in ("a.png", "b.jpg", "more/c.webp"))
    )
    rows = load_split_rows(given("--train_data_dir", images), None, 0, 2)
    assert names_of(rows.training) == ["b.jpg"] and names_of(rows.held_out) == ["a.png", "more/c.webp"]
    with pytest.raises(TrainingError, match=r"--num_validation_observations is 3, but the data has 2 rows to hold out"):
        load_split_rows(given("--train_data_dir", images), None, 0, 3)


def test_prompts_that_equal_held_out_ones_are_left_out(prompts_file):
    prompts_file.write_text("a\nb\na\nc\nb\nd\n")
    rows = load_split_rows(given("--prompts_file", prompts_file), None, 0, 2)
    assert names_of(rows.held_out) == ["b", "d"] and names_of(rows.training) == ["a", "a", "c"]
    assert rows.num_taken == 3
    with pytest.raises(TrainingError, match=r"--num_validation_observations is 4, but the data has 3 rows to hold out"):
        load_split_rows(given("--prompts_file", prompts_file), None, 0, 4)

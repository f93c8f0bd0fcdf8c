import csv
import io
import os
import shutil
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from diamond_diffusers.rewards import REWARDS, AestheticReward, Reward, as_reward, available_rewards, hub
from diamond_diffusers.rewards.availability import availability
from diamond_diffusers.rewards.preprocessing import images_from_pil

from .invoking import invoke, refusal, succeed

SIZES = {"a.png": (20, 12), "b.jpg": (12, 20), "c.png": (20, 12), "d.webp": (20, 12)}


@pytest.fixture
def folder(tmp_path):
    """Four images of two sizes, and a file that is none."""
    generator = np.random.default_rng(0)
    for name, (width, height) in SIZES.items():
        Image.fromarray(generator.integers(0, 256, (height, width, 3), np.uint8)).save(tmp_path / name)
    (tmp_path / "record.json").write_text("{}")
    return tmp_path


@pytest.fixture
def length_reward(monkeypatch):
    """A reward that reads the prompt, and how many images it got in each call."""
    calls = []

    def length(images, prompts):
        calls.append(len(images))
        return torch.tensor([float(len(prompt)) for prompt in prompts])

    monkeypatch.setitem(REWARDS._entries, "length", length)
    return calls


def read_csv(output):
    return list(csv.DictReader(io.StringIO(output)))


def expected_score(expression, path):
    return as_reward(expression)(images_from_pil([Image.open(path)]), [""]).item()


def test_what_a_reward_returns_is_read_or_refused_in_a_sentence(folder, monkeypatch):
    async def remote(images, prompts):
        return [1.0] * len(images)

    monkeypatch.setitem(REWARDS._entries, "pair", lambda images, prompts: ([0.5] * len(images), {"seconds": 1}))
    monkeypatch.setitem(REWARDS._entries, "text", lambda images, prompts: "good")
    monkeypatch.setitem(REWARDS._entries, "remote", remote)
    rows = read_csv(succeed("score", folder, "--reward", "2*pair", "--prompt", "", "--format", "csv"))
    assert [row["pair"] for row in rows] == ["0.5"] * len(SIZES)
    for name, message in [("text", "'text' returned the text 'good'"), ("remote", "is an asynchronous function")]:
        assert message in refusal("score", folder, "--reward", f"brightness + {name}", "--prompt", "")


def test_scores_are_those_of_the_reward_in_the_files_order(folder):
    expression = "2*brightness - 0.5*jpeg_size"
    rows = read_csv(succeed("score", folder, "--reward", expression, "--format", "csv"))
    assert [row["image"] for row in rows] == [str(folder / name) for name in SIZES]
    for row in rows:
        for column in ("brightness", "jpeg_size", expression):
            assert float(row[column]) == pytest.approx(expected_score(column, row["image"]), rel=1e-5)


def test_overviews_of_a_folder_are_no_images_of_it(folder):
    for name in ("contact_sheet.png", "trace.png"):
        shutil.copy(folder / "a.png", folder / name)
    rows = read_csv(succeed("score", folder, folder / "trace.png", "--reward", "brightness", "--format", "csv"))
    assert [row["image"] for row in rows] == [str(folder / name) for name in (*SIZES, "trace.png")]


def test_images_of_every_kind_are_read_as_they_are_shown(tmp_path):
    colour = (200, 40, 90)
    grey = 0.299 * 200 + 0.587 * 40 + 0.114 * 90
    image = Image.new("RGB", (8, 4), colour)
    # Quantised with a palette of one colour, separated into inks, and of one channel.
    image.quantize(2).save(tmp_path / "palette.png")
    image.convert("CMYK").save(tmp_path / "inks.jpg", quality=100)
    image.convert("L").save(tmp_path / "l.png")
    rows = read_csv(succeed("score", tmp_path, "--reward", "brightness", "--format", "csv"))
    plain = expected_brightness(image)
    found = {row["image"].rpartition("/")[2]: float(row["brightness"]) for row in rows}
    assert found["palette.png"] == pytest.approx(plain, abs=1e-5)
    assert found["inks.jpg"] == pytest.approx(plain, abs=0.02)
    assert found["l.png"] == pytest.approx(expected_brightness(Image.new("RGB", (8, 4), (round(grey),) * 3)), abs=1e-5)


def expected_brightness(image):
    return as_reward("brightness")(images_from_pil([image]), [""]).item()


def test_images_are_turned_upright(tmp_path, monkeypatch):
    sizes = []

    def top(images, prompts):
        sizes.append(tuple(images.shape[-2:]))
        return images[:, :, 0].mean((1, 2))

    monkeypatch.setitem(REWARDS._entries, "top", top)
    image = Image.new("RGB", (8, 4))
    image.paste((255, 255, 255), (0, 0, 4, 4))
    exif = image.getexif()
    # White is left of black, and above it where the camera was upright.
    exif[0x0112] = 6
    image.save(tmp_path / "turned.png", exif=exif)
    Image.new("RGB", (4, 8)).save(tmp_path / "upright.png")
    # Pillow turns one of these itself.
    image.save(tmp_path / "turned.tif", exif=exif)
    rows = read_csv(succeed("score", tmp_path, "--reward", "top", "--prompt", "", "--format", "csv"))
    assert [float(row["top"]) for row in rows] == [1, 1, 0] and sizes == [(8, 4)]


def test_cells_that_a_spreadsheet_would_evaluate_are_texts(folder, length_reward, monkeypatch):
    monkeypatch.chdir(folder)
    shutil.copy("a.png", "@a.png")
    command = ("score", "@a.png", "--reward", "-length", "--prompt", "=HYPERLINK(1)", "--format", "csv")
    (row,) = read_csv(succeed(*command))
    assert row == {"image": "'@a.png", "prompt": "'=HYPERLINK(1)", "length": "13", "'-length": "-13"}


def test_a_name_that_is_no_text_is_shown(folder):
    name = b"caf\xe9.png"
    os.link(folder / "a.png", os.path.join(os.fsencode(folder), name))
    for form in ("csv", "table"):
        assert "caf\\xe9.png" in succeed("score", folder, "--reward", "brightness", "--format", form)


def test_the_table_shows_scores_and_their_mean(folder):
    output = succeed("score", folder / "c.png", folder / "a.png", "--reward", "brightness")
    scores = [expected_score("brightness", folder / name) for name in ("c.png", "a.png")]
    assert output.index("c.png") < output.index("a.png") < output.index("mean")
    for value in (*scores, sum(scores) / 2):
        assert f"{value:.4f}" in output
    assert "mean" not in succeed("score", folder / "a.png", "--reward", "brightness")


def test_one_prompt_for_all_or_one_for_each(folder, length_reward):
    command = ("score", folder, "--reward", "length", "--format", "csv")
    rows = read_csv(succeed(*command, "--prompt", "a cat, red"))
    assert [(row["prompt"], row["length"]) for row in rows] == [("a cat, red", "10")] * 4
    each = [option for text in ("a", "bb", "ccc", "dddd") for option in ("--prompt", text)]
    assert [row["length"] for row in read_csv(succeed(*command, *each))] == ["1", "2", "3", "4"]


def test_images_of_one_size_share_a_batch(folder, length_reward):
    succeed("score", folder, "--reward", "length", "--batch-size", 2, "--prompt", "a cat")
    assert sorted(length_reward) == [1, 1, 2]


def test_prompts_are_asked_for_before_a_reward_is_made_and_dtypes_reach_it(folder, monkeypatch):
    made = []

    class Typed(Reward):
        name = "typed"

        def __init__(self):
            self.layer = torch.nn.Linear(1, 1)
            made.append(self.name)

        def score(self, images, prompts):
            return torch.full((len(images),), float(self.layer.weight.dtype == torch.bfloat16))

    monkeypatch.setitem(REWARDS._entries, "typed", Typed)
    command = ("score", folder / "a.png", "--reward", "typed", "--format", "csv")
    result = invoke(*command)
    assert result.exit_code == 2 and made == []
    assert "--prompt is not given, but the reward 'typed' reads prompts; give one" in result.output
    command += ("--prompt", "")
    assert read_csv(succeed(*command))[0]["typed"] == "0"
    assert read_csv(succeed(*command, "--dtype", "bfloat16"))[0]["typed"] == "1"


def png_header(width, height):
    """The beginning of a PNG of a size."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("nowhere.png",), "IMAGE is 'nowhere.png', which does not exist"),
        (("{folder}/record.json",), "record.json', which cannot be read"),
        (("{folder}/other/cut.png",), "cut.png', which cannot be read (image file is truncated); give an 8-bit"),
        (
            ("{folder}/other/deep.png",),
            "deep.png', which cannot be read (An image has the mode 'I;16', of more than 8 bits; convert it",
        ),
        (("{folder}/other/moving.webp",), "moving.webp', which cannot be read (it has 3 frames); give an 8-bit PNG"),
        (("{folder}/other/moving.gif",), "moving.gif', which cannot be read (it has 3 frames)"),
        (("{folder}/other/bomb.png",), "bomb.png', which cannot be read (Image size (400000000 pixels) exceeds limit"),
        (("{folder}/other/text.png",), "text.png', which cannot be read (it is no image of a known format)"),
        (("{folder}/other/broken.png",), "broken.png', which cannot be read ("),
        (("{folder}/other/none.png",), "none.png', which cannot be read (it is no image of a known format)"),
        (("{folder}/empty",), "empty', which holds no .png, .jpg"),
        (("{folder}", "--prompt", "a", "--prompt", "b"), "--prompt is given 2 times for 4 images"),
        (("{folder}", "--prompt", "caf\udce9"), r"--prompt is 'caf\udce9', which is not in UTF-8"),
        (("{folder}", "--format", "json"), "--format is 'json'; choose table or csv"),
        (("{folder}", "--device", "magic"), "--device is 'magic', which is not usable here"),
        (("{folder}", "--dtype", "int8"), "--dtype is 'int8'; choose auto"),
        (("{folder}", "--reward", "magic"), "reward is 'magic'; choose one of"),
        (("{folder}", "--reward", "similarity"), "The reward 'similarity' needs references"),
    ],
)
def test_bad_input_gets_one_sentence(folder, arguments, sentence):
    (folder / "empty").mkdir()
    (folder / "empty" / "folder.png").mkdir()
    (folder / "other").mkdir()
    (folder / "other" / "cut.png").write_bytes((folder / "a.png").read_bytes()[:300])
    Image.fromarray(np.full((8, 8), 40000, np.uint16)).save(folder / "other" / "deep.png")
    frames = [Image.new("RGB", (8, 8), (shade, 0, 0)) for shade in (0, 100, 200)]
    for name in ("moving.webp", "moving.gif"):
        frames[0].save(folder / "other" / name, save_all=True, append_images=frames[1:])
    (folder / "other" / "bomb.png").write_bytes(png_header(20_000, 20_000) + b"\0\0\0\x05IDATxxxxx")
    (folder / "other" / "text.png").write_text("no image")
    (folder / "other" / "none.png").write_bytes(b"")
    (folder / "other" / "broken.png").write_bytes(png_header(8, 8) + b"\0\0\0\x05IDATxxxxx")
    filled = [argument.format(folder=folder) for argument in arguments]
    result = invoke("score", *filled, *(() if "--reward" in filled else ("--reward", "brightness")))
    assert result.exit_code == 2
    (error,) = [line for line in result.output.splitlines() if line.startswith("Error: ")]
    assert sentence in error
    assert "Traceback" not in result.output


class TestRewardsCommand:
    def test_lists_every_reward(self):
        listed = succeed("rewards")
        assert all(name in listed for name in available_rewards())
        assert all(word in listed for word in ("gradient", "licence", "download", "usable here", "what", "Apache-2.0"))
        (row,) = [line for line in listed.splitlines() if " sharpness " in line]
        assert "scale" in listed and " 500 " in row

    def test_a_narrow_terminal_gets_no_sentences(self):
        listed = invoke("rewards", columns=80).output
        assert all(name in listed for name in available_rewards())
        assert all(word in listed for word in ("gradient", "scale", "download", "usable here"))
        assert not any(word in listed for word in ("licence", "what"))

    def test_a_narrow_terminal_gets_a_line_or_two_for_most(self):
        listed = invoke("rewards", columns=80).output.splitlines()
        assert all(len(line) <= 80 for line in listed)
        assert len(listed) < 1.5 * len(available_rewards()) + 5

    def test_named_rewards_are_told_in_full(self):
        told = succeed("rewards", "inverse_problem", "sharpness")
        assert "inverse_problem\n  what: " in told and "sharpness\n  what: Variance of the" in told
        assert "  usable here: in Python, with operator, measurement, noise_std\n" in told
        assert "  licence: Apache-2.0\n  source: Pech-Pacheco et al. 2000\n" in told
        assert "brightness" not in told

    def test_csv_holds_all_that_is_known(self):
        rows = list(csv.DictReader(succeed("rewards", "--format", "csv").splitlines()))
        assert [row["name"] for row in rows] == available_rewards()
        (row,) = [row for row in rows if row["name"] == "inverse_problem"]
        assert row["usable here"] == "in Python, with operator, measurement, noise_std"
        assert row["source"] == "Chung et al. 2022, arXiv:2209.14687" and row["scale"] == "1"

    def test_what_cannot_be_told_is_refused(self):
        unknown, form = invoke("rewards", "brigthness"), invoke("rewards", "--format", "json")
        assert (unknown.exit_code, form.exit_code) == (2, 2)
        assert "reward is 'brigthness'; choose one of" in unknown.output.replace("\n", " ")
        assert "--format is 'json'; choose table or csv" in form.output

    def test_a_plug_in_that_does_not_import_is_listed_with_its_error(self, monkeypatch):
        def registered_reward(name):
            raise ImportError("this package is broken")

        monkeypatch.setattr("diamond_diffusers.rewards.available_rewards", lambda: ["broken"])
        monkeypatch.setattr("diamond_diffusers.rewards.registered_reward", registered_reward)
        assert "no: this package is broken" in succeed("rewards")


class Declared(Reward):
    hub_files = (("someone/model", "model.safetensors"), ("someone/tokenizer", "vocab.txt"))

    def score(self, images, prompts):
        return images.mean((1, 2, 3))


class TestAvailability:
    def test_what_is_in_the_cache_is_usable(self, monkeypatch):
        cached = {("someone/model", "model.safetensors")}
        monkeypatch.setattr(
            hub, "try_to_load_from_cache", lambda repo, file: "/file" if (repo, file) in cached else None
        )
        assert availability(Declared) == "after download of someone/tokenizer"
        cached.add(("someone/tokenizer", "vocab.txt"))
        assert availability(Declared) == "yes"

    def test_the_head_of_a_predictor_counts(self, monkeypatch, tmp_path):
        monkeypatch.setattr(hub, "try_to_load_from_cache", lambda repo, file: "/file")
        monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
        assert availability(AestheticReward) == "after download of sac+logos+ava1-l14-linearMSE.pth"
        (tmp_path / "checkpoints").mkdir()
        (tmp_path / "checkpoints" / "sac+logos+ava1-l14-linearMSE.pth").touch()
        assert availability(AestheticReward) == "yes"

    def test_packages_that_are_missing(self, monkeypatch):
        monkeypatch.setattr(Declared, "requires", ("json", "no_such_package"))
        assert availability(Declared).startswith("no: package no_such_package does not import (No module")

    def test_rewards_that_need_arguments(self):
        assert availability(REWARDS.get("similarity")) == "in Python, with references"

    def test_functions(self):
        assert availability(lambda images, prompts: images.mean((1, 2, 3))) == "yes"


def test_constraints_have_a_column_of_their_own(folder):
    rows = read_csv(succeed("score", folder, "--reward", "2*colour, brightness < 0.5", "--format", "csv"))
    assert list(rows[0]) == ["image", "prompt", "colour", "brightness", "2*colour, brightness < 0.5", "constraints met"]
    for row in rows:
        assert float(row["2*colour, brightness < 0.5"]) == pytest.approx(2 * float(row["colour"]), rel=1e-4)
        assert row["constraints met"] == str(int(float(row["brightness"]) < 0.5))
    for alone, met in {"brightness >= 0": "1", "brightness >= 0, brightness < 0": "0"}.items():
        rows = read_csv(succeed("score", folder, "--reward", alone, "--format", "csv"))
        # They have no total.
        assert list(rows[0])[2:] == ["brightness", "constraints met"]
        assert [row["constraints met"] for row in rows] == [met] * 4
    # One reward beside them is the total.
    rows = read_csv(succeed("score", folder, "--reward", "colour, brightness < 0.5", "--format", "csv"))
    assert list(rows[0])[2:] == ["colour", "brightness", "constraints met"]
    shown = succeed("score", folder, "--reward", "colour, brightness >= 0")
    assert sum(line.endswith(" 1               │") for line in shown.splitlines()) == 4
    assert "has ')' at position 16" in refusal("score", folder, "--reward", "brightness < 0.5)")

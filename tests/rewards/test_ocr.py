"""The OCR reward: what prompts quote, how reading is graded, and the real reader on rendered words."""

import itertools
import runpy
import sys
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from diamond_diffusers.rewards import OCRReward, as_reward, registered_reward
from diamond_diffusers.rewards.availability import availability
from diamond_diffusers.rewards.preprocessing import images_from_pil
from diamond_diffusers.rewards.quoted_text import edit_distance, quoted_parts, text_score

PROMPT = 'a poster that says "OPEN NOW"'


@pytest.mark.parametrize(
    ("prompt", "parts"),
    [
        ('a poster that says "OPEN NOW"', ["OPEN NOW"]),
        ("a poster that says “OPEN NOW”", ["OPEN NOW"]),
        ("a poster that says 'OPEN NOW'", ["OPEN NOW"]),
        ("the baker's sign says ‘It’s OPEN’, in red", ["It’s OPEN"]),
        ('"SALE" above "50% OFF"', ["SALE", "50% OFF"]),
        ("ein Schild „Guten Tag“", ["Guten Tag"]),
        ("un panneau « Bonjour »", ["Bonjour"]),
        ("a sign 「営業中」", ["営業中"]),
        ("the neon sign reads 'DON'T PANIC' here", ["DON'T PANIC"]),
        # Marks of both kinds: those within the others are text.
        ("a \"rock 'n' roll\" poster", ["rock 'n' roll"]),
        ("dogs' toys and cats' beds", []),
        ("a man 5'10\" tall", []),
        ('no "" and " " text', []),
        ("the dog's bone says 'hello'", ["hello"]),
        # Marks that open nothing: of inches, of decades, and of a word that is a letter.
        ('a 24" by 36" poster that says "SALE"', ["SALE"]),
        ("a '90s diner with the sign 'OPEN'", ["OPEN"]),
        ("a sign that says '90s party'", ["90s party"]),
        ("a rock 'n' roll band", []),
        ("the poster 'rock 'n' roll'", ["rock 'n' roll"]),
        ('a sign "🎉" without end "', ["🎉"]),
    ],
)
def test_the_quoted_text_of_a_prompt(prompt, parts):
    assert quoted_parts(prompt) == parts


@pytest.mark.parametrize(
    ("first", "second", "distance"),
    [("kitten", "sitting", 3), ("", "abc", 3), ("abc", "", 3), ("flaw", "lawn", 2), ("same", "same", 0)],
)
def test_the_edit_distance(first, second, distance):
    assert edit_distance(first, second) == edit_distance(second, first) == distance


@pytest.mark.parametrize(
    ("parts", "read", "score"),
    [
        # Computed by hand by the formula of Flow-GRPO's `ocr.py`.
        (["OPEN NOW"], "open\nnow", 1),
        (["OPEN NOW"], "0PENNOW", 1 - 1 / 7),
        (["OPEN"], "THE SHOP IS OPEN TODAY", 1),
        (["OPEN"], "", 0),
        (["OPEN"], "something else altogether", 0),
        (["Hi!"], "Hi！", 1),
        (["It’s"], "it's", 1),
        # Several texts in any order.
        (["SALE", "OPEN"], "open\nsale", 1),
        (["SALE", "OPEN"], "opem sale", 1 - 1 / 8),
        (["SALE", "OPEN"], "sale", 1 / 2),
        # More than four in that of the prompt alone: `baecd` is three edits from `aabcde`, and two from `baacde`.
        (["a", "b", "c", "d", "e"], "a e b c d", 1),
        (["aa", "b", "c", "d", "e"], "b a e c d", 1 - 3 / 6),
    ],
)
def test_how_reading_is_graded(parts, read, score):
    assert text_score(parts, read) == pytest.approx(score)


def test_what_cannot_be_read_or_asked_for_is_refused(monkeypatch):
    with pytest.raises(ValueError, match="got text=' ', which holds no character"):
        OCRReward(" ")
    with pytest.raises(ValueError, match="min_confidence=2; give a number from 0 to 1"):
        OCRReward(min_confidence=2)
    with pytest.raises(ValueError, match="num_threads=0; give at least 1"):
        OCRReward(num_threads=0)
    monkeypatch.setitem(sys.modules, "rapidocr_onnxruntime", None)
    message = r"needs the package 'rapidocr_onnxruntime'.*\[rewards-ocr\]` under a Python below 3\.13\.$"
    with pytest.raises(ImportError, match=message):
        OCRReward()
    assert availability(registered_reward("ocr")).startswith("no: package rapidocr_onnxruntime does not import")


def drawn(text, size=40, turned=0, blur=0.0, side=256):
    image = Image.new("RGB", (side, side), "white")
    font = ImageFont.load_default(size)
    ImageDraw.Draw(image).multiline_text((side / 2, side / 2), text, "black", font, anchor="mm", align="center")
    image = image.rotate(turned, fillcolor="white")
    return image.filter(ImageFilter.GaussianBlur(blur)) if blur else image


class Recorded:
    """A reader that finds the same text in every image, and notes what it was given."""

    def __init__(self, text):
        self.text = text
        self.shapes = []
        self.corner = None

    def __call__(self, pixels):
        self.shapes.append(pixels.shape)
        self.corner = pixels[0, 0].tolist()
        return ([[None, line, 1.0] for line in self.text.split("\n")] if self.text else None), None


@pytest.fixture
def recorded(monkeypatch):
    """Makes rewards whose reader finds a given text."""
    made = types.SimpleNamespace(options=None, reader=None)

    def reader(**options):
        made.options = options
        return made.reader

    monkeypatch.setitem(sys.modules, "rapidocr_onnxruntime", types.SimpleNamespace(RapidOCR=reader))

    def reward(read, *arguments, **options):
        made.reader = Recorded(read)
        return OCRReward(*arguments, **options), made

    return reward


class TestWithWhatAReaderFinds:
    images = torch.rand(2, 3, 8, 12)

    def test_each_image_is_held_against_its_own_prompt(self, recorded):
        reward, made = recorded("SA\nLE")
        assert reward(self.images, ['"SALE"', '"GOLD"']).tolist() == pytest.approx([1, 0.25])
        assert made.reader.shapes == [(8, 12, 3)] * 2 and reward.reads_prompts
        reward, _ = recorded("SALE", "SALE")
        assert reward(self.images, ["", 'a "GOLD" bar']).tolist() == [1, 1] and not reward.reads_prompts
        assert recorded("OPEN", ["SALE", "OPEN"])[0](self.images, ["", ""]).tolist() == [0.5, 0.5]

    def test_prompts_that_quote_nothing_are_refused_or_have_the_given_score(self, recorded):
        reward, made = recorded("SALE")
        with pytest.raises(ValueError, match="the prompt 'a dog', which quotes no text; put what is to be read in"):
            reward(self.images, ['"SALE"', "a dog"])
        assert not made.reader.shapes
        reward, _ = recorded("SALE", without_text=0.5)
        assert reward(self.images, ['"SALE"', "a dog"]).tolist() == [1, 0.5]

    def test_the_reader_gets_8_bits_in_the_order_of_opencv(self, recorded):
        reward, made = recorded("SALE")
        reward(torch.tensor([1.0, 0.5, 0.0])[None, :, None, None].expand(1, 3, 8, 8), ['"SALE"'])
        assert made.reader.corner == [0, 128, 255]

    def test_narrow_images_are_widened_for_the_reader(self, recorded):
        reward, made = recorded("SALE")
        for size in ((1, 1), (1, 1000), (1000, 1), (3, 50)):
            assert reward(torch.ones(1, 3, *size), ['"SALE"']).tolist() == [1]
        assert made.reader.shapes == [(1, 1, 3), (63, 1000, 3), (1000, 63, 3), (4, 50, 3)]
        assert made.reader.corner == [255] * 3

    def test_where_nothing_is_read_the_score_is_zero(self, recorded):
        assert recorded("")[0](self.images, ['"SALE"'] * 2).tolist() == [0, 0]

    def test_options_reach_the_reader(self, recorded, monkeypatch):
        monkeypatch.setattr("os.cpu_count", lambda: 4)
        _, made = recorded("", min_confidence=0.3, num_threads=2)
        assert made.options == {"text_score": 0.3, "intra_op_num_threads": 2, "inter_op_num_threads": 1}
        assert recorded("", num_threads=64)[1].options["intra_op_num_threads"] == 4


def test_the_example_makes_a_poster(recorded, tiny_folder, tmp_path, monkeypatch, capsys):
    _, made = recorded("OPEN\nNOW")
    script, poster = Path(__file__).parents[2] / "examples" / "poster_with_ocr.py", tmp_path / "poster.png"
    few = ["--num-particles", "2", "--num-inference-steps", "2"]
    monkeypatch.setattr(sys, "argv", [script.name, "--model", str(tiny_folder), *few, "--output", str(poster)])
    runpy.run_path(str(script), run_name="__main__")
    with Image.open(poster) as image:
        assert image.size == (16, 16) and made.reader.shapes
    assert "{'ocr': 1.0}, constraints met; " in capsys.readouterr().out


@pytest.fixture(scope="module")
def reward():
    pytest.importorskip("rapidocr_onnxruntime")
    return as_reward("ocr")


class TestWithTheRealReader:
    def scores(self, reward, *images, prompt=PROMPT):
        return reward(images_from_pil(images), [prompt] * len(images)).tolist()

    def test_threads_read_words_small_turned_and_over_lines_with_one_reader_and_blur_lowers_the_score(
        self, reward, capfd
    ):
        images = [drawn("OPEN\nNOW", 14), drawn("OPEN NOW", turned=30, side=224), drawn("OPEN NOW", 24, blur=3)]
        with ThreadPoolExecutor(3) as pool:
            (small,), (turned,), (blurred,) = pool.map(lambda image: self.scores(reward, image), images)
        assert small == turned == 1 > blurred
        assert not reward.differentiable
        # The reader says nothing of its own.
        assert capfd.readouterr() == ("", "")

    @pytest.mark.slow
    @pytest.mark.parametrize("size", [10, 14, 20, 32, 48])
    @pytest.mark.parametrize("turned", [0, 5, 15, 45, 90, 180, 270])
    def test_words_are_read_at_every_size_and_angle(self, reward, size, turned):
        if size == 10 and turned % 90:
            pytest.skip("too small to be turned by a fraction")
        assert self.scores(reward, drawn("OPEN NOW", size, turned)) == [1]

    @pytest.mark.slow
    def test_the_score_falls_with_blur_and_an_empty_image_has_none(self, reward):
        blurs = [0.0, 1.0, 2.0, 3.0, 4.0, 8.0]
        found = self.scores(reward, *(drawn("OPEN NOW", 24, blur=blur) for blur in blurs))
        assert found[0] == 1 and found[-1] == 0
        assert all(after <= before for before, after in itertools.pairwise(found))
        assert self.scores(reward, Image.new("RGB", (64, 64), "white"), drawn("", side=64)) == [0, 0]

    @pytest.mark.slow
    def test_other_text_scores_by_its_distance(self, reward):
        # `opensnow` is an edit away; further words cost nothing.
        found = self.scores(reward, drawn("OPEN SNOW"), drawn("OPEN NOW TODAY", 24), drawn("CLOSED"))
        assert found == pytest.approx([1 - 1 / 7, 1, 0])

    @pytest.mark.slow
    def test_several_threads_read_other_words_with_one_reader(self, reward):
        words = ["SALE", "OPEN NOW"]
        images = [drawn(word, 24 + 4 * i, side=160 + 40 * i) for i, word in enumerate(words)]
        with ThreadPoolExecutor(2) as pool:
            read = list(pool.map(reward.read, images))
        assert ["".join(text.split()) for text in read] == ["SALE", "OPENNOW"]

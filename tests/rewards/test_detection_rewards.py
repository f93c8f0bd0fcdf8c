"""Rewards by detectors: the stock models on tiny random weights, and the rewards on drawn boxes."""

import re
import runpy
from functools import cache
from pathlib import Path

import pytest
import torch
from torchvision.transforms.functional import to_pil_image
from transformers import AutoImageProcessor, AutoModelForZeroShotObjectDetection, AutoProcessor

from diamond_diffusers.rewards import (
    CompositionReward,
    CountReward,
    ObjectColourReward,
    PositionReward,
    PresenceReward,
)
from diamond_diffusers.rewards.detection import Count, Position, Presence, detectors, load_detector
from diamond_diffusers.rewards.detection.colours import COLOURS

from .tiny_detectors import Drawn, save_grounding_dino, save_mask2former, save_owlv2

KINDS = {"owlv2": save_owlv2, "grounding_dino": save_grounding_dino}
PHRASES = ["a red apple", "traffic light", "dog"]


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    """The folder of a tiny detector of a kind, which is written once."""
    return cache(lambda kind: KINDS[kind](tmp_path_factory.mktemp(kind)))


@pytest.fixture(scope="module", params=KINDS)
def folder(request, folder_of):
    return folder_of(request.param)


@pytest.fixture(scope="module")
def detector(folder):
    return load_detector("detector", folder)


@pytest.fixture
def pictures():
    """Three 8-bit images of a size that has to be padded and resized."""
    noise = torch.rand(3, 3, 50, 70, generator=torch.Generator().manual_seed(0))
    return (noise * 255).round() / 255


class TestDetectors:
    @torch.no_grad()
    def test_are_the_stock_ones(self, folder, detector, pictures):
        """One by one, from PIL images, by the stock processor and its thresholds of 0."""
        model, processor = load_stock(folder)
        found = detector.detect(pictures, PHRASES)
        assert torch.stack([each.scores for each in found]).std() > 0.05
        for picture, mine in zip(pictures, found, strict=True):
            inputs = processor(images=to_pil_image(picture), text=[PHRASES], return_tensors="pt")
            outputs = model(**inputs)
            (stock,) = processor.post_process_grounded_object_detection(
                outputs, threshold=0.0, target_sizes=[picture.shape[-2:]]
            )
            torch.testing.assert_close(mine.boxes, stock["boxes"], rtol=1e-4, atol=1e-3)
            torch.testing.assert_close(mine.scores, stock_scores(outputs, inputs, processor), rtol=1e-4, atol=1e-5)
            if detector.architecture == "owlv2":
                torch.testing.assert_close(mine.scores.amax(1), stock["scores"], rtol=1e-4, atol=1e-5)

    def test_pixels_are_the_stock_ones_bit_by_bit(self, folder, detector, pictures):
        stock = AutoProcessor.from_pretrained(folder).image_processor(
            [to_pil_image(each) for each in pictures], return_tensors="pt"
        )
        mine = detector.pixels(pictures.clone().requires_grad_())["pixel_values"]
        assert mine.requires_grad
        assert torch.equal(mine, stock["pixel_values"])

    def test_gradients_are_those_of_the_stock_model(self, folder, detector):
        """By the pixels that it is given, which are the normalised image where the processor has nothing to resize."""
        edge = 48 if detector.architecture == "owlv2" else 96
        levels = torch.randint(0, 256, (1, 3, edge, edge), generator=torch.Generator().manual_seed(0))
        images = (levels / 255).requires_grad_()
        (found,) = detector.detect(images, PHRASES)
        (gradient,) = torch.autograd.grad(found.scores.sum() + found.boxes.sum() / edge, images)

        model, processor = load_stock(folder)
        inputs = processor(images=to_pil_image(images[0]), text=[PHRASES], return_tensors="pt")
        inputs["pixel_values"].requires_grad_()
        outputs = model(**inputs)
        # The corners of a box sum up to twice its centre.
        total = stock_scores(outputs, inputs, processor).sum() + 2 * outputs.pred_boxes[..., :2].sum()
        (expected,) = torch.autograd.grad(total, inputs["pixel_values"])
        expected = expected / torch.tensor(processor.image_processor.image_std)[:, None, None]
        assert expected.abs().mean() > 1e-3
        torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item())

    @pytest.mark.slow
    def test_half_precision(self, folder, detector, pictures):
        low = load_detector("detector", folder, dtype=torch.bfloat16)
        with torch.no_grad():
            found, exact = low.detect(pictures, PHRASES)[0], detector.detect(pictures, PHRASES)[0]
        assert low.model.dtype == torch.bfloat16 and found.scores.dtype == found.boxes.dtype == torch.float32
        if detector.architecture == "owlv2":
            # The queries of Grounding DINO are chosen by their scores, and change places.
            torch.testing.assert_close(found.scores, exact.scores, atol=0.1, rtol=0)

    def test_a_processor_on_pil_images_makes_a_black_box(self, folder, pictures, monkeypatch):
        load = AutoProcessor.from_pretrained

        def load_with_pil(*arguments, **options):
            processor = load(*arguments, **options)
            processor.image_processor = AutoImageProcessor.from_pretrained(*arguments, **options, backend="pil")
            return processor

        monkeypatch.setattr(AutoProcessor, "from_pretrained", load_with_pil)
        reward = PresenceReward("dog", detector=folder)
        assert not reward.differentiable
        with pytest.raises(ValueError, match="'presence' gives no gradients to the pixels"):
            reward.probe(needs_gradient=True)
        assert reward(pictures, [""] * 3).shape == (3,)

    @pytest.mark.slow
    def test_gradient_checkpointing(self, folder, pictures):
        rewards = [PresenceReward("dog", detector=folder, gradient_checkpointing=given) for given in (False, True)]
        images = pictures.clone().requires_grad_()
        gradients = [torch.autograd.grad(reward(images, [""] * 3).sum(), images)[0] for reward in rewards]
        torch.testing.assert_close(*gradients)


def load_stock(folder):
    return AutoModelForZeroShotObjectDetection.from_pretrained(folder), AutoProcessor.from_pretrained(folder)


def stock_scores(outputs, inputs, processor):
    """The scores of each phrase: OWLv2 has them, and Grounding DINO has those of tokens."""
    tokens = outputs.logits[0].sigmoid()
    if tokens.shape[1] == len(PHRASES):
        return tokens
    words = processor.tokenizer.convert_ids_to_tokens(inputs["input_ids"][0])
    assert words == ["[CLS]", "a", "red", "apple", ".", "traffic", "light", ".", "dog", ".", "[SEP]"]
    return torch.stack([tokens[:, first:last].amax(1) for first, last in ((1, 4), (5, 7), (8, 9))], 1)


WHITE = torch.ones(1, 3, 40, 80)
APPLES = [((0, 0, 10, 10), 0.9), ((20, 0, 30, 10), 0.8), ((40, 0, 50, 10), 0.6), ((41, 0, 51, 10), 0.55)]


def grade(reward, images=WHITE, prompt=""):
    return reward(images, [prompt] * len(images)).tolist()


class TestRewards:
    """Certainties are odds squared here: the threshold is 1/2."""

    def test_presence(self):
        drawn = Drawn(apple=APPLES)
        assert grade(PresenceReward("apple", detector=drawn)) == pytest.approx([81 / 82])
        assert grade(PresenceReward("dog", detector=drawn)) == pytest.approx([0], abs=1e-6)
        assert grade(PresenceReward("apple", detector=drawn, threshold=0.8)) == pytest.approx([81 / 97])
        hard = [PresenceReward("apple", detector=drawn, graded=False, threshold=level) for level in (0.89, 0.91)]
        assert [grade(reward) for reward in hard] == [[1], [0]]

    def test_count(self):
        """The two last boxes overlap by 9/11, and show one apple."""
        drawn = Drawn(apple=APPLES)
        absent = [1 / 82, 1 / 17, 4 / 13]
        assert grade(CountReward("apple", 0, detector=drawn)) == pytest.approx([1 / (1 + 3 - sum(absent))], rel=1e-4)
        assert grade(CountReward("apple", 3, detector=drawn)) == pytest.approx([1 / (1 + sum(absent))], rel=1e-4)
        hard = {number: CountReward("apple", number, detector=drawn, graded=False) for number in (2, 3, 4)}
        assert [grade(reward) for reward in hard.values()] == [[0], [1], [0]]
        assert grade(CountReward("apple", 4, detector=drawn, graded=False, max_overlap=0.9)) == [1]

    def test_position(self):
        drawn = Drawn(dog=[((0, 0, 10, 10), 0.9), ((60, 0, 70, 10), 0.8)], cat=[((30, 0, 40, 10), 0.8)])
        certain = 81 / 82 * 16 / 17
        # The centres are 30 apart, of which a tenth of 20 is taken off.
        for relation, fit in {"left of": 28 / 30, "right of": (1 - 28 / 30) / 3, "above": 1 / 3}.items():
            assert grade(PositionReward("dog", relation, "cat", detector=drawn)) == pytest.approx(
                [certain * fit], rel=1e-4
            )
            expected = [float(relation == "left of")]
            assert grade(PositionReward("dog", relation, "cat", detector=drawn, graded=False)) == expected
        assert grade(PositionReward("dog", "left of", "bird", detector=drawn, graded=False)) == [0]

    def test_object_colour(self, clip_folder, monkeypatch):
        """The crop that CLIP is shown is that of the box, which reaches out of the image here."""
        drawn = Drawn(car=[((-5, 0, 20, 20), 0.9), ((40, 10, 60, 30), 0.8), ((100, 0, 120, 9), 0.7)])
        image = WHITE.clone()
        image[0, 1:, :20, :20] = 0
        image[0, :2, 10:30, 40:60] = 0
        reward = ObjectColourReward("car", "blue", detector=drawn, clip=clip_folder)
        crops = []

        def probabilities(shown, name):
            assert name == "car"
            crops.extend(shown)
            told = torch.zeros(len(shown), len(COLOURS))
            told[:, COLOURS.index("red")] = torch.stack([crop[0].mean() for crop in shown])
            told[:, COLOURS.index("blue")] = torch.stack([crop[2].mean() for crop in shown])
            return 0.7 * told + 0.03

        monkeypatch.setattr(reward.colours, "probabilities", probabilities)
        clarity = 0.9 + 0.1 * image.mean().item()
        odds = (0.8 * clarity / (1 - 0.8 * clarity)) ** 2
        assert grade(reward, image) == pytest.approx([0.73 * odds / (1 + odds)], rel=1e-4)
        assert [list(crop.shape) for crop in crops] == [[3, 20, 20], [3, 20, 20]]
        reward.graded = False
        assert grade(reward, image) == [1]
        (reward._requirements,) = [(Presence("car", "green"),)]
        assert grade(reward, image) == [0]

    def test_colours_by_clip_have_gradients(self, clip_folder):
        drawn = Drawn(cat=[((5, 5, 25, 35), 0.9)])
        reward = ObjectColourReward("cat", "red", detector=drawn, clip=clip_folder)
        images = torch.rand(1, 3, 40, 80, generator=torch.Generator().manual_seed(0)).requires_grad_()
        (gradient,) = torch.autograd.grad(reward(images, [""]).sum(), images)
        inside = gradient[..., 5:35, 5:25].abs().mean()
        assert inside > 10 * gradient[..., 36:, 30:].abs().mean() > 0

    def test_composition(self, clip_folder):
        drawn = Drawn(apple=APPLES, dog=[((60, 20, 70, 30), 0.9)])
        reward = CompositionReward(detector=drawn, clip=clip_folder)
        parts = [CountReward("apple", 3, detector=drawn), PresenceReward("dog", detector=drawn)]
        expected = sum(grade(part)[0] for part in parts) / 2
        assert grade(reward, prompt="three apples and a dog") == pytest.approx([expected])
        assert reward.requirements_of("three apples and a dog") == (Count("apple", 3), Presence("dog"))
        with pytest.raises(ValueError, match=r"Reward 'composition': the prompt .* 'in' is no part of a name"):
            grade(reward, prompt="a dog in a park")
        listed = [Count("apple", 3), Position("dog", "right of", "apple")]
        hard = CompositionReward(listed, detector=drawn, graded=False)
        assert hard.colours is None and not hard.differentiable
        assert grade(hard) == [1]
        assert grade(CompositionReward([*listed, Presence("cat")], detector=drawn, graded=False)) == [0]

    def test_a_mapping_gives_each_prompt_its_own(self):
        drawn = Drawn(apple=APPLES, dog=[((60, 20, 70, 30), 0.9)])
        reward = CountReward({"three apples": ("apple", 3), "two dogs": Count("dog", 2)}, detector=drawn, graded=False)
        prompts = ["three apples", "two dogs", "three apples"]
        assert reward(WHITE.expand(3, -1, -1, -1), prompts).tolist() == [1, 0, 1]
        # Images of one prompt share a call of the detector.
        assert drawn.asked == [["apple"], ["dog"]]
        assert reward.reads_prompts and reward.probe() == 1
        with pytest.raises(
            ValueError, match=r"knows nothing of the prompt 'a cat'; it was made for 'three apples', 'two"
        ):
            grade(reward, prompt="a cat")

    def test_graded_scores_have_gradients(self):
        drawn = Drawn(apple=APPLES, dog=[((60, 20, 70, 30), 0.9)])
        options = {"detector": drawn}
        for reward in (
            PresenceReward("apple", **options),
            CountReward("apple", 3, **options),
            PositionReward("dog", "right of", "apple", **options),
        ):
            images = torch.full((2, 3, 40, 80), 0.5, requires_grad=True)
            (gradient,) = torch.autograd.grad(reward(images, ["", ""]).sum(), images)
            # A bright image shows all apples more clearly.
            assert (gradient > 0).all()

    @pytest.mark.slow
    def test_moves_and_compiles_its_models(self, clip_folder):
        reward = ObjectColourReward("cat", "red", detector=Drawn(), clip=clip_folder)
        assert reward.to(dtype=torch.bfloat16) is reward
        assert reward.colours.clip.tower.dtype == torch.bfloat16
        assert reward.compile(backend="eager") is reward


@pytest.mark.parametrize(
    ("make", "error", "part"),
    [
        (lambda **o: PresenceReward("", **o), ValueError, "'presence' got ('',): the object is ''"),
        (lambda **o: CountReward("dog", **o), TypeError, "'count' got ('dog',), which is no Count"),
        (lambda **o: CountReward({"a": ("dog", 2)}, 3, **o), TypeError, "got 3 beside a mapping"),
        (lambda **o: CountReward({}, **o), ValueError, "got an empty mapping"),
        (lambda **o: CountReward({"a": ("dog", 2, "mauve")}, **o), ValueError, "colour is 'mauve'"),
        (lambda **o: ObjectColourReward("dog", **o), TypeError, "and no colour; give one, such as 'red'"),
        (lambda **o: CompositionReward("three dogs", **o), TypeError, "give a list of Presence"),
        (lambda **o: CompositionReward([], **o), TypeError, "got requirements=[]"),
        (lambda **o: PresenceReward("dog", threshold=1.5, **o), ValueError, "got threshold=1.5; give a number between"),
        (lambda **o: PresenceReward("dog", max_overlap=0, **o), ValueError, "got max_overlap=0"),
        (lambda **o: PresenceReward("dog", colour="red", **o), TypeError, "got the unknown option colour='red'"),
    ],
)
def test_bad_input(make, error, part):
    with pytest.raises(error) as raised:
        make(detector=Drawn())
    assert part in str(raised.value)


def test_checkpoints_of_another_kind_are_refused(tmp_path, clip_folder):
    with pytest.raises(
        ValueError, match=r"'presence' got detector=.* of the architecture 'mask2former'; give one of owlv2"
    ):
        PresenceReward("dog", detector=save_mask2former(tmp_path))
    with pytest.raises(OSError, match=r"'presence' cannot load detector='/nowhere' .*; give a name on the Hub"):
        PresenceReward("dog", detector="/nowhere")


@pytest.mark.parametrize(
    ("kind", "words", "sentence"),
    [
        ("grounding_dino", 40, "has 84 tokens, of which the detector reads 64; name fewer things"),
        ("owlv2", 3, "'a photo of a dog dog dog' has 9 tokens, of which the detector reads 8"),
    ],
)
def test_more_words_than_the_detector_reads(kind, words, sentence, folder_of):
    required = [Presence(" ".join([name] * words)) for name in ("dog", "cat")]
    reward = CompositionReward(required, detector=folder_of(kind))
    with pytest.raises(ValueError, match=sentence):
        reward(torch.rand(1, 3, 40, 40), [""])
    with pytest.raises(ValueError, match=sentence):
        reward.check_prompts([""])


@pytest.mark.slow
def test_the_example_runs(tmp_path, monkeypatch, capsys):
    """With a tiny detector in place of the one that it downloads."""
    tiny = load_detector("tiny", save_owlv2(tmp_path))
    monkeypatch.setattr(detectors, "load_detector", lambda name, checkpoint: tiny)
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(Path(__file__).parents[2] / "examples" / "counting_with_a_detector.py"))
    assert (tmp_path / "three_red_circles.png").exists()
    assert re.search(r"graded \[0\.\d+\] right \[0\.0\]", capsys.readouterr().out)

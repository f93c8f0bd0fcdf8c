"""The shipped reward: loads as any CLIP does and tells each kind of hard negative from the truth."""

import random
from importlib import resources

import pytest
import torch
from torchvision.transforms.functional import to_pil_image
from transformers import AutoTokenizer, CLIPModel, CLIPProcessor

from benchmarks.miniature.hard_negatives import KINDS
from benchmarks.miniature.train_clip import embed_images, embed_texts, hard_negative_accuracy
from diamond_diffusers.miniature.grammar import held_out_captions
from diamond_diffusers.miniature.render import render, sample_scene
from diamond_diffusers.miniature.tokenizer import clip_tokenizer

FOLDER = resources.files("diamond_diffusers.miniature") / "weights" / "clip"


@pytest.fixture(scope="module")
def clip():
    return CLIPModel.from_pretrained(FOLDER).eval()


@pytest.fixture(scope="module")
def told_apart(clip):
    return hard_negative_accuracy(clip, seed=17)


@pytest.mark.parametrize("kind", KINDS)
def test_hard_negatives_are_told_apart_on_held_out_captions(told_apart, kind):
    assert told_apart[kind] > 0.9


def test_the_processor_prepares_what_training_saw(clip):
    rng = random.Random(0)
    captions = list(held_out_captions())[::20]
    images = render([sample_scene(caption, rng) for caption in captions])
    texts = [caption.text for caption in captions]
    processor = CLIPProcessor.from_pretrained(FOLDER)
    inputs = processor(text=texts, images=[to_pil_image(image) for image in images], padding=True, return_tensors="pt")
    with torch.no_grad():
        output = clip(**inputs)
        torch.testing.assert_close(output.image_embeds, embed_images(clip, images), atol=0.02, rtol=0)
        torch.testing.assert_close(output.text_embeds, embed_texts(clip, clip_tokenizer(), texts))
    assert AutoTokenizer.from_pretrained(FOLDER)(texts).input_ids == clip_tokenizer()(texts).input_ids


def test_the_scale_is_within_bounds_and_the_weights_are_small(clip):
    assert clip.logit_scale.exp() <= 100.001
    assert all(parameter.dtype == torch.float32 for parameter in clip.parameters())
    assert clip.num_parameters() * 4 < 5e6

"""Captions: what they say, which are kept out of training, and that their texts stand for one caption each."""

import random
from collections import Counter

import pytest

from diamond_diffusers.miniature.grammar import (
    CATEGORIES,
    HELD_OUT_COUNTS,
    Caption,
    ObjectGroup,
    all_captions,
    held_out_captions,
    parse_caption,
    sample_training_caption,
    vocabulary,
)


def test_texts_read_as_english():
    circles = Caption("counting", (ObjectGroup("circle", "red", 3),))
    pair = Caption("position", (ObjectGroup("star", "orange"), ObjectGroup("cross", "blue")), "left of")
    assert circles.text == "three red circles"
    assert pair.text == "an orange star left of a blue cross"
    assert Caption("counting", (ObjectGroup("cross", None, 2),)).text == "two crosses"


def test_each_text_stands_for_one_caption_and_parses_back():
    captions = [caption for category in CATEGORIES for caption in all_captions(category)]
    assert len({caption.text for caption in captions}) == len(captions)
    for caption in random.Random(0).sample(captions, 500):
        assert parse_caption(caption.text) == caption
        assert parse_caption(f"  {caption.text.upper()} ") == caption


@pytest.mark.parametrize("text", ["", "five red circles", "a red circle and a square", "a circle left of a circle"])
def test_a_text_outside_the_grammar_is_refused(text):
    with pytest.raises(ValueError, match="no caption of the miniature world"):
        parse_caption(text)


def test_the_vocabulary_holds_every_word():
    words = {word for category in CATEGORIES for caption in all_captions(category) for word in caption.text.split()}
    assert words == set(vocabulary())
    assert len(vocabulary()) == len(words)


def test_three_hundred_captions_are_held_out_of_training():
    held_out = held_out_captions()
    assert len(set(held_out)) == 300
    assert Counter(caption.category for caption in held_out) == HELD_OUT_COUNTS
    rng = random.Random(0)
    drawn = {sample_training_caption(rng, with_single_objects=False) for _ in range(20_000)}
    assert drawn.isdisjoint(held_out)
    assert {caption.category for caption in drawn} == set(CATEGORIES) - {"single_object"}


def test_hard_captions_bind_two_objects_or_ask_for_four():
    hard = {text: parse_caption(text).is_hard for text in (
        "a red star and a blue ring", "a star below a ring", "four red stars", "three red stars", "a star and a ring",
        "a red star",
    )}  # fmt: skip
    assert list(hard.values()) == [True, True, True, False, False, False]
    assert sum(caption.is_hard for caption in held_out_captions()) == 178


def test_only_the_single_objects_are_shared_with_the_model_that_draws():
    rng = random.Random(0)
    shared = {sample_training_caption(rng) for _ in range(20_000)} & set(held_out_captions())
    assert shared == set(all_captions("single_object"))

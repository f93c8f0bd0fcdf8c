"""Prompt files in the forms in which GenEval, DrawBench, UniGenBench and T2I-CompBench publish theirs."""

import json

import pytest

from diamond_diffusers.evaluation.prompts import Prompt, read_prompts

GENEVAL = [
    {"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"},
    {
        "tag": "counting",
        "include": [{"class": "clock", "count": 2}],
        "exclude": [{"class": "clock", "count": 3}],
        "prompt": "a photo of two clocks",
    },
]
UNIGENBENCH = """index,prompt_en,sub_dims_en
7,"A fox, in the ""ukiyo-e"" style","{""Primary Categories"": ""Art"", ""Testpoints"": [""Style""]}"
3,A chess king,"{""Primary Categories"": ""Illustration"", ""Testpoints"": [""World Knowledge""]}"
"""


def read(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    suite = read_prompts(path)
    assert not suite.is_judged
    return sorted(suite.prompts, key=lambda prompt: prompt.index)


def test_geneval(tmp_path):
    lines = "\n".join(json.dumps(entry) for entry in GENEVAL)
    assert read(tmp_path, "evaluation_metadata.jsonl", lines + "\n\n") == [
        Prompt(0, "a photo of a bench", "single_object", GENEVAL[0]),
        Prompt(1, "a photo of two clocks", "counting", GENEVAL[1]),
    ]


def test_drawbench(tmp_path):
    text = '\ufeffPrompts,Category\r\nA red colored car.,Colors\r\n"A cube, on a cube.",Positional\r\n'
    assert read(tmp_path, "drawbench.csv", text) == [
        Prompt(0, "A red colored car.", "Colors"),
        Prompt(1, "A cube, on a cube.", "Positional"),
    ]


@pytest.mark.parametrize("suffix", ["", "_en", "_zh"])
def test_unigenbench(tmp_path, suffix):
    text = UNIGENBENCH.replace("_en", suffix)
    dimensions = [
        {"Primary Categories": "Illustration", "Testpoints": ["World Knowledge"]},
        {"Primary Categories": "Art", "Testpoints": ["Style"]},
    ]
    assert read(tmp_path, "test_prompts.csv", text) == [
        Prompt(3, "A chess king", "Illustration", dimensions[0]),
        Prompt(7, 'A fox, in the "ukiyo-e" style', "Art", dimensions[1]),
    ]


def test_t2i_compbench(tmp_path):
    assert read(tmp_path, "color_val.txt", "a green bench and a red car\na red bench\n\n") == [
        Prompt(0, "a green bench and a red car", "color_val"),
        Prompt(1, "a red bench", "color_val"),
    ]


def test_the_order_is_random_and_fixed(tmp_path):
    path = tmp_path / "many.txt"
    path.write_text("\n".join(f"prompt {i}" for i in range(100)))
    prompts = read_prompts(path).prompts
    assert prompts == read_prompts(path).prompts
    assert {prompt.index: prompt.text for prompt in prompts} == {i: f"prompt {i}" for i in range(100)}
    # A beginning that was the file's own, as of a file sorted by category, would have the mean index 9.5.
    assert sum(prompt.index for prompt in prompts[:20]) / 20 > 30


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("prompts.yaml", "a", r"prompts.yaml'; give a file that ends with \.jsonl, \.csv, \.txt"),
        ("empty.txt", "\n", r"empty.txt', which holds no prompt"),
        ("a.jsonl", '{"tag": "a", "prompt": "b"}\n{"tag": "a"}', "line 2 is no GenEval entry"),
        ("a.jsonl", "[1]", "line 1 is no GenEval entry"),
        ("a.csv", "text,kind\na,b\n", "the columns text, kind; give those of DrawBench"),
        ("a.csv", UNIGENBENCH.replace("7,", "x,"), "row with index 'x' is no UniGenBench entry"),
        ("a.csv", UNIGENBENCH.replace("7,", "3,"), "where an index comes twice"),
    ],
)
def test_other_files_are_refused(tmp_path, name, text, message):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_prompts(path)

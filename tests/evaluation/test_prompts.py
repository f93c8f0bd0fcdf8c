"""Prompt files in the forms in which GenEval, DrawBench, UniGenBench and T2I-CompBench publish theirs."""

import json

import pytest

from diamond_diffusers.evaluation.benchmark.prompts import Prompt, read_prompts
from diamond_diffusers.files.foreign import ForeignFileError

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
        (
            "a.jsonl",
            '{"tag": "a", "prompt": "b"}\n\n{"tag": "a"}',
            "line 3 of '.*a.jsonl' has no 'prompt'; give GenEval's",
        ),
        ("a.jsonl", "[1]", "line 1 of '.*' is a list in place of an object; give GenEval's"),
        ("a.jsonl", '{"tag": "a", "prompt": 7}', "prompt of line 1 of '.*' is 7 in place of a text"),
        ("a.jsonl", '{"tag": null, "prompt": "b"}', "tag of line 1 of '.*' is None in place of a text"),
        ("a.jsonl", '{"tag": "a", "prompt": "b", "prompt": "c"}', "line 1 of '.*' is no JSON .*'prompt' comes twice"),
        ("a.jsonl", '{"tag": "a", "prompt": "b", "n": NaN}', "n of line 1 of '.*' is nan"),
        ("a.jsonl", r'{"tag": "a", "prompt": "b\ud800"}', "prompt of line 1 of '.*' holds"),
        ("a.jsonl", '{"tag": "a", "prompt": "b"}\n' + "[" * 100_000, "line 2 of '.*' is nested deeper"),
        ("a.csv", "text,kind\na,b\n", "the columns text, kind; give those of DrawBench"),
        ("a.csv", UNIGENBENCH.replace("7,", "-1,"), "a.csv', with the index -1; number them from 0 to 999999"),
        ("a.csv", UNIGENBENCH.replace("7,", "1000000,"), "with the index 1000000; number them from 0 to 999999"),
        ("a.csv", UNIGENBENCH.replace("7,", "9" * 400 + ","), "with the index a huge number; number them"),
        ("a.csv", UNIGENBENCH.replace("7,", "x,"), "index in line 2 of '.*' is 'x'; give UniGenBench's integer index"),
        ("a.csv", UNIGENBENCH.replace("7,", "9" * 5000 + ","), "index in line 2 of '.*' is '999.*; give UniGenBench's"),
        ("a.csv", UNIGENBENCH.replace('{""Primary', '[{""Primary'), "sub_dims_en in line 2 of '.*' is no JSON"),
        (
            "a.csv",
            UNIGENBENCH.replace('""Art""', "[]"),
            "Primary Categories of sub_dims_en in line 2 of '.*' is a list",
        ),
        ("a.csv", "Prompts,Category\na\n", "line 2 of '.*a.csv' has 1 cells for 2 columns; give one each"),
        ("a.csv", "Prompts,Category\na,b\na cat, red,b\n", "line 3 of '.*a.csv' has 3 cells for 2 columns"),
        ("a.csv", 'Prompts,Category\n"a,b\nc,d\n', "line 3 of '.*a.csv' is no CSV .unexpected end of data"),
        ("a.csv", f"Prompts,Category\n{'a' * 200_000},b\n", "line 2 of '.*a.csv' is no CSV .field larger"),
        ("a.csv", "Prompts,Category,Prompts\na,b,c\n", "has two columns 'Prompts'; rename one"),
        ("a.csv", UNIGENBENCH.replace("7,", "3,"), "where an index comes twice"),
    ],
)
def test_other_files_are_refused(tmp_path, name, text, message):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_prompts(path)


def test_spaces_around_the_names_of_columns_are_passed_over(tmp_path):
    (tmp_path / "a.csv").write_text("Prompts, Category \na cat, Animals\n")
    (prompt,) = read_prompts(tmp_path / "a.csv").prompts
    assert (prompt.text, prompt.category) == ("a cat", "Animals")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_files_of_any_editor_are_read(tmp_path, encoding):
    """Line and paragraph separators of Unicode, form feeds and unit separators are characters like others."""
    text = "a caf\u00e9\u2028by night\x0b\x0c\x1c\x85!"
    entry = json.dumps({"tag": "t", "prompt": text}, ensure_ascii=False)
    for name, content in (
        ("1.txt", f"{text}\r\nb\r\n"),
        ("2.JSONL", f"{entry}\r\n{json.dumps({'tag': 't', 'prompt': 'b'})}"),
        ("3.csv", f"Prompts,Category\r\n{text},t\r\n\r\nb,t"),
    ):
        path = tmp_path / name
        path.write_bytes(content.encode(encoding))
        prompts = sorted(read_prompts(path).prompts, key=lambda prompt: prompt.index)
        assert [prompt.text for prompt in prompts] == [text, "b"]


def test_a_file_in_another_encoding_is_refused_with_its_line(tmp_path):
    for name, before in (("a.txt", "a\n"), ("a.jsonl", "\n"), ("a.csv", "Prompts,Category\n")):
        (tmp_path / name).write_bytes(before.encode() + "ein Café".encode("latin-1"))
        with pytest.raises(ForeignFileError, match=rf"^line 2 of '.*{name}' is not in UTF-8; save the file as UTF-8"):
            read_prompts(tmp_path / name)
    (tmp_path / "folder.txt").mkdir()
    with pytest.raises(ForeignFileError, match=r"folder.txt' cannot be read \(Is a directory\)"):
        read_prompts(tmp_path / "folder.txt")


def test_geneval2(tmp_path):
    entry = {"prompt": "two cats", "atom_count": 3, "vqa_list": [["How many cats?", "two"]], "skills": ["count"]}
    assert read(tmp_path, "geneval2_data.jsonl", json.dumps(entry)) == [Prompt(0, "two cats", "atomicity 3", entry)]


DSG = """item_id,text,keywords,proposition_id,dependency,category_broad,x,tuple,question_natural_language
whoops_5,A cube,cube,1,0,entity,whole,entity - whole (cube),Is there a cube?
whoops_5,A cube,"cube, red",2,"1, 3",attribute,color,"attribute - color (cube, red)",Is the cube red?
COCOval2,A sky,sky,1,"1, blue",entity,whole,entity - whole (sky),Is there a sky?
"""


def test_dsg_and_dpg_bench(tmp_path):
    cube, sky = read(tmp_path, "dsg.csv", DSG)
    assert (cube.text, cube.category, cube.metadata["item_id"]) == ("A cube", "whoops", "whoops_5")
    assert [question["parents"] for question in cube.metadata["questions"]] == [[], [1, 3]]
    assert cube.metadata["questions"][1]["question"] == "Is the cube red?"
    # A malformed dependency leaves its item without any.
    assert sky.category == "COCOval" and sky.metadata["questions"][0]["parents"] == []


def test_tifa(tmp_path):
    entry = {"id": "coco_1", "caption": "A dog.", "question": "is it a dog?", "choices": ["yes", "no"], "answer": "yes"}
    entries = [{**entry, "element_type": "animal/human"}, {**entry, "question": "what?", "element_type": "object"}]
    (prompt,) = read(tmp_path, "tifa.json", json.dumps(entries))
    assert (prompt.text, prompt.category, len(prompt.metadata["questions"])) == ("A dog.", "coco", 2)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", '{"prompt": "a", "vqa_list": []}', "line 1 of '.*' has no 'atom_count'; give GenEval's"),
        (
            "a.jsonl",
            '{"prompt": "a", "atom_count": 1, "vqa_list": [["?", "Yes"]], "skills": []}',
            "vqa_list in line 1 of '.*' holds 1 questions for 0 skills",
        ),
        ("a.csv", DSG.replace("cube,1,0", "cube,x,0"), "proposition_id in line 2 of '.*' is 'x'; number the questions"),
        ("a.csv", DSG.replace('red",2', 'red",1'), "proposition_id in line 3 of '.*' is 1, which the item has already"),
        ("a.json", "{}", "'.*' is an object in place of a list; give TIFA's"),
        (
            "a.json",
            '[{"id": "a", "caption": "b", "question": "?", "choices": ["no"], "answer": "yes", "element_type": "c"}]',
            r"\[0\].answer of '.*' is 'yes', which is none of its choices",
        ),
    ],
)
def test_other_questions_are_refused(tmp_path, name, text, message):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(ForeignFileError, match=message):
        read_prompts(path)

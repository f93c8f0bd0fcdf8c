import json

import pytest
from PIL import Image

from diamond_diffusers.evaluation.benchmark.compare import method_folder
from diamond_diffusers.evaluation.benchmark.exports import check_export, export
from diamond_diffusers.evaluation.benchmark.plan import Entry, Plan
from diamond_diffusers.evaluation.benchmark.prompts import Prompt
from diamond_diffusers.evaluation.benchmark.records import image_path

from .made_up import BEST, PLAIN, PROMPTS, made_up_records

PLAN = Plan([Entry(12, PLAIN), Entry(12, BEST[12])], [])
METADATA = {"tag": "single_object", "include": [{"class": "star", "count": 1}], "prompt": "a star"}
GIVEN = [Prompt(0, PROMPTS[0], "single_object", METADATA), Prompt(1, PROMPTS[1], "single_object")]


@pytest.fixture
def records(tmp_path):
    return {
        method.label: made_up_records(method, None, [1.0, 2.0, 3.0, 4.0], num_images=2, folder=tmp_path)
        for method in PLAN.methods
    }


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_geneval(records, tmp_path):
    export("geneval", PLAN, records, GIVEN, tmp_path)
    assert {path.name for path in (tmp_path / "exports" / "geneval").iterdir()} == {"plain_6", "best_of_n_12"}
    folder = tmp_path / "exports" / "geneval" / "best_of_n_12"
    assert files(folder) == [
        "00000/metadata.jsonl",
        "00000/samples/0000.png",
        "00000/samples/0001.png",
        "00001/metadata.jsonl",
        "00001/samples/0000.png",
        "00001/samples/0001.png",
    ]
    assert json.loads((folder / "00000" / "metadata.jsonl").read_text()) == METADATA
    # What is not from GenEval's file has what every entry of it has.
    own = json.loads((folder / "00001" / "metadata.jsonl").read_text())
    assert own == {"tag": "single_object", "prompt": "a ring"}
    source = image_path(method_folder(tmp_path, BEST[12]), records["best_of_n_12"][3].key)
    assert (folder / "00001" / "samples" / "0001.png").read_bytes() == source.read_bytes()


def test_unigenbench(records, tmp_path):
    export("unigenbench", PLAN, records, GIVEN, tmp_path)
    folder = tmp_path / "exports" / "unigenbench" / "plain_6"
    assert files(folder) == ["0_0.png", "0_1.png", "1_0.png", "1_1.png"]
    assert Image.open(folder / "1_0.png").getpixel((0, 0)) == (40, 0, 6)


def test_other_formats_are_refused():
    with pytest.raises(ValueError, match="export is 'coco'; choose one of geneval, unigenbench"):
        check_export("coco")

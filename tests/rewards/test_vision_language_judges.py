"""Judges by vision-language models: tiny random ones of the real classes, held to what transformers itself computes."""

import copy
import importlib.util
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torchvision.transforms.functional import to_pil_image
from transformers import AutoModelForImageTextToText, AutoProcessor

from diamond_diffusers.rewards import VisionLanguageJudge
from diamond_diffusers.rewards.vision_language import judge as judging
from diamond_diffusers.rewards.vision_language import loading
from diamond_diffusers.rewards.vision_language import model as asking
from diamond_diffusers.rewards.vision_language.answers import AnswerRows, answer_tokens, surface_forms
from diamond_diffusers.rewards.vision_language.model import Asked
from diamond_diffusers.rewards.vision_language.shared_image import SHARING_MODELS

from ..documentation import METHODS, documented
from .vision_language_models import MAKERS, save_tiny_model

PAGE = METHODS.parent / "judges" / "vlm.md"
KINDS = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "internvl", "llava_onevision", "idefics3", "smolvlm", "gemma3"]
"""Of these, the default run takes the first that is a Qwen with sections of positions, and one of the others."""
QUICK = ["qwen2_5_vl", "internvl"]
QUESTIONS = ["Is it a cat", "Is it", "How many cats are in it", "Is it a", "Is it", "Is it a cat"]
ANSWERS = ["Yes", ["yes", "Yes"], ["2", "two"], ["No", "a red cat"], "a dog", "No"]
ROWS = [0, 0, 1, 2, 2, 0]


@pytest.fixture(
    scope="module", params=[pytest.param(kind, marks=() if kind in QUICK else pytest.mark.slow) for kind in KINDS]
)
def folder(request, tmp_path_factory):
    path = tmp_path_factory.mktemp(request.param)
    save_tiny_model(request.param, path)
    return path


@pytest.fixture(scope="module")
def judge(folder):
    return VisionLanguageJudge(folder)


@pytest.fixture(scope="module")
def qwen(qwen_folder):
    return VisionLanguageJudge(qwen_folder)


@pytest.fixture
def pictures():
    """Three 8-bit images of a size that has to be resized."""
    noise = torch.rand(3, 3, 90, 70, generator=torch.Generator().manual_seed(0))
    return (noise * 255).round() / 255


def stock_log_probability(model, processor, picture, question, tokens):
    """Of some tokens after a question about a PIL image, as transformers itself puts it, alone in a batch."""
    content = [{"type": "image", "image": to_pil_image(picture)}, {"type": "text", "text": question}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    length = inputs["input_ids"].shape[1]
    for key, value in inputs.items():
        if value.shape == (1, length):
            tail = {"input_ids": tokens[:-1], "attention_mask": [1] * (len(tokens) - 1)}
            inputs[key] = torch.cat([value, value.new_tensor([tail.get(key, [0] * (len(tokens) - 1))])], 1)
    logits = model(**inputs, use_cache=False).logits[0, length - 1 :]
    return logits.log_softmax(-1)[range(len(tokens)), list(tokens)].sum()


def test_probabilities_are_those_of_the_stock_model(folder, judge, pictures):
    """Of one token, of several forms, and of several tokens by the chain rule; rows of one batch have many lengths."""
    model, processor = AutoModelForImageTextToText.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    expected = []
    with torch.no_grad():
        for row, question, answer in zip(ROWS, QUESTIONS, ANSWERS, strict=True):
            forms = answer_tokens("", processor.tokenizer, answer)
            each = [stock_log_probability(model, processor, pictures[row], question, form) for form in forms]
            expected.append(torch.stack(each).logsumexp(0))
    expected = torch.stack(expected)
    assert expected.std() > 0.3
    found = judge.log_probabilities(pictures, QUESTIONS, ANSWERS, ROWS)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def evaluated(judge, pictures):
    images = pictures.clone().requires_grad_()
    scores = judge.log_probabilities(images, QUESTIONS, ANSWERS, ROWS)
    return scores.detach(), torch.autograd.grad(scores.sum(), images)[0]


def test_an_image_that_is_read_once_gives_the_same(judge, pictures, monkeypatch):
    """Scores and gradients, but for rounding."""
    taken = []
    share = judging.shared_logits
    monkeypatch.setattr(judging, "shared_logits", lambda *given: taken.append(share(*given)) or taken[-1])
    shared = evaluated(judge, pictures)
    assert len(taken) == 1 and taken[0] is not None
    monkeypatch.setattr(judging, "shares_images", lambda *given: False)
    for once, anew in zip(shared, evaluated(judge, pictures), strict=True):
        assert (once - anew).norm() < 1e-5 * anew.norm()


def test_questions_before_the_image_are_read_with_it(qwen, pictures, monkeypatch):
    last = copy.copy(qwen)
    last.language_model = with_template(qwen, lambda text: text.replace("['content']", "['content'] | reverse"))
    assert last.language_model.conversation("Is it").index("Is it") < last.language_model.conversation("Is it").index(
        "<|image"
    )
    taken = []
    share = judging.shared_logits
    monkeypatch.setattr(judging, "shared_logits", lambda *given: taken.append(share(*given)) or taken[-1])
    together = last.log_probabilities(pictures, QUESTIONS, ANSWERS, ROWS)
    assert taken == [None]
    alone = [
        last.log_probabilities(pictures[row : row + 1], [question], [answer])
        for row, question, answer in zip(ROWS, QUESTIONS, ANSWERS, strict=True)
    ]
    torch.testing.assert_close(torch.cat(alone), together, rtol=1e-5, atol=1e-5)


def test_what_else_is_in_the_batch_changes_nothing_but_rounding(judge, pictures, monkeypatch):
    together = judge.log_probabilities(pictures, QUESTIONS, ANSWERS, ROWS)
    alone = [
        judge.log_probabilities(pictures[row : row + 1], [question], [answer])
        for row, question, answer in zip(ROWS, QUESTIONS, ANSWERS, strict=True)
    ]
    torch.testing.assert_close(torch.cat(alone), together, rtol=1e-5, atol=1e-5)
    monkeypatch.setattr(judge, "max_batch_size", 2)
    in_parts = judge.log_probabilities(pictures, QUESTIONS, ANSWERS, ROWS)
    torch.testing.assert_close(in_parts, together, rtol=1e-5, atol=1e-5)


def test_the_page_s_table(folder, request):
    """The row of the model, of which the other tests show that it is so."""
    rows = {row[0]: row[1:] for row in documented("`model_type`", PAGE)}
    assert list(rows) == [*KINDS, "paligemma"]
    kind = request.node.callspec.params["folder"]
    found = VisionLanguageJudge(folder)
    once = kind in SHARING_MODELS
    assert rows[kind][1:] == ["yes" if found.differentiable else "no", "once" if once else "for each question"]


SIZES = {"qwen2_vl": (84, 56), "qwen2_5_vl": (84, 56), "qwen3_vl": (96, 64), "idefics3": (56, 56), "smolvlm": (56, 56)}
"""Sizes that processors leave as they are, but for the overview of Idefics3; of all others 28 x 28."""


@pytest.mark.slow
def test_gradients(judge, request):
    """Against differences by whole 8-bit levels, which the scores see exactly where no resizing rounds them again."""
    kind = request.node.callspec.params["folder"]
    size = SIZES.get(kind, (28, 28))
    generator = torch.Generator().manual_seed(0)
    levels = torch.randint(10, 240, (2, 3, *size), generator=generator)
    images = (levels / 255).requires_grad_()

    def score(images):
        return judge.log_probabilities(images, ["Is it a cat", "Is it"], ["Yes", "a dog"]).sum()

    (gradient,) = torch.autograd.grad(score(images), images)
    step = torch.randint(0, 2, levels.shape, generator=generator) * 2.0 - 1
    ends = [score((levels + sign * step) / 255) for sign in (1, -1)]
    tolerance = 0.25 if kind in ("idefics3", "smolvlm") else 0.05
    torch.testing.assert_close((gradient * step).sum() / 255, (ends[0] - ends[1]) / 2, rtol=tolerance, atol=0)


@pytest.mark.slow
def test_generated_replies_are_the_stock_model_s(folder, judge, pictures):
    model, processor = AutoModelForImageTextToText.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    expected = []
    for picture, question in zip(pictures, QUESTIONS[:3], strict=True):
        content = [{"type": "image", "image": to_pil_image(picture)}, {"type": "text", "text": question}]
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        drawn = model.generate(**inputs, max_new_tokens=4, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        expected.append(processor.tokenizer.decode(drawn, skip_special_tokens=True).strip())
    assert judge.generate(pictures, QUESTIONS[:3], max_new_tokens=4) == expected


def test_next_tokens_are_a_distribution_that_answers_are_read_from(qwen, pictures):
    law = qwen.next_token_probabilities(pictures, QUESTIONS[:3])
    torch.testing.assert_close(law.sum(1), torch.ones(3))
    ids = [qwen.processor.tokenizer.convert_tokens_to_ids(word) for word in ("Yes", "no", "2")]
    found = qwen.probabilities(pictures, QUESTIONS[:3], ["Yes", "no", "2"])
    torch.testing.assert_close(law[range(3), ids], found)


@pytest.mark.slow
def test_gradient_checkpointing_reads_whole_rows(qwen_folder, qwen, pictures, monkeypatch):
    checkpointed = VisionLanguageJudge(qwen_folder, gradient_checkpointing=True)
    expected = evaluated(qwen, pictures)
    monkeypatch.setattr(judging, "shared_logits", lambda *given: pytest.fail("shared"))
    for found, known in zip(evaluated(checkpointed, pictures), expected, strict=True):
        assert (found - known).norm() < 1e-5 * known.norm()


def test_a_call_leaves_nothing_in_the_model(qwen, pictures, monkeypatch):
    """Where images have their places is else an attribute of the model, and generation, which needs it, has to wait."""
    monkeypatch.setattr(qwen.model.model, "rope_deltas", "another thread's")
    qwen.probabilities(pictures, QUESTIONS[:3], ["Yes"] * 3)
    qwen.probabilities(pictures, QUESTIONS, ANSWERS, ROWS)
    assert qwen.model.model.rope_deltas == "another thread's"
    # One thread must not turn off the padding that another is about to use.
    qwen.check_exclusive(["Yes", "No"])
    assert qwen.processor.tokenizer.backend_tokenizer.padding is not None
    locked = []
    monkeypatch.setattr(
        qwen.model, "generate", lambda input_ids, **_: locked.append(asking._GENERATING.locked()) or input_ids
    )
    assert qwen.generate(pictures, QUESTIONS[:3]) == [""] * 3 and locked == [True]


def test_one_row_tells_all_answers_to_a_question():
    reading = AnswerRows([0, 0, 0, 1], ["a?", "a?", "b?", "a?"], [[(1,)], [(2, 3, 4), (2, 5)], [(6,)], [(1,)]])
    assert reading.asked == [Asked(0, "a?", (2, 3)), Asked(0, "b?"), Asked(1, "a?")]


@pytest.mark.slow
def test_threads_do_not_meet(qwen, pictures):
    """Also while one of them generates, for which the model keeps positions as its own attribute."""

    def ask(index):
        size = 60 + 30 * (index % 3)
        images = pictures[:, :, :size, :size]
        if index % 4 == 3:
            return qwen.generate(images, QUESTIONS[:3], 4)
        return qwen.probabilities(images, QUESTIONS, ANSWERS, ROWS)

    expected = [ask(index) for index in range(12)]
    with ThreadPoolExecutor(4) as pool:
        for found, known in zip(pool.map(ask, list(range(12)) * 4), expected * 4, strict=True):
            assert found == known if isinstance(known, list) else torch.equal(found, known)


@pytest.mark.slow
def test_half_precision(folder, judge, pictures):
    low = VisionLanguageJudge(folder, dtype=torch.bfloat16)
    scores = low.log_probabilities(pictures, QUESTIONS, ANSWERS, ROWS)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, judge.log_probabilities(pictures, QUESTIONS, ANSWERS, ROWS), atol=0.3, rtol=0)


def test_answers_as_tokens(qwen):
    tokenizer = qwen.processor.tokenizer

    def ids(*words):
        return tuple(tokenizer.convert_tokens_to_ids(list(words)))

    # A form that begins with another is counted with it, one of unknown words is none.
    assert answer_tokens("", tokenizer, ["a", "a red cat", "Perhaps"]) == [ids("a")]
    assert answer_tokens("", tokenizer, "a red cat") == [ids("a", "red", "cat")]
    with pytest.raises(
        ValueError, match="the answer 'Perhaps', which this model's tokeniser cannot write; give another"
    ):
        answer_tokens("it", tokenizer, "Perhaps")
    assert surface_forms("Paris") == ("Paris", "paris", " Paris", " paris")
    assert set(surface_forms("2")) == set(surface_forms("two"))


class SpacingTokenizer:
    """One that writes a space as a token of its own before figures."""

    unk_token_id = None

    def encode(self, text, add_special_tokens):
        return {"3": [3], " 3": [0, 3], " ": [0], "three": [5], " three": [6]}[text]

    def decode(self, ids):
        return {0: " ", 3: "3", 5: "three", 6: " three"}[ids[0]]


def test_no_answer_begins_with_white_space_alone():
    assert answer_tokens("", SpacingTokenizer(), ["3", " 3", "three", " three"]) == [(3,), (5,), (6,)]
    assert answer_tokens("", SpacingTokenizer(), " 3") == [(0, 3)]


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        ({"max_batch_size": 0}, ValueError, "max_batch_size is 0; give a whole number"),
        ({"weights": "x"}, TypeError, "unknown option weights='x'; for loading it takes"),
        ({"device": "cpu", "device_map": "auto"}, ValueError, "device='cpu' and device_map='auto'; give one of them"),
        ({"quantization": "int3"}, ValueError, "quantization is 'int3'; choose one of nf4, int8"),
        (
            {"quantization": "nf4"},
            ImportError,
            "quantization='nf4', which needs bitsandbytes; pip install bitsandbytes",
        ),
        ({"quantization": "int8"}, ImportError, "quantization='int8', which needs torchao; pip install torchao"),
    ],
)
def test_bad_options(options, error, sentence, monkeypatch):
    """Before anything is loaded: there is no such checkpoint."""
    monkeypatch.setattr(loading, "find_spec", lambda package: None)
    with pytest.raises(error) as raised:
        VisionLanguageJudge("nowhere/to/be/found", **options)
    assert sentence in str(raised.value)


@pytest.mark.parametrize("device", [None, "cpu", "cuda"])
def test_four_bits_need_a_cuda_device(device, monkeypatch):
    monkeypatch.setattr(loading, "find_spec", lambda package: package)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: device == "cpu")
    with pytest.raises(ValueError, match=r"needs a CUDA device, but .*; give quantization='int8', or leave it out"):
        VisionLanguageJudge("nowhere/to/be/found", quantization="nf4", device=device)


def test_what_quantises(monkeypatch):
    config = loading.quantization_config("nf4", None)
    assert (config.load_in_4bit, config.bnb_4bit_quant_type) == (True, "nf4")
    assert config.bnb_4bit_compute_dtype == torch.bfloat16
    assert loading.quantization_config("nf4", torch.float16).bnb_4bit_compute_dtype == torch.float16


@pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="there is no torchao")
def test_eight_bits(qwen_folder, qwen, pictures):
    """Where torchao is installed: nearly the same scores, with gradients, and no other dtype afterwards."""
    small = VisionLanguageJudge(qwen_folder, quantization="int8", device="cpu")
    found, known = evaluated(small, pictures), evaluated(qwen, pictures)
    torch.testing.assert_close(found[0], known[0], atol=0.3, rtol=0)
    assert (found[1] - known[1]).norm() < 0.3 * known[1].norm()
    with pytest.raises(ValueError, match=r"dtype=torch\.float16, but its model was placed or quantised"):
        small.to(dtype=torch.float16)
    assert small.to("meta").model.device.type == "meta"


def test_a_device_map_is_kept(qwen_folder, qwen, pictures):
    mapped = VisionLanguageJudge(qwen_folder, device_map={"": "cpu"})
    assert mapped.to("meta").model.device.type == "cpu"
    assert torch.equal(
        mapped.probabilities(pictures, QUESTIONS[:3], ["Yes"] * 3),
        qwen.probabilities(pictures, QUESTIONS[:3], ["Yes"] * 3),
    )


def with_template(judge, change):
    """The model with another chat template."""
    processor = copy.copy(judge.processor)
    processor.chat_template = change(processor.chat_template)
    return asking.VisionLanguageModel("it", judge.model, processor)


THINKING = "{% if enable_thinking is not defined or enable_thinking %}<think>{% else %}<think></think>{% endif %}"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda text: text + "<think>", "thinks before it answers .* give its instruct variant, or a template with"),
        (lambda text: text.replace("<|vision_start|><|image_pad|><|vision_end|>", ""), "shows no image"),
        (lambda text: text.replace("{{ part['text'] }}", ""), "shows no question"),
    ],
)
def test_templates_that_are_refused(qwen, change, sentence):
    with pytest.raises(ValueError, match=sentence):
        with_template(qwen, change)


def test_a_model_that_can_think_is_asked_not_to(qwen):
    model = with_template(qwen, lambda text: text + THINKING)
    assert model.conversation("Is it").endswith("<think></think>")


def test_paligemma_has_no_template(tmp_path):
    save_tiny_model("paligemma", tmp_path)
    with pytest.raises(ValueError, match="lacks a chat template; give a complete instruction-tuned"):
        VisionLanguageJudge(tmp_path)


def test_bad_questions(qwen, pictures):
    with pytest.raises(ValueError, match=r"where '<\|image_pad\|>' stands for an image; leave it out"):
        qwen.probabilities(pictures[:1], ["Is <|image_pad|> it"], ["Yes"])
    with pytest.raises(ValueError, match="got 2 questions about 3 images, rows=None; give a question for each image"):
        qwen.probabilities(pictures, ["Is it"] * 2, ["Yes"] * 2)
    with pytest.raises(ValueError, match=r"rows=\[3\]"):
        qwen.probabilities(pictures, ["Is it"], ["Yes"], [3])
    with pytest.raises(ValueError, match="got 1 questions with 2 answers; give as many"):
        qwen.probabilities(pictures, ["Is it"], ["Yes", "No"], [0])


def test_every_tiny_model_has_its_tests():
    assert {*KINDS, "paligemma"} == {kind for kind in MAKERS if not kind.startswith("few_words")}

"""Chat completions: what is asked, and how scores are read."""

import base64
import io
import math

import pytest
import torch
from PIL import Image

from diamond_diffusers.rewards.remote import (
    AnswerError,
    ChatCompletions,
    ExpectedGrade,
    NumberAnswer,
    Prices,
    RemoteReward,
    Retries,
    YesProbability,
)

from .services import saying, serving

QUICK = Retries(attempts=1)


def said(text):
    return {"message": {"role": "assistant", "content": text}}


def tokens(**probabilities):
    each = [{"token": token, "logprob": math.log(p) if p else -math.inf} for token, p in probabilities.items()]
    return {"logprobs": {"content": [{"token": "?", "top_logprobs": each}]}}


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("7", 7), (" 7.5\n", 7.5), ("Score: 7/10.", 7), ("**8** out of 10", 8), ("10 / 10", 10), ("0", 0), (".5", 0.5),
        ("I rate it 1e1", 10), ("+3", 3), ("7 / 10.0", 7), ("(4)", 4), ("model2 says 6", 6),
    ],
)  # fmt: skip
def test_the_one_number_of_a_text(text, score):
    assert NumberAnswer(0, 10).read(said(text)) == score


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("very good", "which holds no number"),
        ("7 because there are 3 apples", "which holds 2 numbers"),
        ("7-8", "2 numbers"),
        ("7/100", "2 numbers"),
        ("11", "the number 11, which is not from 0 to 10"),
        ("-1", "the number -1"),
        ("", "a message without text"),
        (None, "a message without text"),
        (["7"], "a message without text"),
    ],
)
def test_a_text_of_which_the_score_is_not_plain_is_refused(text, sentence):
    with pytest.raises(AnswerError, match=sentence) as caught:
        NumberAnswer(0, 10).read(said(text))
    assert caught.value.remedy


def test_the_probability_of_yes():
    # 0.5 + 0.1 of "yes" in two spellings, beside 0.2 of "no".
    choice = tokens(**{"Yes": 0.5, " yes": 0.1, "No": 0.2, "Maybe": 0.1})
    assert YesProbability().read(choice) == pytest.approx(0.75)
    assert YesProbability().read(tokens(No=0.9, YES=0.0)) == 0
    assert YesProbability().read(tokens(**{"\u2581yes": 0.3})) == 1
    with pytest.raises(AnswerError, match="neither yes nor no"):
        YesProbability().read(tokens(Maybe=1.0, Yesterday=0.1))


def test_the_mean_grade():
    # (3 * 0.2 + 5 * 0.6) / 0.8
    assert ExpectedGrade(1, 5).read(tokens(**{"3": 0.2, " 5": 0.6, "9": 0.1, "The": 0.1})) == pytest.approx(4.5)
    with pytest.raises(AnswerError, match="no grade from 1 to 5"):
        ExpectedGrade(1, 5).read(tokens(**{"9": 1.0}))


@pytest.mark.parametrize(
    "choice", [{}, {"logprobs": None}, {"logprobs": {"content": []}}, {"logprobs": {"content": [{"top_logprobs": []}]}}]
)
@pytest.mark.parametrize("reader", [YesProbability(), ExpectedGrade()])
def test_a_service_that_tells_no_probabilities_is_refused(reader, choice):
    with pytest.raises(AnswerError, match="no 'top_logprobs'"):
        reader.read(choice)


@pytest.mark.parametrize("broken", [{"token": 3}, {"token": "yes"}, {"token": "yes", "logprob": "0"}, "yes"])
def test_tokens_that_are_none_are_passed_over(broken):
    with pytest.raises(AnswerError, match="neither"):
        YesProbability().read({"logprobs": {"content": [{"top_logprobs": [broken]}]}})


def test_logarithms_beyond_floats_are_those_of_zero():
    tokens = [
        {"token": "yes", "logprob": -(10**400)},
        {"token": "no", "logprob": -math.inf},
        {"token": "no", "logprob": 0},
    ]
    assert YesProbability().read({"logprobs": {"content": [{"top_logprobs": tokens}]}}) == 0


def test_each_image_is_asked_about_in_the_form_of_openai():
    answer = {"choices": [tokens(Yes=0.3, No=0.1)], "usage": {"prompt_tokens": 200, "completion_tokens": 1}}
    with serving(saying(answer)) as service:
        reward = RemoteReward(
            f"{service.url}/v1",
            ChatCompletions("qwen", 'Does it show "{}"?', YesProbability(), {"seed": 1, "temperature": None}),
            retries=QUICK,
            prices=Prices(per_million_input_tokens=10.0, per_million_output_tokens=1000.0),
            max_concurrent_requests=1,
        )
        images = torch.tensor([0.0, 1.0])[:, None, None, None].expand(2, 3, 4, 6)
        torch.testing.assert_close(reward(images, ["a {}", "b"]), torch.tensor([0.75, 0.75]))
        assert reward.usage.price == pytest.approx(2 * (200 * 10 + 1000) / 1e6)
    asked = sorted(service.asked, key=lambda each: each[2]["messages"][0]["content"][1]["text"])
    for (path, _, body), level, prompt in zip(asked, (0, 255), ("a {}", "b"), strict=True):
        (message,) = body.pop("messages")
        assert path == "/v1/chat/completions"
        assert body == {"model": "qwen", "max_tokens": 1, "logprobs": True, "top_logprobs": 20, "seed": 1}
        image, text = message["content"]
        kind, _, data = image["image_url"]["url"].partition(",")
        opened = Image.open(io.BytesIO(base64.b64decode(data)))
        assert kind == "data:image/png;base64" and opened.size == (6, 4) and opened.getpixel((0, 0)) == (level,) * 3
        assert text == {"type": "text", "text": f'Does it show "{prompt}"?'} and message["role"] == "user"


def test_a_question_without_a_place_reads_no_prompts():
    with serving(saying({"choices": [said("7")]})) as service:
        reward = RemoteReward(service.url, ChatCompletions("m", "How sharp is it, from 0 to 10?"), retries=QUICK)
        assert not reward.reads_prompts
        assert reward(torch.zeros(2, 3, 8, 8), ["a", "b"]).tolist() == [7, 7] and len(service.asked) == 1


@pytest.mark.parametrize("answer", [{}, {"choices": []}, {"choices": ["7"]}, [7], {"error": {"message": "busy"}}])
def test_what_is_no_chat_is_refused(answer):
    with serving(saying(answer)) as service:
        reward = RemoteReward(service.url, ChatCompletions("m", "q"), name="judge", retries=QUICK)
        with pytest.raises(OSError, match=r"Reward 'judge': .* answered no 'choices' of a chat; give the URL"):
            reward(torch.zeros(1, 3, 8, 8), ["a"])


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: ChatCompletions("", "q"), "model is ''; give a text"),
        (lambda: ChatCompletions("m", None), "question is None; give a text"),
        (lambda: ChatCompletions("m", "q", "yes"), "reader is 'yes'; give an AnswerReader"),
        (lambda: NumberAnswer(1, 1), "give lowest < highest"),
        (lambda: ExpectedGrade(1, 10), "lowest is 1 and highest 10; give two digits"),
    ],
)
def test_wrong_options_are_refused(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()

"""A key is sent, and shown nowhere."""

import base64
import copy
import io
import logging
import pickle
import traceback

import pytest
import torch

from diamond_diffusers.rewards.errors import UnavailableError
from diamond_diffusers.rewards.remote import ChatCompletions, RemoteReward, Retries

from .services import drop, half, saying, serving, status

KEY = 'sk-Geheim/Wxyz+Qjkv"Zfgh'
QUICK = Retries(attempts=2, first_delay=0.01, jitter=0)
IMAGES, PROMPTS = torch.zeros(1, 3, 8, 8), ["a"]
PARTS = ("Geheim", "Wxyz", "Qjkv", "Zfgh", base64.b64encode(f"me:{KEY}".encode()).decode()[:12])
FORMS = {
    "header": "",
    "parameter": "/score?version=2&key={api_key}",
    "password": "password",
    "own header": "own header",
}


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", f" {KEY}\n")


def judge(service, form="header", **options):
    url, more = service.url, {}
    if form == "parameter":
        url += FORMS[form]
    elif form == "password":
        url = url.replace("//", "//me:{api_key}@")
    elif form == "own header":
        more["api_key_header"] = "X-Key: Token {api_key}"
    return RemoteReward(url, api_key_env="JUDGE_KEY", retries=QUICK, **more, **options)


def check(text):
    assert not [part for part in PARTS if part in text], text


@pytest.mark.parametrize("form", FORMS)
def test_the_key_is_sent(form):
    with serving() as service:
        judge(service, form)(IMAGES, PROMPTS)
    ((path, headers, body),) = service.asked
    expected = {
        "header": headers.get("authorization") == f"Bearer {KEY}",
        "parameter": path == "/score?version=2&key=sk-Geheim%2FWxyz%2BQjkv%22Zfgh",
        "password": headers.get("authorization") == f"Basic {base64.b64encode(f'me:{KEY}'.encode()).decode()}",
        "own header": headers.get("x-key") == f"Token {KEY}",
    }
    assert expected[form] and KEY not in str(body)
    assert "authorization" not in headers or form in ("header", "password")


ECHOES = {
    "error": lambda handler, request: handler.answer(f"bad key {KEY}", 500),
    "JSON error": lambda handler, request: handler.answer({"error": f"key '{KEY}' of {handler.path}"}, 422),
    "unauthorised": lambda handler, request: handler.answer(f"not {KEY[:9]}", 401),
    "headers": lambda handler, request: handler.answer(str(dict(handler.headers)) + handler.path, 400),
    "long": lambda handler, request: handler.answer("x" * 190 + KEY, 400),
    "redirect": lambda handler, request: handler.answer("", 302, Location=f"http://other/{KEY}"),
    "text": saying(f"<html>{KEY}</html>"),
    "score": saying([KEY]),
    "long score": saying(["x" * 60 + KEY]),
    "entries": saying({KEY: 1}),
    "escaped": saying('{"\\u0073k-Geheim\\/Wxyz+Qjkv\\"Zfgh": 1}'),
    "dropped": drop,
    "half": half,
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("echo", ECHOES)
def test_the_key_is_in_no_error_and_no_log(echo, form, caplog):
    caplog.set_level(logging.DEBUG)
    with serving(ECHOES[echo]) as service:
        reward = judge(service, form, name="judge")
        with pytest.raises(OSError, match="'judge': http") as caught:
            reward(IMAGES, PROMPTS)
    check(str(caught.value))
    log = [record for record in caplog.records if record.name.startswith(("httpx", "diamond")) or record.levelno > 10]
    check(str([record.getMessage() for record in log]))
    shown = io.StringIO()
    traceback.print_exception(caught.value, file=shown)
    assert KEY not in shown.getvalue() and caught.value.__context__ is None
    check(pickle.dumps(caught.value).decode("latin-1"))


@pytest.mark.parametrize("form", FORMS)
def test_the_key_is_in_no_object_and_no_file(form, tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    with serving() as service:
        reward = judge(service, form, cache_folder=tmp_path)
        reward(IMAGES, PROMPTS)
        texts = [repr(reward), str(vars(reward)), reward.name, reward.url, str(reward.usage), (2 * reward).name]
        texts += [pickle.dumps(reward).decode("latin-1"), str(vars(copy.copy(reward))), caplog.text]
        texts += [f"{file} {file.read_text()}" for file in tmp_path.rglob("*") if file.is_file()]
        for text in texts:
            check(text)
        # Nor in what hangs on it.
        seen = str({key: vars(value) for key, value in vars(reward).items() if hasattr(value, "__dict__")})
        check(seen)
        assert reward.url == service.url + ("/score" if form == "parameter" else "")


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("https://me:GeheimWxyz@host/score", "a user or a password, which would be seen"),
        ("https://GeheimWxyz@host/score", "a user or a password"),
        ("https://host/score?api_key=GeheimWxyz", "the parameter 'api_key', which would be seen in records; write"),
        ("https://host/score?a=1&Signature=GeheimWxyz", "the parameter 'Signature'"),
        ("https://host/score?key={api_key}", "api_key_env=None; name the environment variable"),
        ("ftp://host", "with http or https and a host"),
        ("file:///etc/passwd", "with http or https"),
        ("http://", "with http or https"),
        ("localhost:8000", "with http or https"),
        ("http://host/#part", "with http or https"),
        ("http://host:99999", "cannot be read"),
        ("http://[::1", "cannot be read"),
        ("http://ho st/GeheimWxyz", "blanks"),
        ("http://host/\nGeheimWxyz", "blanks"),
        (8000, "url=8000; give one such as"),
    ],
)
def test_a_url_with_a_secret_or_of_another_kind_is_refused_and_not_shown(url, sentence):
    with pytest.raises(ValueError, match=f"^Reward 'remote' got .*{sentence}") as caught:
        RemoteReward(url)
    check(str(caught.value))


def test_a_key_that_is_missing_or_given_itself_is_refused(monkeypatch):
    with pytest.raises(ValueError, match="api_key_env='NO_SUCH_KEY', an environment variable that is not set; set it"):
        RemoteReward("https://host", api_key_env="NO_SUCH_KEY")
    with pytest.raises(ValueError, match="an api_key_env that is no name of an environment variable") as caught:
        RemoteReward("https://host", api_key_env=KEY)
    check(str(caught.value))
    with pytest.raises(ValueError, match="api_key_header without") as caught:
        RemoteReward("https://host", api_key_env="JUDGE_KEY", api_key_header=f"X-Key: {KEY}")
    check(str(caught.value))
    monkeypatch.setenv("JUDGE_KEY", f"{KEY}\nX-Other: 1")
    with pytest.raises(ValueError, match="whose value has blanks") as caught:
        RemoteReward("https://host", api_key_env="JUDGE_KEY")
    check(str(caught.value))


def test_a_key_that_is_taken_away_is_missed(monkeypatch):
    with serving() as service:
        reward = judge(service)
        monkeypatch.delenv("JUDGE_KEY")
        with pytest.raises(UnavailableError, match="finds no key: the environment variable JUDGE_KEY is not set any"):
            reward(IMAGES, PROMPTS)
        assert not service.asked


def test_the_redirect_of_a_service_takes_no_key_elsewhere():
    with serving() as other, serving(status(307, Location=other.url)) as service:
        with pytest.raises(UnavailableError, match="redirect"):
            judge(service)(IMAGES, PROMPTS)
        assert not other.asked


def test_a_chats_answer_is_shown_without_the_key():
    answer = {"choices": [{"message": {"content": "y" * 100 + KEY}}]}
    with serving(saying(answer)) as service, pytest.raises(OSError, match="which holds no number") as caught:
        judge(service, protocol=ChatCompletions("m", "q"))(IMAGES, PROMPTS)
    check(str(caught.value))

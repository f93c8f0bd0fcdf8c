"""Whatever a service does wrong is told in one sentence, at once or after some repetitions."""

import json
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
import torch

from diamond_diffusers.rewards.errors import LimitError, RefusedError, UnavailableError
from diamond_diffusers.rewards.remote import RemoteReward, Retries, Timeouts
from diamond_diffusers.rewards.remote.answers import MAX_ANSWER_BYTES
from diamond_diffusers.rewards.remote.limits import retry_after

from .services import closing, dripping, drop, half, huge, late, saying, serving, status

QUICK = Retries(attempts=3, first_delay=0.01, max_delay=0.1, jitter=0)
SHORT = Timeouts(connect=1.0, read=0.1, total=0.15)
IMAGES, PROMPTS = torch.zeros(2, 3, 8, 8), ["", "a"]
HTML = "<!DOCTYPE html><html><body>Log in</body></html>"

PASSING = {
    "429": (
        status(429, '{"error": "slow down"}'),
        r"429 Too Many Requests with the text .*slow down.*; see the service",
    ),
    "500": (status(500, "Traceback"), "answered 500 Internal Server Error with the text 'Traceback'"),
    "502": (status(502, HTML), "answered 502 Bad Gateway"),
    "503": (status(503), "answered 503 Service Unavailable in the last of 3 attempts; see"),
    "dropped": (drop, "broke off the connection"),
    "half an answer": (half, "broke off the connection"),
    "late": (late(0.13), "sent nothing for 0.1 s in the last of 3 attempts; raise timeouts"),
    "dripping body": (dripping("body"), "had not answered as a whole within 0.15 s"),
    "dripping head": (dripping("head"), "had not answered as a whole within 0.15 s"),
}


@pytest.mark.parametrize(("fault", "sentence"), PASSING.values(), ids=PASSING)
def test_what_may_pass_is_repeated(fault, sentence):
    with serving(None, fault) as service:
        reward = RemoteReward(service.url, name="judge", retries=QUICK, timeouts=SHORT)
        assert reward(IMAGES, PROMPTS).tolist() == [0, 1]
        assert reward.usage.retries == 1 and len(service.asked) == 2
    with serving(fault) as service:
        reward = RemoteReward(service.url, name="judge", retries=QUICK, timeouts=SHORT)
        with pytest.raises(UnavailableError, match=f"^Reward 'judge': {service.url} .*{sentence}.*[.]$") as caught:
            reward(IMAGES, PROMPTS)
        assert len(service.asked) == 3
        # Nothing of the library comes with it, which has the request in it.
        assert caught.value.__context__ is None and caught.value.__cause__ is None


REFUSED = {
    "400": (status(400, '{"detail": "no such model"}'), RefusedError, "400 Bad Request with the text .*no such model"),
    "401": (status(401, "who?"), UnavailableError, "401 Unauthorized; give api_key_env"),
    "403": (status(403), UnavailableError, "403 Forbidden; give api_key_env"),
    "404": (status(404), UnavailableError, "404 Not Found; check the path of url"),
    "413": (status(413), RefusedError, "413"),
    "422": (status(422, "image 1"), RefusedError, "422 Unprocessable Entity with the text 'image 1'; check that the"),
    "501": (status(501), RefusedError, "501 Not Implemented"),
    "599": (status(599), RefusedError, "status 599"),
    "redirect": (
        status(307, Location="http://evil.test/a?key=b"),
        UnavailableError,
        "redirect to 'http://evil.test/a'; g",
    ),
    "HTML": (saying(HTML), OSError, "answered 200 OK with HTML .*; give the URL of the service itself"),
    "half a JSON": (saying("[0.5, "), OSError, r"with what is no whole JSON \('\[0.5,'\); let it answer JSON"),
    "nothing": (saying(""), OSError, "answered 200 OK with nothing; let it answer JSON"),
    "brackets": (saying("[" * 100_000), OSError, "no whole JSON"),
    "NaN": (saying("[1, NaN]"), OSError, "answered nan for image 1; let it answer finite numbers"),
    "infinity": (saying("[-Infinity, 1]"), OSError, "answered -inf for image 0"),
    "beyond float32": (saying("[1e39, 1]"), OSError, "a number beyond float32 for image 0"),
    "without end": (saying(f"[{'9' * 400}, 1]"), OSError, "a number beyond float32 for image 0"),
    "thousands of digits": (saying(f"[{'9' * 5000}, 1]"), OSError, "no whole JSON"),
    "texts": (saying(["0.5", 1]), OSError, "answered '0.5' for image 0, which is no number; let it answer numbers"),
    "true": (saying([True, 1]), OSError, "answered True for image 0, which is no number"),
    "null": (saying([1, None]), OSError, "answered None for image 1"),
    "too few": (saying([1]), OSError, "answered 1 scores for 2 images; let it answer one score for each"),
    "too many": (saying([1, 2, 3]), OSError, "answered 3 scores for 2 images"),
    "a number": (saying(0.5), OSError, "answered 0.5, which is no list"),
    "another object": (
        saying({"error": "busy"}),
        OSError,
        "an object with the entries 'error', and no list under 'scores'",
    ),
    "compressed": (saying([1, 2], Content_Encoding="gzip"), OSError, r"compressed its answer \(gzip\)"),
    "huge": (huge, OSError, "answered more than 8 MiB"),
}


@pytest.mark.parametrize(("fault", "error", "sentence"), REFUSED.values(), ids=REFUSED)
def test_what_stays_is_told_at_once(fault, error, sentence):
    with serving(fault) as service:
        reward = RemoteReward(service.url, name="judge", retries=QUICK)
        with pytest.raises(OSError, match=f"^Reward 'judge': {service.url} .*{sentence}") as caught:
            reward(IMAGES, PROMPTS)
        assert type(caught.value) is error and not isinstance(caught.value, LimitError)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
        assert len(service.asked) == 1 and caught.value.__context__ is None
        # No more is read than may come.
        assert service.megabytes < 30


def test_no_redirect_is_followed():
    with serving() as other, serving(status(308, Location=other.url)) as service:
        with pytest.raises(UnavailableError, match="a redirect to"):
            RemoteReward(service.url, retries=QUICK)(IMAGES, PROMPTS)
        assert not other.asked


def test_a_connection_that_the_service_has_closed_is_opened_anew():
    with serving(closing) as service:
        reward = RemoteReward(service.url, retries=QUICK, cache_size=0)
        for _ in range(5):
            assert reward(IMAGES, PROMPTS).tolist() == [0, 1]


def test_the_other_requests_of_a_batch_are_kept():
    with serving(None, status(422)) as service:
        reward = RemoteReward(service.url, retries=QUICK, max_batch_size=1, max_concurrent_requests=1)
        with pytest.raises(RefusedError):
            reward(IMAGES, PROMPTS)
        assert reward(IMAGES, PROMPTS).tolist() == [0, 1]
        assert len(service.asked) == 3


def test_who_asks_to_wait_for_long_is_not_waited_for():
    with serving(status(503, Retry_After="3600")) as service:
        with pytest.raises(UnavailableError, match="503 Service Unavailable; it asks to wait 3600 s: come back then"):
            RemoteReward(service.url, retries=QUICK)(IMAGES, PROMPTS)
        assert len(service.asked) == 1


def test_the_time_to_wait_is_read_from_numbers_and_dates():
    assert [retry_after(text) for text in (None, "2", "-1", "0.5", "soon", "nan")] == [None, 2, 0, 0.5, None, None]
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=100), usegmt=True)
    assert 90 < retry_after(later) <= 100


def test_delays_grow_and_vary(monkeypatch):
    import random

    generator = random.Random(0)
    retries = Retries(first_delay=1.0, max_delay=5.0)
    delays = [[retries.delay(index, generator) for _ in range(200)] for index in range(4)]
    for most, found in zip((1, 2, 4, 5), delays, strict=True):
        assert most / 2 <= min(found) < max(found) <= most and len(set(found)) > 100


def test_a_host_that_is_none():
    for url in ("http://nowhere.invalid", "http://a..b"):
        reward = RemoteReward(url, name="judge", retries=Retries(attempts=1))
        with pytest.raises(UnavailableError, match=r"Reward 'judge': http://\S+ (was not reached|has no host)"):
            reward(IMAGES, PROMPTS)


def test_the_most_that_an_answer_may_hold_is_enough():
    assert len(json.dumps([-0.12345678901234567] * 100_000)) < MAX_ANSWER_BYTES


def test_proxies_of_the_environment(monkeypatch):
    with serving() as service:
        # As curl and others take it, without http.
        monkeypatch.setenv("http_proxy", service.url.removeprefix("http://"))
        assert RemoteReward("http://judge.invalid", retries=QUICK)(IMAGES, PROMPTS).tolist() == [0, 1]
        assert len(service.asked) == 1
    for proxy in ("ftp://user:secretpass@proxy", "socks5://user:secretpass@proxy:1080", "http://secretpass@[::"):
        monkeypatch.setenv("http_proxy", proxy)
        sentence = (
            r"names a proxy for http://judge\.invalid that cannot be used; give it as http://host:port .*NO_PROXY\.$"
        )
        with pytest.raises(UnavailableError, match=sentence) as caught:
            RemoteReward("http://judge.invalid", retries=QUICK)(IMAGES, PROMPTS)
        assert "secretpass" not in str(caught.value)
        assert caught.value.__context__ is None and caught.value.__cause__ is None

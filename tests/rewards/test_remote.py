"""A remote reward asks a real service: in batches, at once, with limits, from a cache."""

import copy
import gc
import json
import multiprocessing
import os
import pickle
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from diamond_diffusers.core.cost import Cost, charged_to
from diamond_diffusers.core.interruption import Interrupted, ended_by
from diamond_diffusers.rewards import Brightness, ClippedReward, Reward, as_reward
from diamond_diffusers.rewards.errors import LimitError, UnavailableError
from diamond_diffusers.rewards.remote import Prices, RemoteProtocol, RemoteReward, Retries, Timeouts, Usage

from .services import drop, late, saying, serving, silent, status

QUICK = Retries(attempts=3, first_delay=0.01, max_delay=0.2, jitter=0)


@pytest.fixture
def service():
    with serving() as service:
        yield service


def grey(*levels, size=8):
    """Images whose levels are these of 255."""
    return (torch.tensor(levels) / 255)[:, None, None, None].expand(-1, 3, size, size)


def judge(service, **options):
    return RemoteReward(service.url, **{"name": "judge", "retries": QUICK, **options})


def test_scores_are_those_of_the_service_in_order(service):
    with judge(service, max_batch_size=2) as reward:
        scores = reward(grey(1.0, 2.0, 3.0, 200.0, 5.0), ["", "a", "bc", "", "abc"])
    assert scores.tolist() == [1, 3, 5, 200, 8]
    assert sorted(service.sizes) == [1, 2, 2]
    assert not reward.differentiable and reward.is_concurrent and reward.reads_prompts
    with pytest.raises(ValueError, match="'judge' gives no gradients"):
        reward.probe(needs_gradient=True)


@pytest.mark.parametrize("answer", [[0.5, 2], {"scores": [0.5, 2], "version": 3}])
def test_both_forms_of_an_answer_are_read(answer):
    with serving(saying(answer)) as service:
        assert judge(service)(grey(0.0, 1.0), ["a", "b"]).tolist() == [0.5, 2.0]


def test_requests_of_a_batch_are_sent_at_once_and_no_more_than_allowed():
    with serving(late(0.03)) as service:
        reward = judge(service, max_batch_size=1, max_concurrent_requests=3)
        assert reward(grey(*map(float, range(6))), [""] * 6).tolist() == [0, 1, 2, 3, 4, 5]
        assert service.most_at_once == 3


def test_no_more_requests_are_begun_in_a_second_than_allowed(service):
    reward = judge(service, max_batch_size=1, max_requests_per_second=50)
    reward(grey(1.0, 2.0, 3.0, 4.0), [""] * 4)
    # A turn every 20 ms, which a loaded machine may see a little off.
    assert service.times[-1] - service.times[0] > 0.045


def test_the_others_wait_too_where_the_service_asks_to():
    with serving(None, status(429, Retry_After="0.1")) as service:
        reward = judge(service, max_batch_size=1, max_concurrent_requests=1)
        assert reward(grey(1.0, 2.0), ["", ""]).tolist() == [1, 2]
        assert service.times[1] - service.times[0] > 0.09
        assert reward.usage == Usage(requests=3, images=3, retries=1)


def test_known_scores_are_not_asked_for_again(service):
    reward = judge(service)
    images, prompts = grey(1.0, 2.0, 1.0), ["a", "a", "a"]
    first = reward(images, prompts)
    assert service.sizes == [2]
    assert torch.equal(reward(images, prompts), first)
    assert service.sizes == [2] and reward.usage.cache_hits == 1 + 3
    # What is no other picture in 8 bits is none.
    reward(images + 1e-4, prompts)
    reward(images, ["a", "a", "b"])
    assert service.sizes == [2, 1] and service.prompts[-1] == "b"


def test_without_a_cache_everything_is_asked(service):
    reward = judge(service, cache_size=0)
    assert reward(grey(1.0, 1.0), ["", ""]).tolist() == [1, 1]
    reward(grey(1.0, 1.0), ["", ""])
    assert service.sizes == [2, 2] and reward.usage.cache_hits == 0


def test_the_longest_unused_score_is_forgotten(service):
    reward = judge(service, cache_size=2)
    for level in (1.0, 2.0, 1.0, 3.0, 1.0, 2.0):
        reward(grey(level), [""])
    assert len(service.asked) == 4


def test_a_folder_keeps_scores_for_others(service, tmp_path):
    first = judge(service, cache_folder=tmp_path)(grey(1.0, 2.0), ["a", "b"])
    again = judge(service, cache_folder=tmp_path)
    assert torch.equal(again(grey(1.0, 2.0), ["a", "b"]), first) and again.usage.requests == 0
    service.default = saying({})
    for url in (service.url, f"{service.url}/b"):
        other = RemoteReward(url, Other(), cache_folder=tmp_path)
        other(grey(1.0), ["a"])
        assert other.usage.requests == 1
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 4 and all(json.loads(file.read_text()) for file in files)


@pytest.mark.parametrize("damage", [b"", b'{"sco', b'{"score": NaN}', b'{"score": "1"}', b"[" * 300, b"\xff\xfe"])
def test_a_damaged_file_is_asked_for_again_and_mended(service, tmp_path, damage):
    judge(service, cache_folder=tmp_path)(grey(7.0), [""])
    (file,) = [path for path in tmp_path.rglob("*.json")]
    file.write_bytes(damage)
    assert judge(service, cache_folder=tmp_path)(grey(7.0), [""]).tolist() == [7]
    assert json.loads(file.read_text()) == {"score": 7.0}


def test_a_folder_that_cannot_be_written_to_costs_no_score(service, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    reward = judge(service, cache_folder=tmp_path / "file" / "folder")
    assert reward(grey(1.0, 2.0), ["", ""]).tolist() == [1, 2]
    assert caplog.text.count("cannot be kept in the cache_folder") == 1


@pytest.mark.parametrize("failing", [saying([float("nan")]), saying(["1"]), saying([1, 2]), status(400)])
def test_failures_are_not_kept(tmp_path, failing):
    with serving(None, failing) as service:
        reward = judge(service, cache_folder=tmp_path)
        with pytest.raises(OSError, match="'judge'"):
            reward(grey(9.0), [""])
        assert not list(tmp_path.rglob("*.json"))
        assert reward(grey(9.0), [""]).tolist() == [9]


def test_a_trial_asks_whatever_is_known(service):
    reward = judge(service)
    assert [reward.probe(), reward.probe()] == [1, 1]
    assert len(service.asked) == 2


class Other(RemoteProtocol):
    """Sends hexadecimal files."""

    path = "judge"
    max_images = 2

    def body(self, images, prompts):
        return {"images": [image.hex() for image in images], "prompts": list(prompts)}

    def scores(self, answer, count):
        return [1.0] * count


def test_a_protocol_of_ones_own(service):
    service.default = saying({"usage": {"prompt_tokens": 10, "completion_tokens": 3}})
    reward = judge(
        service, protocol=Other(), prices=Prices(per_million_input_tokens=1e5, per_million_output_tokens=1e6)
    )
    assert reward(grey(1.0, 2.0, 3.0), [""] * 3).tolist() == [1, 1, 1]
    assert sorted(service.sizes) == [1, 2] and {path for path, _, _ in service.asked} == {"/judge"}
    assert reward.usage == Usage(requests=2, images=3, input_tokens=20, output_tokens=6, price=2 + 6)


def test_what_is_repeated_is_counted_and_charged_to_the_run():
    with serving(None, status(503), drop) as service:
        reward = judge(service, prices=Prices(per_request=1.0, per_image=0.25))
        run = Cost()
        with charged_to(run):
            reward(grey(1.0, 2.0), ["", ""])
            reward(grey(1.0, 2.0), ["", ""])
        assert reward.usage == Usage(requests=3, images=6, retries=2, cache_hits=2, price=4.5)
        assert (run.reward_requests, run.reward_price) == (3, 4.5)
        assert "0 reward calls by 3 requests for 4.5" in str(run)


@pytest.mark.parametrize(
    ("limits", "sentence"),
    [
        ({"max_requests": 2}, "has sent 2 requests, which is its max_requests; raise that"),
        (
            {"max_cost": 0.5, "prices": Prices(per_image=0.2)},
            "has cost 0.4, and the next request would exceed its max_cost=0.5",
        ),
    ],
)
def test_a_limit_ends_it_in_one_sentence(service, limits, sentence):
    reward = judge(service, **limits)
    for level in (1.0, 2.0):
        reward(grey(level), [""])
    with pytest.raises(LimitError, match=sentence):
        reward(grey(3.0), [""])
    assert len(service.asked) == 2
    # What is known costs nothing.
    assert reward(grey(1.0), [""]).tolist() == [1]


def test_what_cannot_be_reached_is_not_charged():
    with serving() as service:
        url = service.url
    reward = RemoteReward(url, name="judge", retries=QUICK, max_requests=1)
    with pytest.raises(
        UnavailableError, match=r"Reward 'judge': http://127.0.0.1:\d+ was not reached .*3 attempts; check"
    ):
        reward(grey(1.0), [""])
    assert reward.usage == Usage(retries=2)


def test_threads_share_limits_and_counts(service):
    reward = judge(service, max_batch_size=1, max_concurrent_requests=2)
    service.default = late(0.005)
    with ThreadPoolExecutor(4) as pool:
        levels = [float(level) for level in range(12)]
        scores = list(pool.map(lambda level: reward(grey(level), ["ab"]).item(), levels))
    assert scores == [level + 2 for level in levels]
    assert service.most_at_once == 2 and reward.usage.requests == 12


def test_waiting_ends_where_the_run_does():
    with serving(silent) as service:
        reward = judge(service)
        is_over = threading.Event()
        threading.Timer(0.02, is_over.set).start()
        with pytest.raises(Interrupted), ended_by(is_over.is_set):
            reward(grey(1.0), [""])


@pytest.fixture
def interruptible():
    """Python's own answer to control and C, which processes that share a suite do not have."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_control_and_c_ends_waiting():
    with serving(silent) as service:
        timer = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            timer.start()
            judge(service)(grey(1.0), [""])


def test_closing_calls_off_what_is_on_its_way():
    with serving(None, silent) as service:
        reward = judge(service)
        pending = reward.begin(grey(1.0), [""])
        while not service.asked:
            time.sleep(0.001)
        reward.close()
        with pytest.raises(UnavailableError, match="'judge' was closed while"):
            pending.result()
        reward.close()
        assert reward(grey(1.0), [""]).tolist() == [1]


def test_a_copy_has_its_own_counts_and_connections(service):
    reward = judge(service, cache_size=5, timeouts=Timeouts(total=3), api_key_env=None)
    reward(grey(1.0), [""])
    for made in (pickle.loads(pickle.dumps(reward)), copy.deepcopy(reward)):
        assert made.usage == Usage() and made.timeouts == reward.timeouts
        assert made(grey(1.0), [""]).tolist() == [1]
        assert made.usage.requests == 1


def _score(reward, level):
    return reward(grey(level), [""]).item()


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_several_processes(service, method, tmp_path):
    reward = judge(service, cache_folder=tmp_path)
    assert _score(reward, 1.0) == 1
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert pool.starmap(_score, [(reward, 1.0), (reward, 2.0), (reward, 3.0)]) == [1, 2, 3]
    assert _score(reward, 4.0) == 4
    assert reward.usage.requests == 2 and len(service.asked) == 4


def test_a_forked_process_goes_on_with_the_parents_reward(service):
    reward = judge(service)
    _score(reward, 1.0)
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    process = context.Process(target=lambda: results.put(_score(reward, 2.0)))
    process.start()
    process.join(20)
    assert process.exitcode == 0 and results.get() == 2


def test_connections_are_closed_with_the_last_reference(service):
    reward = judge(service)
    _score(reward, 1.0)
    client = reward._session[1]._client
    del reward
    gc.collect()
    end = time.monotonic() + 5
    while not client.is_closed and time.monotonic() < end:
        time.sleep(0.005)
    assert client.is_closed


def test_the_other_terms_of_a_sum_are_computed_while_it_is_awaited():
    order = []

    class Local(Reward):
        def score(self, images, prompts):
            order.append("local")
            return images.mean((1, 2, 3))

    with serving(lambda handler, request: (time.sleep(0.03), order.append("remote"), handler.answer([1.0]))) as service:
        total = Local() + 2 * ClippedReward(judge(service), highest=0.5)
        assert total.is_concurrent and not (Local() + Brightness()).is_concurrent
        output = total.evaluate(grey(255.0), [""])
    assert order == ["local", "remote"]
    assert output.total.tolist() == [2.0] and list(output.terms) == ["Local", "judge"]


def test_a_judge_that_is_summed_and_bounded_is_asked_once(service):
    reward = judge(service)
    total = 2 * reward + (reward > 5.0) + Brightness()
    output = total.begin(grey(1.0, 9.0), ["", ""]).result()
    assert len(service.asked) == 1 and reward.usage.cache_hits == 0
    assert (output.violation > 0).tolist() == [True, False] and list(output.terms) == ["judge", "brightness"]
    torch.testing.assert_close(output.total, torch.tensor([2 + 1 / 255, 18 + 9 / 255]))
    bound = reward > 5.0
    assert bound.is_concurrent and (bound.evaluate(grey(1.0, 9.0), ["", ""]).violation > 0).tolist() == [True, False]


def test_a_bounded_judge_leaves_the_gradient_of_the_others(service):
    images = grey(1.0, 9.0).clone().requires_grad_()
    output = (Brightness() + (judge(service) > 5.0)).evaluate(images, ["", ""])
    output.total.sum().backward()
    assert (images.grad != 0).all() and (output.violation > 0).tolist() == [True, False]


def test_a_term_that_fails_calls_off_the_others():
    def fail(images, prompts):
        raise RuntimeError("broken")

    with serving(silent) as service:
        reward = judge(service, retries=Retries(attempts=1), max_concurrent_requests=1)
        with pytest.raises(RuntimeError, match="broken"):
            (as_reward(fail) + reward).evaluate(grey(1.0), [""])
        # The one slot is free again.
        service.default = late(0.0)
        assert reward(grey(1.0), [""]).tolist() == [1]


def test_prompts_are_kept_to_oneself_where_they_do_not_count(service):
    reward = judge(service, reads_prompts=False)
    assert reward(grey(1.0, 1.0), ["secret", "other"]).tolist() == [1, 1]
    assert service.prompts == [""] and not reward.reads_prompts


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"max_batch_size": 0}, "max_batch_size is 0; give a whole number of at least 1"),
        ({"max_concurrent_requests": 0}, "max_concurrent_requests is 0; give"),
        ({"max_requests_per_second": 0.0}, "max_requests_per_second is 0.0; give a positive number"),
        ({"max_cost": float("nan")}, "max_cost is nan; give a positive number"),
        ({"max_cost": 1.0}, "max_cost is 1, but prices is None; give prices"),
        ({"cache_size": -1}, "cache_size is -1; give"),
        ({"protocol": "chat"}, "protocol is 'chat'; give a RemoteProtocol"),
        ({"timeouts": 3}, r"timeouts is of the type int, or empty; give Timeouts\(...\), or None"),
        ({"retries": {}}, "retries is of the type dict"),
        ({"prices": 0.1}, "prices is of the type float"),
        ({"name": ""}, "name is of the type str, or empty; give a text"),
        ({"api_key_header": 3}, "api_key_header is of the type int"),
    ],
)
def test_wrong_options_are_refused_by_one_sentence(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        RemoteReward("http://localhost", **options)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Timeouts(total=0), "total is 0; give a positive number"),
        (lambda: Retries(attempts=0), "attempts is 0; give"),
        (lambda: Retries(jitter=2), "jitter is 2; give a number from 0 to 1"),
        (lambda: Prices(per_image=-1), "per_image is -1; give a price of at least 0"),
    ],
)
def test_wrong_limits_are_refused_by_one_sentence(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()

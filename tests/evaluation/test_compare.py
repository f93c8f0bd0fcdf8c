import json
from collections import Counter
from dataclasses import replace

import pytest
import torch
from accelerate import PartialState, cpu_offload

from diamond_diffusers import BestOfN, DiamondTransition, NoAlignment
from diamond_diffusers.evaluation.benchmark import compare as module
from diamond_diffusers.evaluation.benchmark.compare import Setup, Shard, compare, drawn_so_far, method_folder
from diamond_diffusers.evaluation.benchmark.plan import Entry, Plan, SizedMethod
from diamond_diffusers.evaluation.benchmark.prompts import Prompt, Suite, miniature_suite
from diamond_diffusers.evaluation.benchmark.records import (
    Key,
    RecordFolder,
    fingerprint,
    fingerprint_of_model,
    image_path,
    read_record,
)
from diamond_diffusers.maps.diamond_map import DiamondMap
from diamond_diffusers.miniature.grammar import held_out_captions
from diamond_diffusers.rewards import CallableReward

from ..conftest import redness
from ..training.processes import in_two_processes

PLAIN, BEST = METHODS = [SizedMethod("plain", NoAlignment(), 3), SizedMethod("best_of_n", BestOfN(num_particles=2), 3)]
SUITE = miniature_suite()


def blueness(images, prompts):
    return images[:, 2].mean((1, 2))


@pytest.fixture
def reward():
    return CallableReward(redness, differentiable=True)


@pytest.fixture
def setup(tiny_pipe, reward):
    return Setup(tiny_pipe, "tiny", SUITE, reward, batch_size=2)


@pytest.fixture
def drawn_batches(monkeypatch):
    """The images of every batch that is really drawn."""
    batches, draw = [], module.draw_batch

    def spy(setup, method, prompts, keys, folder):
        batches.append((method.name, [key.index for key in keys]))
        return draw(setup, method, prompts, keys, folder)

    monkeypatch.setattr(module, "draw_batch", spy)
    return batches


def test_captions_are_a_fixed_shuffle():
    texts = [prompt.text for prompt in SUITE.prompts]
    assert Counter(texts) == Counter(caption.text for caption in held_out_captions())
    assert [prompt.index for prompt in SUITE.prompts] == list(range(300))
    assert SUITE.first(7) == SUITE.prompts[:7]
    assert SUITE.first(None) == SUITE.prompts
    assert len({prompt.category for prompt in SUITE.first(40)}) == 6
    with pytest.raises(ValueError, match="num_prompts is 301; give a number from 1 to 300"):
        SUITE.first(301)


def test_a_share_of_hard_captions():
    assert [prompt.is_hard for prompt in SUITE.prompts].count(True) == 178
    chosen = SUITE.first(10, 0.7)
    assert [prompt.index for prompt in chosen] == sorted(prompt.index for prompt in chosen)
    assert [prompt.is_hard for prompt in chosen].count(True) == 7
    # The first ones of each kind, so that a larger number extends a run.
    assert {prompt.index for prompt in chosen} < {prompt.index for prompt in SUITE.first(20, 0.7)}
    assert [p for p in chosen if p.is_hard] == [p for p in SUITE.prompts if p.is_hard][:7]
    with pytest.raises(ValueError, match=r"hard_share is 0.7, but num_prompts is not given"):
        SUITE.first(None, 0.7)
    with pytest.raises(ValueError, match="takes 210 hard prompts of 300, but there are 178; give another share"):
        SUITE.first(300, 0.7)
    with pytest.raises(ValueError, match=r"hard_share is 0.5, but of these prompts none is known to be hard"):
        Suite((Prompt(0, "a"), Prompt(1, "b"))).first(2, 0.5)


def test_methods_are_paired_and_records_complete(setup, tmp_path):
    prompts = SUITE.first(3)
    records = compare(setup, METHODS, prompts, tmp_path)
    for method in METHODS:
        drawn = records[method.label]
        assert [(record.prompt, record.category) for record in drawn] == [(p.text, p.category) for p in prompts]
        assert [record.seed for record in drawn] == [0, 1, 2]
        assert all(image_path(method_folder(tmp_path, method), record.key).exists() for record in drawn)
        assert all(record.is_right in (True, False) and record.peak_bytes > 2**20 for record in drawn)
        # Those of a batch share its time.
        assert drawn[0].cpu_seconds == drawn[1].cpu_seconds > 0
        # Untouched by the others of its batch, of which the last has one.
        assert [record.row for record in drawn] == [0, 1, 0]
        assert [len(record.batch.prompts) for record in drawn] == [2, 2, 1]
    # The first particle of best-of-N is the plain sample, so that it can only gain.
    pairs = zip(records["best_of_n"], records["plain"], strict=True)
    assert all(best.reward >= plain.reward - 1e-5 for best, plain in pairs)


def test_several_images_a_prompt_are_independent_draws(setup, tmp_path):
    several = replace(setup, num_images_per_prompt=3)
    drawn = compare(several, [PLAIN], SUITE.first(2), tmp_path)["plain"]
    assert [(record.index, record.image) for record in drawn] == [(i, j) for i in range(2) for j in range(3)]
    assert [record.seed for record in drawn] == [0, 10**9, 2 * 10**9, 1, 10**9 + 1, 2 * 10**9 + 1]
    assert len({record.pixels for record in drawn}) == 6
    alone = compare(setup, [PLAIN], SUITE.first(2), tmp_path / "alone")["plain"]
    assert [record.reward for record in alone] == pytest.approx([drawn[0].reward, drawn[3].reward], abs=1e-5)


def test_held_out_rewards_are_scored_and_not_followed(setup, tmp_path):
    held_out = CallableReward(blueness)
    other = replace(setup, held_out_rewards=(held_out,))
    prompts = SUITE.first(2)
    seen, unseen = compare(other, [BEST], prompts, tmp_path / "a"), compare(setup, [BEST], prompts, tmp_path / "b")
    assert [record.pixels for record in seen["best_of_n"]] == [record.pixels for record in unseen["best_of_n"]]
    assert {tuple(record.held_out_rewards) for record in seen["best_of_n"]} == {("blueness",)}
    assert not any(record.held_out_rewards for record in unseen["best_of_n"])
    for record in seen["best_of_n"]:
        assert record.cost.reward_calls == 2
        assert record.reward_terms.keys() == {"redness"}
    with pytest.raises(ValueError, match="held_out_rewards holds 'redness', which alignment follows"):
        replace(setup, reward=2 * setup.reward + held_out, held_out_rewards=(setup.reward,))
    with pytest.raises(ValueError, match="held_out_rewards holds 'blueness' twice"):
        replace(setup, held_out_rewards=(held_out, held_out))


def test_a_held_out_reward_that_fails_is_found_before_drawing(setup, tmp_path, drawn_batches):
    def broken(images, prompts):
        return images.mean()

    with pytest.raises(ValueError, match="broken"):
        compare(replace(setup, held_out_rewards=(CallableReward(broken),)), METHODS, SUITE.first(1), tmp_path)
    assert drawn_batches == []


def test_prompts_without_a_judge(setup, tmp_path):
    other = replace(setup, suite=Suite((Prompt(5, "a lighthouse in a storm"), Prompt(2, "a cup"))))
    drawn = compare(other, [PLAIN], other.suite.prompts, tmp_path)["plain"]
    assert [(record.index, record.prompt, record.is_right) for record in drawn] == [
        (5, "a lighthouse in a storm", None),
        (2, "a cup", None),
    ]
    assert image_path(method_folder(tmp_path, PLAIN), Key(5, 0)).name == "0005_0.png"


def test_traces_are_those_of_each_image(setup, tmp_path):
    from diamond_diffusers.alignment.methods.smc import SMC

    method = SizedMethod("smc", SMC(num_particles=2), 3)
    record = compare(setup, [method], SUITE.first(2), tmp_path)["smc"][1]
    pipe = setup.pipe
    out = pipe(
        [prompt.text for prompt in SUITE.first(2)],
        reward=setup.reward,
        alignment=method.alignment,
        num_inference_steps=3,
        generator=[torch.Generator().manual_seed(seed) for seed in (0, 1)],
    )
    for recorded, step in zip(record.trace, out.trace.steps, strict=True):
        assert recorded["effective_sample_size"] == pytest.approx(step.effective_sample_size[1].item())
        assert recorded["mean_value"] == pytest.approx(step.mean_value[1].item())


def test_batches_do_not_change_what_is_drawn(setup, tmp_path):
    together = compare(setup, METHODS, SUITE.first(3), tmp_path / "a")
    apart = compare(replace(setup, batch_size=1), METHODS, SUITE.first(3), tmp_path / "b")
    for name in together:
        rewards = [[record.reward for record in run[name]] for run in (together, apart)]
        assert rewards[0] == pytest.approx(rewards[1], abs=1e-5)


def test_a_killed_run_resumes(setup, tmp_path, drawn_batches):
    prompts = SUITE.first(4)
    whole = compare(setup, METHODS, prompts, tmp_path / "whole")
    drawn_batches.clear()

    def interrupt(label, done, total):
        if (label, done) == ("best_of_n", 2):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare(setup, METHODS, prompts, tmp_path / "killed", interrupt)
    resumed = compare(setup, METHODS, prompts, tmp_path / "killed")
    # Nothing was drawn twice.
    assert drawn_batches == [("plain", [0, 1]), ("plain", [2, 3]), ("best_of_n", [0, 1]), ("best_of_n", [2, 3])]
    for name in whole:
        assert [(r.prompt, r.pixels) for r in resumed[name]] == [(r.prompt, r.pixels) for r in whole[name]]
    compare(setup, METHODS, prompts, tmp_path / "killed")
    assert len(drawn_batches) == 4


def test_more_prompts_extend_a_run(setup, tmp_path, drawn_batches):
    compare(setup, [PLAIN], SUITE.first(3), tmp_path)
    records = compare(setup, [PLAIN], SUITE.first(5), tmp_path)
    assert [record.index for record in records["plain"]] == [0, 1, 2, 3, 4]
    assert drawn_batches[-1] == ("plain", [3, 4])
    assert len(compare(setup, [PLAIN], SUITE.first(2), tmp_path)["plain"]) == 2


def test_two_processes_share_the_images(setup, tmp_path):
    prompts = SUITE.first(3)
    setup = replace(setup, batch_size=1)
    alone = compare(setup, METHODS, prompts, tmp_path / "alone")
    # A run of one process that a run of two goes on with.
    compare(setup, METHODS, prompts[:1], tmp_path / "shared")

    def child():
        processes, drawn = PartialState(cpu=True), []
        draw = module.draw_batch

        def spy(setup, method, prompts, keys, folder):
            drawn.append((method.name, keys[0].index))
            draw(setup, method, prompts, keys, folder)

        module.draw_batch = spy
        records = compare(setup, METHODS, prompts, tmp_path / "shared", processes=processes)
        mine = 1 + processes.process_index
        assert drawn == [("plain", mine), ("best_of_n", mine)]
        # Each process knows what the other has drawn.
        for name, expected in alone.items():
            assert [record.pixels for record in records[name]] == [record.pixels for record in expected]

    in_two_processes(child)
    assert compare(setup, METHODS, prompts, tmp_path / "shared").keys() == alone.keys()


def test_shards_make_up_a_run(setup, tmp_path, drawn_batches):
    prompts = SUITE.first(3)
    plan = Plan([Entry(6, METHODS[0]), Entry(12, METHODS[0]), Entry(12, METHODS[1])], [])
    whole = compare(setup, METHODS, prompts, tmp_path / "whole")
    drawn_batches.clear()
    first = compare(setup, METHODS, prompts, tmp_path / "shared", shard=Shard(1, 2))
    assert drawn_batches == [("plain", [0, 2]), ("best_of_n", [0, 2])]
    assert [record.index for record in first["plain"]] == [0, 2]
    with pytest.raises(ValueError, match=r"where of plain 2 of 3 images are drawn; run on without --report-only"):
        drawn_so_far(setup, plan, prompts, tmp_path / "shared")
    # What is drawn already changes nothing of which shard an image belongs to.
    compare(setup, METHODS[:1], prompts, tmp_path / "shared", shard=Shard(2, 2))
    done, records = drawn_so_far(setup, plan, prompts, tmp_path / "shared")
    assert [(entry.budget, entry.method.name) for entry in done.entries] == [(6, "plain"), (12, "plain")]
    assert [(left.budget, left.name, left.reason[:22]) for left in done.left_out] == [
        (12, "best_of_n", "2 of 3 images are draw")
    ]
    assert [r.pixels for r in records["plain"]] == [r.pixels for r in whole["plain"]]
    drawn_batches.clear()
    joined = compare(setup, METHODS, prompts, tmp_path / "shared")
    assert drawn_batches == [("best_of_n", [1])]
    assert [r.pixels for r in joined["best_of_n"]] == [r.pixels for r in whole["best_of_n"]]


@pytest.mark.parametrize("shard", [(0, 2), (3, 2)])
def test_shards_that_there_are_not(shard):
    with pytest.raises(ValueError, match=f"shard is {shard[0]}/2; give one from 1/2 to 2/2"):
        Shard(*shard)


def test_another_diamond_map_changes_only_the_methods_that_evaluate_it(setup, tmp_path, drawn_batches):
    family, prompts = setup.pipe.family, SUITE.first(1)
    mapped = SizedMethod("mapped", BestOfN(num_particles=2, transition=DiamondTransition()), 3)
    base = fingerprint_of_model(family)
    family.posterior_map = DiamondMap(family, rank=2)
    assert fingerprint_of_model(family) == base
    setup.pipe._take_defaults({**setup.pipe.defaults, "alignment": "best_of_n"})
    own = replace(setup, loading={"variant": None, "diamond_map": "one"})
    before = compare(own, [BEST, mapped], prompts, tmp_path)
    drawn_batches.clear()
    for weight in family.posterior_map.trained_parameters():
        weight.data += 0.1
    setup.pipe._take_defaults({**setup.pipe.defaults, "alignment": "smc"})
    other = replace(setup, loading={"variant": None, "diamond_map": "other"})
    assert compare(other, [BEST], prompts, tmp_path) == {"best_of_n": before["best_of_n"]}
    assert drawn_batches == []
    with pytest.raises(ValueError, match=r"diamond_map_weights is '.*', but .*mapped/0000_0.json' holds a result for"):
        compare(own, [mapped], prompts, tmp_path)
    assert other.settings_of(mapped)["loading"] == other.loading and "diamond_map" not in other.settings()["loading"]
    setup.pipe.transformer.proj_out.weight.data += 1e-3
    with pytest.raises(ValueError, match="model_weights is"):
        compare(own, [BEST], prompts, tmp_path)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"seed": 1}, r"seed is 1, but .*0000_0.json' holds a result for 0; choose another --output"),
        ({"reward_scale": 2.0}, "reward_scale is 2.0"),
        ({"arguments": {"guidance_scale": 2.0}}, r"arguments is \{'guidance_scale': 2.0\}"),
        ({"suite": Suite(SUITE.prompts[:9])}, "prompts is "),
    ],
)
def test_other_settings_are_refused(setup, tmp_path, drawn_batches, changed, message):
    compare(setup, METHODS, SUITE.first(1), tmp_path)
    drawn_batches.clear()
    with pytest.raises(ValueError, match=message):
        compare(replace(setup, **changed), METHODS, SUITE.first(1), tmp_path)
    assert drawn_batches == []


def test_another_alignment_or_other_weights_are_refused(setup, tmp_path):
    compare(setup, [BEST], SUITE.first(1), tmp_path)
    with pytest.raises(ValueError, match=r"alignment is .*'num_particles': 3.*choose another --output"):
        compare(setup, [SizedMethod("best_of_n", BestOfN(num_particles=3), 3)], SUITE.first(1), tmp_path)
    setup.pipe.transformer.proj_out.weight.data += 1e-3
    with pytest.raises(ValueError, match="model_weights is"):
        compare(setup, [BEST], SUITE.first(1), tmp_path)


def test_an_option_that_a_method_has_got_since_has_its_default(setup, tmp_path, drawn_batches):
    before = compare(setup, [BEST], SUITE.first(1), tmp_path)
    path = method_folder(tmp_path, BEST) / "0000_0.json"
    stored = json.loads(path.read_text())
    del stored["settings"]["alignment"]["transition"]
    path.write_text(json.dumps(stored))
    assert compare(setup, [BEST], SUITE.first(1), tmp_path) == before
    # At another value than that of the default it is another method.
    with pytest.raises(ValueError, match=r"alignment is .*'ancestral'"):
        compare(
            setup, [replace(BEST, alignment=replace(BEST.alignment, transition="ancestral"))], SUITE.first(1), tmp_path
        )
    assert len(drawn_batches) == 1


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"seed": 1000}, "seed is 1000; give a number from 0 to 999"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"num_images_per_prompt": 0}, "num_images_per_prompt is 0"),
        ({"suite": Suite((Prompt(10**6, "a"),))}, "index outside 0 to 999999"),
    ],
)
def test_settings_out_of_range(setup, changed, message):
    with pytest.raises(ValueError, match=message):
        replace(setup, **changed)


def test_records_survive_the_disk(setup, tmp_path):
    (record,) = compare(setup, [BEST], SUITE.first(1), tmp_path)["best_of_n"]
    folder = method_folder(tmp_path, BEST)
    settings, stored = read_record(folder / "0000_0.json")
    assert stored == record
    assert settings["seed"] == 0 and settings["alignment"]["num_particles"] == 2
    assert RecordFolder(folder, settings).of([Key(0, 0)]) == [record]
    (folder / "0000_0.json").write_text(json.dumps({"settings": {}}))
    with pytest.raises(ValueError, match=r"0000_0.json' has no 'record'; name a .json file beside"):
        read_record(folder / "0000_0.json")


def test_a_fingerprint_sees_every_weight():
    module = torch.nn.Linear(3, 2)
    before = fingerprint([module])
    assert before == fingerprint([module])
    module.bias.data[0] += 1e-6
    assert fingerprint([module]) != before


def test_a_fingerprint_sees_weights_that_are_offloaded():
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    before = fingerprint([module])
    cpu_offload(module, "cpu", offload_buffers=True)
    assert all(weight.is_meta for weight in module.parameters())
    assert fingerprint([module]) == before

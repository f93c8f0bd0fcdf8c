import copy
import gc
import weakref

import pytest
import torch

from diamond_diffusers.rewards import AestheticReward, AestheticV1Reward, CLIPReward
from diamond_diffusers.rewards.clip.prompt_cache import PromptCache

from ..rounding import COPIED, assert_same_from_a_copy
from .golden import Golden, official_crops, picture


def encodings(reward):
    """Collects the number of images of every call of the image tower."""
    counts = []
    reward.tower.image_module.register_forward_hook(lambda module, inputs, output: counts.append(1))
    return counts


class TestSharing:
    def test_one_tower_for_all_rewards_of_a_checkpoint(self, checkpoints):
        clip = CLIPReward(checkpoints["clip_l14"])
        rating = AestheticReward(checkpoints["mlp"], checkpoints["clip_l14"])
        assert clip.model is rating.model is CLIPReward(checkpoints["clip_l14"], name="other").model
        assert clip.model is not CLIPReward(checkpoints["clip_l14"], dtype=torch.bfloat16).model
        assert clip.model is not CLIPReward(checkpoints["hpsv2"]).model

    def test_a_checkpoint_that_was_written_again_is_another(self, clip_folder, tmp_path):
        reward = CLIPReward(clip_folder)
        reward.model.save_pretrained(tmp_path)
        for file in ("processor_config.json", "tokenizer.json", "tokenizer_config.json"):
            (tmp_path / file).write_bytes((clip_folder / file).read_bytes())
        old = CLIPReward(tmp_path)
        changed = copy.deepcopy(old.model)
        changed.logit_scale.fill_(1.0)
        changed.save_pretrained(tmp_path)
        assert CLIPReward(tmp_path).tower.logit_scale == pytest.approx(torch.e)
        assert old.tower.logit_scale == pytest.approx(reward.tower.logit_scale)

    def test_casting_one_reward_leaves_the_other(self, checkpoints, exact):
        clip, other = CLIPReward(checkpoints["clip_l14"]), CLIPReward(checkpoints["clip_l14"])
        before = other(*exact)
        assert clip.to(dtype=torch.float64).model is not other.model
        assert clip.tower.dtype == torch.float64
        assert torch.equal(other(*exact), before)
        torch.testing.assert_close(clip(*exact), before, atol=1e-6, rtol=0)

    def test_rewards_that_are_cast_alike_share_again(self, checkpoints):
        total = CLIPReward(checkpoints["clip_l14"]) + AestheticReward(checkpoints["mlp"], checkpoints["clip_l14"])
        clip, rating = total.to(dtype=torch.bfloat16).rewards
        assert clip.model is rating.model and clip.tower.dtype == torch.bfloat16

    def test_a_sole_user_is_cast_in_place(self, checkpoints):
        reward = CLIPReward(checkpoints["clip_l14"])
        model = reward.model
        assert reward.to(dtype=torch.float16).model is model
        assert reward.to("cpu").model is model

    def test_rounded_weights_are_not_shared_as_the_checkpoint_s(self, checkpoints, exact):
        expected = CLIPReward(checkpoints["clip_l14"])(*exact)
        rounded = CLIPReward(checkpoints["clip_l14"]).to(dtype=torch.bfloat16).to(dtype=torch.float32)
        fresh = CLIPReward(checkpoints["clip_l14"])
        assert fresh.model is not rounded.model
        assert_same_from_a_copy(fresh(*exact), expected)
        assert (rounded(*exact) - expected).abs().max() > 10 * COPIED
        wide = CLIPReward(checkpoints["clip_l14"]).to(dtype=torch.float64).to(dtype=torch.float32)
        assert_same_from_a_copy(wide(*exact), expected)

    def test_an_unused_tower_is_freed_at_once(self, checkpoints, exact):
        reward = CLIPReward(checkpoints["clip_l14"])
        reward(*exact)
        gc.disable()
        try:
            model = weakref.ref(reward.model)
            del reward
            assert model() is None
        finally:
            gc.enable()

    def test_prompts_are_encoded_once_for_all(self, checkpoints, exact, monkeypatch):
        first, second = CLIPReward(checkpoints["clip_l14"]), CLIPReward(checkpoints["clip_l14"], scale=100)
        first(*exact)
        monkeypatch.setattr(first.tower, "encode_texts", None)
        torch.testing.assert_close(second(*exact), 100 * first(*exact))


class TestSums:
    """Terms that see the images through one tower run it once."""

    @pytest.fixture
    def terms(self, checkpoints):
        clip_checkpoint = checkpoints["clip_l14"]
        heads = [(AestheticReward, "mlp"), (AestheticV1Reward, "vit_l_14")]
        return [CLIPReward(clip_checkpoint), *(kind(checkpoints[head], clip_checkpoint) for kind, head in heads)]

    def test_scores_and_gradients_are_those_of_the_terms(self, terms):
        images = official_crops(Golden("aesthetic").images[:2]).requires_grad_()
        prompts = ["a cat", "a dog"]
        counts = encodings(terms[0])
        total = (terms[0] + 2 * terms[1] - 3 * terms[2])(images, prompts)
        assert len(counts) == 1
        expected = terms[0](images, prompts) + 2 * terms[1](images, prompts) - 3 * terms[2](images, prompts)
        assert len(counts) == 4
        torch.testing.assert_close(total, expected)
        (found,) = torch.autograd.grad(total.sum(), images)
        torch.testing.assert_close(found, torch.autograd.grad(expected.sum(), images)[0], atol=1e-7, rtol=1e-4)

    def test_every_batch_has_its_own_features(self, terms):
        total = terms[0] + terms[1]
        first, second = official_crops(["exact224", "square512"])[:, None]
        values = [total(images, ["a cat"]).item() for images in (first, second, first)]
        assert values[0] == values[2] != values[1]
        first.copy_(second)
        assert total(first, ["a cat"]).item() == values[1]

    def test_other_pixels_within_one_sum_are_not_mixed_up(self, checkpoints, terms):
        """A term that turns the images, and terms on parts of a batch."""

        class Turned(CLIPReward):
            def score(self, images, prompts):
                return super().score(images.mT.flip(-1), prompts)

        turned = Turned(checkpoints["clip_l14"], name="turned")
        parts = CLIPReward(checkpoints["clip_l14"], name="parts", max_batch_size=1)
        images = official_crops(["exact224", "square512"])
        output = (terms[0] + turned + parts).evaluate(images, ["a cat", "a dog"])
        for reward in (terms[0], turned, parts):
            torch.testing.assert_close(output.terms[reward.name], reward(images, ["a cat", "a dog"]))

    def test_in_inference_mode(self, terms):
        images = official_crops(["exact224"])
        expected = (terms[0] + terms[1])(images, ["a cat"])
        with torch.inference_mode():
            torch.testing.assert_close((terms[0] + terms[1])(images.clone(), ["a cat"]), expected)


class TestBatches:
    def test_max_batch_size(self, checkpoints):
        golden = Golden("clip_l14")
        whole, parts = CLIPReward(checkpoints["clip_l14"]), CLIPReward(checkpoints["clip_l14"], max_batch_size=4)
        counts = encodings(parts)
        images = official_crops(golden.images)
        prompts = [*golden.prompts, "x"]
        torch.testing.assert_close(parts(images, prompts), whole(images, prompts))
        assert len(counts) == 3 + 1

    def test_prompt_cache_forgets_what_was_used_longest_ago(self):
        encoded = []

        def encode(prompts):
            encoded.extend(prompts)
            return torch.tensor([[float(len(prompt))] for prompt in prompts])

        cache = PromptCache(capacity=2)
        assert cache(["a", "bb", "ccc", "a"], encode).flatten().tolist() == [1, 2, 3, 1]
        cache(["bb", "ccc"], encode)
        cache(["bb"], encode)
        cache(["dddd"], encode)
        cache(["bb"], encode)
        assert encoded == ["a", "bb", "ccc", "dddd"]
        cache(["ccc"], encode)
        assert encoded[4:] == ["ccc"]


@pytest.mark.parametrize("name", ["clip_b32", pytest.param("clip_l14", marks=pytest.mark.slow)])
class TestMemoryAndSpeed:
    def score_and_gradient(self, reward, exact):
        image, prompts = exact
        image = image.clone().requires_grad_()
        score = reward(image, prompts)
        (gradient,) = torch.autograd.grad(score.sum(), image)
        return score.detach(), gradient

    def saved_megabytes(self, reward, exact):
        image, prompts = exact
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x.numel()) or x, lambda x: x):
            reward(image.clone().requires_grad_(), prompts)
        return sum(saved) * 4 / 2**20

    def test_gradient_checkpointing_keeps_values_and_saves_memory(self, checkpoints, exact, name):
        plain = CLIPReward(checkpoints[name])
        expected, memory = self.score_and_gradient(plain, exact), self.saved_megabytes(plain, exact)
        del plain
        gc.collect()
        light = CLIPReward(checkpoints[name], gradient_checkpointing=True)
        for found, value in zip(self.score_and_gradient(light, exact), expected, strict=True):
            torch.testing.assert_close(found, value)
        assert self.saved_megabytes(light, exact) < 0.7 * memory
        assert not any(module.training for module in light.model.modules() if isinstance(module, torch.nn.Dropout))

    @pytest.mark.slow
    def test_features_compile_as_one_graph(self, checkpoints, name):
        reward = CLIPReward(checkpoints[name])
        image = picture("small96").requires_grad_()
        compiled = torch.compile(reward.image_features, backend="aot_eager", fullgraph=True)
        features = compiled(image)
        expected = reward.image_features(image)
        torch.testing.assert_close(features, expected, atol=1e-6, rtol=1e-5)
        towards = torch.randn(features.shape, generator=torch.Generator().manual_seed(0))
        (found,) = torch.autograd.grad(features, image, towards)
        torch.testing.assert_close(found, torch.autograd.grad(expected, image, towards)[0], atol=1e-5, rtol=1e-4)

    def test_compile_option(self, checkpoints, exact, name):
        reward = CLIPReward(checkpoints[name])
        expected = reward(*exact)
        graphs = []

        def backend(graph, inputs):
            graphs.append(graph)
            return graph.forward

        assert reward.compile(backend=backend) is reward
        torch.testing.assert_close(reward(*exact), expected)
        assert graphs

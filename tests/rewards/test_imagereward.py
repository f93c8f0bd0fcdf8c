import json
import sys
import warnings
from copy import deepcopy
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from torchvision.transforms.v2.functional import normalize
from transformers import BlipTextConfig, BlipVisionConfig, modeling_utils, pytorch_utils

from diamond_diffusers.rewards import SimilarityReward, VQAScoreReward
from diamond_diffusers.rewards.availability import availability
from diamond_diffusers.rewards.imagereward import official
from diamond_diffusers.rewards.imagereward.network import (
    TEXT_CONFIG,
    VISION_CONFIG,
    ImageRewardNetwork,
    build_network,
    published_shapes,
)
from diamond_diffusers.rewards.imagereward.reward import ImageReward
from diamond_diffusers.rewards.imagereward_package import PackageImageReward, PackageNetwork
from diamond_diffusers.rewards.preprocessing import CLIP_MEAN, CLIP_STD, images_from_pil

from ..rounding import assert_same_from_a_copy

FIXTURES = Path(__file__).parents[1] / "fixtures" / "rewards"
FOLDER = FIXTURES / "imagereward"
GOLDEN = json.loads((FOLDER / "golden.json").read_text())
TINY_VISION = BlipVisionConfig(
    hidden_size=64,
    intermediate_size=256,
    num_hidden_layers=2,
    num_attention_heads=4,
    image_size=224,
    patch_size=16,
    layer_norm_eps=VISION_CONFIG.layer_norm_eps,
)
TINY_TEXT = BlipTextConfig(
    vocab_size=346,
    hidden_size=48,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    encoder_hidden_size=64,
    bos_token_id=344,
)
ARGUMENTS = {
    "tokenizer": FIXTURES / "tokenizers" / "bert-tiny",
    "vision_config": TINY_VISION,
    "text_config": TINY_TEXT,
}
ROUNDING = 5e-6
"""Between two implementations on equal weights, in scores of about 1."""
NORM_WEIGHTS = ("norm1.weight", "norm2.weight", "norm.weight", "LayerNorm.weight")
SCORES = torch.tensor(GOLDEN["scores"])


@pytest.fixture(scope="module")
def reward():
    return ImageReward(FOLDER, **ARGUMENTS)


@pytest.fixture(scope="module")
def pictures():
    """The ten images at their own sizes, `[1, 3, H, W]` each."""
    return [images_from_pil([Image.open(FIXTURES / "images" / f"{name}.png")]) for name in GOLDEN["images"]]


@pytest.fixture(scope="module")
def official_pixels():
    """What the official code makes of the ten images, normalised, `[10, 3, 224, 224]`."""
    pixels = load_file(FIXTURES / "preprocessed" / "pil_resize_crop_224_uint8.safetensors")["pixel_uint8"]
    order = json.loads((FIXTURES / "preprocessed" / "image_order.json").read_text())
    assert order == GOLDEN["images"]
    return normalize(pixels / 255, list(CLIP_MEAN), list(CLIP_STD))


@pytest.fixture(scope="module")
def weights():
    return load_file(FOLDER / "model.safetensors")


class TestParity:
    """Against image-reward 1.5; tolerances are three times the differences between releases of its dependencies."""

    def test_scores_on_equal_pixels(self, reward, official_pixels):
        for prompt, expected in zip(GOLDEN["prompts"], SCORES, strict=True):
            tokens = reward._tokenize([prompt] * len(expected))
            scores = reward.model(official_pixels, tokens.input_ids, tokens.attention_mask)
            torch.testing.assert_close(scores, expected, atol=1e-5, rtol=0)

    @pytest.mark.parametrize("image", [name for name in GOLDEN["images"] if name != "rgba"])
    def test_scores_from_images_of_any_size(self, reward, pictures, image):
        """The one image with transparency is resampled with its alpha channel by PIL, which a tensor in RGB has not."""
        i = GOLDEN["images"].index(image)
        scores = reward(pictures[i].expand(len(SCORES), -1, -1, -1), GOLDEN["prompts"])
        torch.testing.assert_close(scores, SCORES[:, i], atol=1e-5, rtol=0)

    def test_a_batch_of_pairs(self, reward, official_pixels):
        batch = GOLDEN["batch"]
        tokens = reward._tokenize([GOLDEN["prompts"][i] for i in batch["prompt_idx"]])
        scores = reward.model(official_pixels[batch["image_idx"]], tokens.input_ids, tokens.attention_mask)
        torch.testing.assert_close(scores, torch.tensor(batch["scores"]), atol=1e-5, rtol=0)

    def test_ranks(self, reward, official_pixels):
        for prompt, expected in GOLDEN["inference_rank"].items():
            tokens = reward._tokenize([GOLDEN["prompts"][int(prompt)]] * len(official_pixels))
            scores = reward.model(official_pixels, tokens.input_ids, tokens.attention_mask)
            assert (scores.argsort(descending=True).argsort() + 1).tolist() == expected["ranks"]

    def test_pixel_gradients(self, reward, pictures):
        expected = load_file(FOLDER / "tensors.safetensors")["grad_exact224_prompt2"]
        pixels = reward.preprocessing(pictures[GOLDEN["images"].index("exact224")]).requires_grad_()
        tokens = reward._tokenize([GOLDEN["prompts"][2]])
        score = reward.model(pixels, tokens.input_ids, tokens.attention_mask)
        (gradient,) = torch.autograd.grad(score.sum(), pixels)
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)

    def test_image_gradients_are_those_of_the_pixels_over_the_deviation(self, reward, pictures):
        expected = load_file(FOLDER / "tensors.safetensors")["grad_exact224_prompt2"]
        images = pictures[GOLDEN["images"].index("exact224")].clone().requires_grad_()
        (gradient,) = torch.autograd.grad(reward(images, [GOLDEN["prompts"][2]]).sum(), images)
        deviation = torch.tensor(reward.preprocessing.std)[:, None, None]
        torch.testing.assert_close(gradient * deviation, expected, rtol=1e-4, atol=1e-6)

    def test_token_ids(self, reward):
        tokens = reward._tokenize(GOLDEN["prompts"])
        assert tokens.input_ids.tolist() == GOLDEN["input_ids"]
        assert tokens.attention_mask.tolist() == GOLDEN["attention_mask"]
        assert reward.tokenizer.convert_tokens_to_ids(["[DEC]", "[ENC]"]) == [344, 345]

    def test_token_ids_of_the_published_vocabulary(self, weights):
        golden = json.loads((FOLDER / "golden_token_ids_bert_base_uncased.json").read_text())
        reward = ImageReward(FOLDER, **ARGUMENTS | {"tokenizer": FIXTURES / "tokenizers" / "bert-base-uncased"})
        tokens = reward._tokenize(golden["prompts"])
        assert tokens.input_ids.tolist() == golden["input_ids"]
        assert tokens.attention_mask.tolist() == golden["attention_mask"]
        assert len(reward.tokenizer) == golden["length"] == TEXT_CONFIG.vocab_size


class TestCheckpoint:
    def test_the_published_network_has_exactly_the_published_tensors(self):
        with torch.device("meta"):
            network = ImageRewardNetwork(VISION_CONFIG, TEXT_CONFIG)
        expected = json.loads((FOLDER / "full_size_keys.json").read_text())
        assert {name: list(shape) for name, shape in published_shapes(network).items()} == expected

    def test_reads_the_published_kind_of_file(self, reward, weights, pictures, tmp_path):
        torch.save(weights, tmp_path / "ImageReward.pt")
        for checkpoint in (tmp_path, tmp_path / "ImageReward.pt"):
            scores = ImageReward(checkpoint, **ARGUMENTS)(pictures[0], ["a photo of a cat"])
            assert_same_from_a_copy(scores, reward(pictures[0], ["a photo of a cat"]))

    @pytest.mark.parametrize(
        "name",
        [
            "blip.visual_encoder.pos_embed",
            "blip.text_encoder.encoder.layer.1.crossattention.self.key.bias",
            "blip.text_proj.weight",
            "mlp.layers.7.bias",
        ],
    )
    def test_a_missing_tensor_is_named(self, weights, name):
        with pytest.raises(ValueError, match=f"lacks tensor '{name}'$"):
            build_network({key: value for key, value in weights.items() if key != name}, TINY_VISION, TINY_TEXT)

    def test_an_unexpected_tensor_is_named(self, weights):
        with pytest.raises(ValueError, match=r"has the unexpected tensor 'blip\.logit_scale'$"):
            build_network(weights | {"blip.logit_scale": torch.ones(())}, TINY_VISION, TINY_TEXT)

    def test_a_checkpoint_of_another_architecture_is_refused(self, tmp_path):
        save_file({"logit_scale": torch.ones(()), "text_projection": torch.ones(2, 2)}, tmp_path / "clip.safetensors")
        with pytest.raises(ValueError, match=r"lacks tensor '.*' and \d+ others; give one in its published layout"):
            ImageReward(tmp_path / "clip.safetensors", **ARGUMENTS)
        with pytest.raises(ValueError, match=r"'blip\.visual_encoder\.cls_token' has shape"):
            wider = BlipVisionConfig(**TINY_VISION.to_dict() | {"hidden_size": 128})
            ImageReward(FOLDER, **ARGUMENTS | {"vision_config": wider})

    def test_a_pickle_is_refused(self, tmp_path):
        torch.save({"weights": Path("anything")}, tmp_path / "ImageReward.pt")
        with pytest.raises(ValueError, match="cannot be read as a file of tensors"):
            ImageReward(tmp_path, **ARGUMENTS)
        torch.save({"weights": [1.0]}, tmp_path / "ImageReward.pt")
        with pytest.raises(ValueError, match="something other than named tensors"):
            ImageReward(tmp_path, **ARGUMENTS)

    def test_what_cannot_be_found(self, tmp_path):
        with pytest.raises(OSError, match=r"a folder without ImageReward\.safetensors or"):
            ImageReward(tmp_path)
        with pytest.raises(OSError, match="cannot load checkpoint='nobody/nothing'"):
            ImageReward("nobody/nothing", local_files_only=True)
        with pytest.raises(OSError, match="cannot load checkpoint='not/a/repository'"):
            ImageReward("not/a/repository")
        with pytest.raises(OSError, match="cannot load tokenizer="):
            ImageReward(FOLDER, **ARGUMENTS | {"tokenizer": tmp_path / "nowhere"})


@pytest.mark.parametrize("reward_class", [ImageReward, PackageImageReward, SimilarityReward, VQAScoreReward])
def test_unknown_options_are_refused(reward_class):
    references = [torch.zeros(3, 8, 8)] if reward_class is SimilarityReward else []
    with pytest.raises(
        TypeError, match=r"got the unknown option trust_remote_code=True; for loading it takes cache_dir"
    ):
        reward_class(*references, trust_remote_code=True)


class TestUse:
    def test_cut_prompts_are_warned_of_once(self, caplog, pictures):
        reward = ImageReward(FOLDER, **ARGUMENTS)
        long = " ".join(["cat"] * 40)
        reward(pictures[1].expand(2, -1, -1, -1), ["short", long])
        reward(pictures[1], [long])
        (record,) = caplog.records
        assert f"reads only {ImageReward.max_tokens} of the" in record.message

    @pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.06), (torch.float16, 0.01)])
    def test_half_precision(self, reward, pictures, dtype, tolerance):
        """The deviation on this network, whose scores spread by 1, is a few units of the towers' precision."""
        low = ImageReward(FOLDER, dtype=dtype, **ARGUMENTS)
        assert low.model.vision.dtype == low.model.text.dtype == dtype
        assert low.model.head[0].weight.dtype == torch.float32
        images = pictures[1].expand(4, -1, -1, -1).to(dtype)
        scores, exact = low(images, GOLDEN["prompts"][:4]), reward(images, GOLDEN["prompts"][:4])
        assert scores.dtype == torch.float32
        assert 0 < (scores - exact).abs().max() < tolerance

    def test_gradient_checkpointing_changes_no_score_and_no_gradient(self, reward, pictures):
        frugal = ImageReward(FOLDER, gradient_checkpointing=True, **ARGUMENTS)
        calls = []
        frugal.model.vision.encoder.layers[0].layer_norm1.register_forward_hook(lambda *_: calls.append("vision"))
        frugal.model.text.encoder.layer[0].attention.register_forward_hook(lambda *_: calls.append("text"))
        images = pictures[1].clone().requires_grad_()
        gradients = [torch.autograd.grad(r(images, ["a cat"]).sum(), images)[0] for r in (frugal, reward)]
        torch.testing.assert_close(*gradients)
        assert sorted(calls) == ["text", "text", "vision", "vision"]

    @pytest.mark.slow
    def test_compiles_as_one_graph(self, pictures, reward):
        compiled = ImageReward(FOLDER, **ARGUMENTS).compile(backend="aot_eager", fullgraph=True)
        images = pictures[1].clone().requires_grad_()
        gradients = [torch.autograd.grad(r(images, ["a cat"]).sum(), images)[0] for r in (compiled, reward)]
        torch.testing.assert_close(*gradients)

    def test_carries_gradients_from_any_size(self, reward):
        reward.probe(image_size=(40, 72), needs_gradient=True)


class TestWithoutThePackage:
    def test_names_that_transformers_has_moved_are_offered_for_a_while(self):
        before = set(vars(modeling_utils)), transformers.logging.get_verbosity(), list(warnings.filters)
        with pytest.raises(KeyError), official.earlier_transformers():
            assert modeling_utils.apply_chunking_to_forward is pytorch_utils.apply_chunking_to_forward
            transformers.logging.set_verbosity_error()
            warnings.filterwarnings("ignore")
            raise KeyError
        assert before == (set(vars(modeling_utils)), transformers.logging.get_verbosity(), list(warnings.filters))

    def test_is_asked_for(self, monkeypatch):
        monkeypatch.setattr(official, "find_spec", lambda name: None)
        with pytest.raises(ImportError, match=r"cannot be imported \(No module .*: run `pip install .* take reward"):
            PackageImageReward(FOLDER)
        assert availability(PackageImageReward).startswith("no: package ImageReward does not import (No module")


@pytest.fixture(scope="module")
def packaged():
    """The published classes at the size of the small checkpoint."""
    network = official.import_official()
    create_vit = sys.modules[f"{official.ROOT}.models.BLIP.blip"].create_vit
    vision_transformer = create_vit.__globals__["VisionTransformer"]

    def create_small_vit(name, image_size, *_):
        assert (name, image_size) == ("large", TINY_VISION.image_size)
        size = TINY_VISION.hidden_size, TINY_VISION.num_hidden_layers, TINY_VISION.num_attention_heads
        return vision_transformer(image_size, 16, 3, 0, *size, drop_path_rate=0.1), TINY_VISION.hidden_size

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(network.BLIP_Pretrain.__init__.__globals__, "create_vit", create_small_vit)
        patch.setattr(network, "MLP", lambda _, head=network.MLP: head(TINY_TEXT.hidden_size))
        yield PackageImageReward(FOLDER, tokenizer=ARGUMENTS["tokenizer"], med_config=FOLDER / "med_config.json")


@pytest.fixture(scope="module")
def tokens(reward):
    return reward._tokenize(["", *GOLDEN["prompts"], " ".join(["cat"] * 40)])


@pytest.mark.skipif(find_spec("ImageReward") is None, reason="needs `pip install --no-deps image-reward fairscale`")
class TestPackage:
    """Against the network of the installed image-reward, which is another implementation on the same weights."""

    def test_scores_on_equal_pixels(self, packaged, reward, tokens, official_pixels):
        for pixels in official_pixels:
            pixels = pixels.expand(len(tokens.input_ids), -1, -1, -1)
            found, expected = (
                network(pixels, tokens.input_ids, tokens.attention_mask) for network in (reward.model, packaged.model)
            )
            torch.testing.assert_close(found, expected, atol=ROUNDING, rtol=0)

    @pytest.mark.parametrize("seed", range(3))
    def test_scores_with_other_weights(self, packaged, tokens, seed):
        generator = torch.Generator().manual_seed(seed)
        model = deepcopy(packaged.model.model)
        for name, weight in model.named_parameters():
            scale = weight.shape[-1] ** -0.5 if weight.ndim > 1 else 0.3
            weight.copy_(scale * torch.randn(weight.shape, generator=generator) + name.endswith(NORM_WEIGHTS))
        ours = build_network(model.state_dict(), TINY_VISION, TINY_TEXT)
        pixels = torch.randn(len(tokens.input_ids), 3, 224, 224, generator=generator)
        found = ours(pixels, tokens.input_ids, tokens.attention_mask)
        expected = PackageNetwork(model)(pixels, tokens.input_ids, tokens.attention_mask)
        torch.testing.assert_close(found, expected, atol=ROUNDING, rtol=ROUNDING)

    def test_pixel_gradients(self, packaged, reward, pictures):
        images = pictures[1].clone().requires_grad_()
        gradients = [torch.autograd.grad(r(images, ["a cat"]).sum(), images)[0] for r in (reward, packaged)]
        torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)

    @pytest.mark.parametrize("image", [name for name in GOLDEN["images"] if name != "rgba"])
    def test_scores_of_the_package_itself_from_images_of_any_size(self, packaged, reward, pictures, image):
        model = packaged.model.model
        model.blip.tokenizer, model.device = reward.tokenizer, "cpu"
        expected = [model.score(prompt, str(FIXTURES / "images" / f"{image}.png")) for prompt in GOLDEN["prompts"]]
        images = pictures[GOLDEN["images"].index(image)].expand(len(expected), -1, -1, -1)
        torch.testing.assert_close(reward(images, GOLDEN["prompts"]), torch.tensor(expected), atol=1e-5, rtol=0)

    def test_use(self, packaged, reward, pictures):
        packaged.probe(needs_gradient=True)
        torch.testing.assert_close(
            packaged(pictures[3], ["a cat"]), reward(pictures[3], ["a cat"]), atol=ROUNDING, rtol=0
        )
        assert "ImageReward" not in sys.modules
        assert not availability(PackageImageReward).startswith("no")

    @pytest.mark.usefixtures("packaged")
    def test_a_checkpoint_of_another_architecture_is_refused(self, weights, tmp_path):
        save_file(
            {name: weight for name, weight in weights.items() if name != "mlp.layers.7.bias"},
            tmp_path / "a.safetensors",
        )
        with pytest.raises(
            ValueError, match=r"'imagereward_package' got .* lacks tensor 'mlp\.layers\.7\.bias'; give one"
        ):
            PackageImageReward(tmp_path / "a.safetensors", med_config=FOLDER / "med_config.json")

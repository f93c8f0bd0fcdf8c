"""The CLIP-based rewards against the official implementations, on equal pixels and from PIL images."""

from dataclasses import dataclass
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import load_file
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from diamond_diffusers.rewards import AestheticReward, AestheticV1Reward, CLIPReward, HPSv2Reward, PickScoreReward

from .golden import (
    FIXTURES,
    TOKENIZER,
    Golden,
    gradient_of_normalised_pixels,
    official_crops,
    picture,
    score_table,
)

COSINE, LOGIT, RATING = 1e-6, 2e-4, 1e-5
"""Measured across versions of the official libraries: 2e-7, 3e-5 and 1e-6."""


@dataclass
class Case:
    """One official score and the reward that must give it."""

    folder: str
    key: str
    make: Any
    tolerance: float
    end_to_end: str | None
    gradient: str | None = None
    has_rgba: bool = False

    def __str__(self):
        return f"{self.folder}-{self.key}"


def pick_score(checkpoints):
    return PickScoreReward(checkpoints["pickscore"])


def clip_b32(checkpoints):
    return CLIPReward(checkpoints["clip_b32"], scale="logit_scale")


def clip_l14(checkpoints):
    return CLIPReward(checkpoints["clip_l14"])


def hps_crop(checkpoints):
    return HPSv2Reward(checkpoints["hpsv2"], preprocessing="crop")


def hps_pad(checkpoints):
    return HPSv2Reward(checkpoints["hpsv2"])


def aesthetic(checkpoints):
    return AestheticReward(checkpoints["mlp"], checkpoints["clip_l14"])


def aesthetic_v1(checkpoints):
    return AestheticV1Reward(checkpoints["vit_l_14"], checkpoints["clip_l14"])


# Only transformers drops alpha before it resizes, as loading an image here does; the others resize RGBA.
CASES = [
    Case("pickscore", "scores_on_pil_crop_pixels", pick_score, LOGIT, "scores", "grad_exact224_prompt2", True),
    Case(
        "clip_b32",
        "logits_per_text_pil_crop",
        clip_b32,
        LOGIT,
        "logits_per_text_hf_processor",
        "grad_logit_exact224_prompt2",
        True,
    ),
    Case(
        "clip_l14", "imagereward_CLIPScore", clip_l14, COSINE, "imagereward_CLIPScore", "grad_cosine_exact224_prompt2"
    ),
    Case("hpsv2", "scores_clip_crop", hps_crop, COSINE, "scores_clip_crop", "grad_exact224_prompt2"),
    Case("hpsv2", "scores_clip_crop", hps_pad, COSINE, "scores_official", "grad_exact224_prompt2"),
]


@pytest.mark.parametrize("case", CASES, ids=str)
class TestOfficialScores:
    def test_on_equal_pixels(self, case, checkpoints):
        golden = Golden(case.folder)
        table = score_table(case.make(checkpoints), [official_crops(golden.images)], golden.prompts)
        torch.testing.assert_close(table, golden.scores(case.key), atol=case.tolerance, rtol=0)

    def test_from_pil_images(self, case, checkpoints):
        golden = Golden(case.folder)
        kept = [index for index, name in enumerate(golden.images) if case.has_rgba or name != "rgba"]
        pictures = [picture(golden.images[index]) for index in kept]
        table = score_table(case.make(checkpoints), pictures, golden.prompts)
        torch.testing.assert_close(table, golden.scores(case.end_to_end)[:, kept], atol=case.tolerance, rtol=0)

    def test_gradient(self, case, checkpoints):
        golden = Golden(case.folder)
        gradient = gradient_of_normalised_pixels(case.make(checkpoints), picture("exact224"), golden.prompts[2])
        torch.testing.assert_close(gradient, golden.tensor(case.gradient), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (aesthetic, "aesthetic_v2_simple_inference"),
        (aesthetic, "imagereward_AestheticScore"),
        (aesthetic_v1, "aesthetic_v1_linear"),
    ],
)
class TestAestheticScores:
    def test_on_equal_pixels(self, make, key, checkpoints):
        golden = Golden("aesthetic")
        scores = make(checkpoints)(official_crops(golden.images), [""] * 10)
        torch.testing.assert_close(scores, golden.scores(key), atol=RATING, rtol=0)

    def test_from_pil_images(self, make, key, checkpoints):
        golden = Golden("aesthetic")
        reward = make(checkpoints)
        scores = torch.cat([reward(picture(name), [""]) for name in golden.images])
        kept = torch.tensor([name != "rgba" for name in golden.images])
        torch.testing.assert_close(scores[kept], golden.scores(key)[kept], atol=RATING, rtol=0)


def test_aesthetic_gradient(checkpoints):
    gradient = gradient_of_normalised_pixels(aesthetic(checkpoints), picture("exact224"), "any")
    expected = Golden("clip_l14").tensor("grad_aesthetic_v2_exact224")
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)


class TestRatingEmbeddings:
    """Embeddings of images that people rated 0 to 9, as LAION published them with the heads."""

    @pytest.mark.parametrize(
        ("reward", "head", "clip"),
        [
            (AestheticReward, "mlp", "l_14"),
            (AestheticV1Reward, "vit_l_14", "l_14"),
            (AestheticV1Reward, "vit_b_32", "b_32"),
        ],
    )
    def test_scores_rise_with_the_rating(self, checkpoints, reward, head, clip):
        embeddings = load_file(FIXTURES / "aesthetic" / "laion_rating_embeddings.safetensors")
        key = "rating_embeddings_v2" if head == "mlp" else f"rating_embeddings_v1_{head}"
        ratings = reward(checkpoints[head], checkpoints["clip_l14"]).rate(embeddings[f"vit_{clip}_rating_embeddings"])
        assert (ratings.diff() > 0).all()
        torch.testing.assert_close(ratings, Golden("aesthetic").scores(key), atol=RATING, rtol=0)


HALF_PRECISION = [(torch.float16, 1e-3), (torch.bfloat16, 1e-2)]


@pytest.mark.parametrize(("dtype", "tolerance"), HALF_PRECISION, ids=["float16", "bfloat16"])
class TestHalfPrecision:
    """The stated deviations, in cosines; a score that deviates by less than its float32 tolerance was not half."""

    @pytest.mark.parametrize("case", CASES[:4], ids=str)
    def test_cosines(self, case, checkpoints, dtype, tolerance):
        golden = Golden(case.folder)
        reward = case.make(checkpoints).to(dtype=dtype)
        table = score_table(reward, [official_crops(golden.images)], golden.prompts)
        deviation = (table - golden.scores(case.key)).abs().max() / reward.scale
        assert COSINE < deviation < tolerance

    @pytest.mark.parametrize(
        ("make", "key"), [(aesthetic, "aesthetic_v2_simple_inference"), (aesthetic_v1, "aesthetic_v1_linear")]
    )
    def test_ratings(self, make, key, checkpoints, dtype, tolerance):
        golden = Golden("aesthetic")
        reward = make(checkpoints).to(dtype=dtype)
        assert next(reward.head.parameters()).dtype == torch.float32
        deviation = (reward(official_crops(golden.images), [""] * 10) - golden.scores(key)).abs().max()
        assert RATING < deviation < 2 * tolerance


class TestTexts:
    def test_transformers_tokens_are_those_of_the_official_code(self):
        golden = Golden("pickscore")
        tokenizer = CLIPTokenizer.from_pretrained(TOKENIZER)
        assert tokenizer(golden.prompts, truncation=True, max_length=77).input_ids == golden.values["input_ids"]

    @pytest.mark.parametrize("name", ["clip_l14", "hpsv2"])
    def test_open_clip_tokens_are_those_of_the_official_code(self, checkpoints, name):
        golden = Golden(name)
        tower = CLIPReward(checkpoints[name]).tower
        assert tower.tokenizer(golden.prompts).tolist() == golden.values["input_ids"]

    @pytest.mark.parametrize("name", ["clip_l14", "hpsv2"])
    def test_open_clip_tokens_are_counted_before_the_cut(self, checkpoints, name):
        golden = Golden(name)
        counts = CLIPReward(checkpoints[name]).tower.count_tokens(golden.prompts)
        uncut = [len([token for token in ids if token]) for ids in golden.values["input_ids"]]
        assert counts[4] > 77
        assert [min(count, 77) for count in counts] == uncut


def meta_shapes(module):
    return {key: list(value.shape) for key, value in module.state_dict().items()}


VIT_H_CONFIG = CLIPConfig(
    text_config={
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "projection_dim": 1024,
    },
    vision_config={
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_hidden_layers": 32,
        "num_attention_heads": 16,
        "patch_size": 14,
        "projection_dim": 1024,
    },
    projection_dim=1024,
)


class TestFullSizeKeys:
    """The published checkpoints' keys and shapes are those of the networks that are built for them."""

    @pytest.mark.parametrize(("name", "config"), [("pickscore", VIT_H_CONFIG), ("clip_b32", CLIPConfig())])
    def test_of_transformers(self, name, config):
        with torch.device("meta"):
            model = CLIPModel(config)
        published = Golden(name).full_size_keys()
        # Buffers of constants, which today's transformers computes and skips in checkpoints.
        for tower in ("text_model", "vision_model"):
            published.pop(f"{tower}.embeddings.position_ids")
        assert meta_shapes(model) == published

    @pytest.mark.parametrize(("name", "architecture"), [("hpsv2", "ViT-H-14"), ("clip_l14", "ViT-L-14-quickgelu")])
    def test_of_open_clip(self, name, architecture):
        with torch.device("meta"):
            model = open_clip.CLIP(**open_clip.get_model_config(architecture))
        assert meta_shapes(model) == Golden(name).full_size_keys()

import random
from weakref import WeakValueDictionary

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, PreTrainedTokenizerFast

from diamond_diffusers.core.registry import Registry
from diamond_diffusers.rewards import expressions, registry
from diamond_diffusers.rewards.clip import tower

from .golden import FIXTURES, L14_CONFIG, Golden, picture, write_heads, write_open_clip, write_transformers
from .vision_language_models import save_tiny_model

WORDS = ["a", "photo", "of", "one", "two", "red", "blue", "green", "circle", "square", "star", "left", "above"]
SPECIAL = ["<pad>", "<s>", "<unk>", "</s>"]
IMAGE_SIZE, MAX_TOKENS = 32, 12


def word_tokenizer():
    ids = {word: index for index, word in enumerate([*SPECIAL, *WORDS])}
    words = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    words.normalizer = normalizers.Lowercase()
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", ids["<s>"]), ("</s>", ids["</s>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        bos_token="<s>",
        unk_token="<unk>",
        eos_token="</s>",
        model_max_length=MAX_TOKENS,
    )


def tiny_clip(vocabulary_size):
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {"vocab_size": vocabulary_size, "max_position_embeddings": MAX_TOKENS}
    text |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 3}
    vision = {"image_size": IMAGE_SIZE, "patch_size": 8}
    model = CLIPModel(CLIPConfig(text_config=tower | text, vision_config=tower | vision, projection_dim=24))
    with torch.no_grad():
        # The default initialisation is so small that all images score nearly alike.
        for weight in model.parameters():
            if weight.ndim >= 2:
                weight.normal_(0, 2 * weight[0].numel() ** -0.5)
    return model


@pytest.fixture(scope="session")
def qwen_folder(tmp_path_factory):
    """A tiny vision-language model."""
    folder = tmp_path_factory.mktemp("qwen")
    save_tiny_model("qwen2_5_vl", folder)
    return folder


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory):
    """A real, random, tiny CLIP checkpoint as `save_pretrained` writes it."""
    folder = tmp_path_factory.mktemp("clip")
    tokenizer = word_tokenizer()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tiny_clip(len(tokenizer)).save_pretrained(folder)
    size = {"shortest_edge": IMAGE_SIZE}
    image_processor = CLIPImageProcessor(size=size, crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE})
    CLIPProcessor(image_processor, tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory):
    """Every golden CLIP as a checkpoint on disk, and the heads of the aesthetic predictors, by name."""
    made = {name: write_transformers(Golden(name), tmp_path_factory.mktemp(name)) for name in ("clip_b32", "pickscore")}
    for name, config in {"clip_l14": L14_CONFIG, "hpsv2": Golden("hpsv2").values["config"]}.items():
        made[name] = write_open_clip(Golden(name), tmp_path_factory.mktemp(name), config)
    heads = write_heads(tmp_path_factory.mktemp("heads"))
    made |= {name: heads / f"{name}.safetensors" for name in ("vit_l_14", "vit_b_32")}
    made["mlp"] = FIXTURES / "aesthetic" / "sac+logos+ava1-l14-linearMSE.safetensors"
    return made


@pytest.fixture
def prompts():
    generator = random.Random(0)
    return [" ".join(generator.sample(WORDS, length)) for length in (1, 3, 5, 8)]


@pytest.fixture
def exact():
    """One image of the right size and a prompt."""
    return picture("exact224"), ["a photo of a cat"]


@pytest.fixture
def images():
    """Four smooth images, so that resampling overshoots little."""

    def make(height, width, seed=0):
        noise = torch.rand(4, 3, 6, 6, generator=torch.Generator().manual_seed(seed))
        return torch.nn.functional.interpolate(noise, (height, width), mode="bilinear")

    return make


@pytest.fixture
def empty_registry(monkeypatch):
    """A registry of the test's own, which knows only what is registered in the test."""
    rewards = Registry("reward", "rewards")
    monkeypatch.setattr(registry, "REWARDS", rewards)
    monkeypatch.setattr(expressions, "REWARDS", rewards)


@pytest.fixture(autouse=True)
def own_towers(monkeypatch):
    """No CLIP of an earlier test is shared with this one."""
    monkeypatch.setattr(tower, "_towers", WeakValueDictionary())

"""Official outputs on tiny networks with the published checkpoints' layout; see fixtures/rewards/README.md."""

import json
import re
import zlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from diamond_diffusers.rewards.preprocessing import CLIP_STD, images_from_pil
from diamond_diffusers.rewards.shared_features import one_evaluation

FIXTURES = Path(__file__).parents[1] / "fixtures" / "rewards"
TOKENIZER = FIXTURES / "tokenizers" / "clip"
VOCABULARY = 49408
L14_CONFIG = {
    "embed_dim": 768,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 224, "layers": 2, "width": 128, "patch_size": 14},
    "text_cfg": {"context_length": 77, "vocab_size": VOCABULARY, "layers": 2, "width": 64, "heads": 1},
}


class Golden:
    """What the official implementation returned on the network `name`."""

    def __init__(self, name):
        self.folder = FIXTURES / name
        self.values = json.loads((self.folder / "golden.json").read_text())
        self.images, self.prompts = self.values["images"], self.values.get("prompts", [])

    def scores(self, key):
        return torch.tensor(self.values[key])

    def tensor(self, key):
        return load_file(self.folder / "tensors.safetensors")[key]

    def full_size_keys(self):
        return json.loads((self.folder / "full_size_keys.json").read_text())

    def unpacked_weights(self):
        """The checkpoint, with zeros for the tokens that no prompt uses, which are not stored."""
        weights = load_file(self.folder / "model.safetensors")
        (key,) = [key.removesuffix(".rows") for key in weights if key.endswith(".rows")]
        rows, values = weights.pop(f"{key}.rows"), weights.pop(f"{key}.values")
        weights[key] = torch.zeros(VOCABULARY, values.shape[1], dtype=values.dtype)
        weights[key][rows.long()] = values
        return weights


def write_transformers(golden, folder):
    """A transformers checkpoint with its tokenizer and image processor."""
    for file in [golden.folder / "config.json", *TOKENIZER.iterdir()]:
        (folder / file.name).write_bytes(file.read_bytes())
    save_file(golden.unpacked_weights(), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def write_open_clip(golden, folder, model_config):
    """An open_clip checkpoint: `local-dir:<folder>`."""
    config = {"model_cfg": model_config, "preprocess_cfg": {"size": 224}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    save_file(golden.unpacked_weights(), folder / "open_clip_model.safetensors")
    return f"local-dir:{folder}"


def write_heads(folder):
    """LAION's first heads, each in a file of its own."""
    weights = load_file(FIXTURES / "aesthetic" / "sa_0_4_linear_heads.safetensors")
    for name in ("vit_l_14", "vit_b_32"):
        head = {key.rpartition(".")[2]: value for key, value in weights.items() if key.startswith(name)}
        save_file(head, folder / f"{name}.safetensors")
    return folder


def picture(name):
    """One image of the fixtures, `[1, 3, H, W]` in [0, 1]."""
    with Image.open(FIXTURES / "images" / f"{name}.png") as image:
        return images_from_pil([image])


def official_crops(names):
    """The official 224 crops of images, `[B, 3, 224, 224]` in [0, 1]."""
    order = json.loads((FIXTURES / "preprocessed" / "image_order.json").read_text())
    pixels = load_file(FIXTURES / "preprocessed" / "pil_resize_crop_224_uint8.safetensors")["pixel_uint8"]
    return pixels[[order.index(name) for name in names]].float() / 255


def score_table(reward, batches, prompts):
    """Scores `[prompt][image]` of the images of batches `[B, 3, H, W]`, each of a size of its own."""
    columns = []
    for batch in batches:
        # Images are encoded once for all prompts, as they are for all terms of a sum.
        with torch.no_grad(), one_evaluation():
            columns.append(torch.stack([reward(batch, [prompt] * len(batch)) for prompt in prompts]))
    return torch.cat(columns, dim=1)


def gradient_of_normalised_pixels(reward, image, prompt):
    """The score's gradient, by the normalised pixels, of an image that needs no resizing."""
    image = image.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(reward(image, [prompt]).sum(), image)
    return gradient * torch.tensor(CLIP_STD)[:, None, None]


def formula_weights(shapes):
    """Random weights that depend on their names alone, so that they need not be stored.

    The official code was run on the same: a tensor that is taken for another, or left out, shows in the scores.
    """
    return {name: _formula_weight(name, tuple(shape)) for name, shape in shapes.items()}


def _formula_weight(name, shape):
    drawn = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    weight = torch.from_numpy(np.asarray(drawn)).float()
    if weight.ndim > 1:
        return 1.6 * weight * weight[0].numel() ** -0.5
    # The weights of norms are about 1.
    return 0.3 * weight + name.endswith("weight")


def shape_counts(shapes):
    """How many tensors of each shape there are by name, in which `*` stands for the numbers of layers."""
    counts = {}
    for name, shape in shapes.items():
        of_name = counts.setdefault(re.sub(r"(?<=\.)\d+(?=\.)", "*", name), {})
        text = "x".join(map(str, shape))
        of_name[text] = of_name.get(text, 0) + 1
    return counts

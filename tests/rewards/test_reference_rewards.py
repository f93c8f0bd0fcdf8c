import sys

import lpips
import pytest
import torch
from torchvision.models import squeezenet1_1
from torchvision.transforms.functional import to_pil_image
from transformers import AutoImageProcessor, AutoModel, BitImageProcessor, CLIPModel, Dinov2Config, Dinov2Model

from diamond_diffusers.rewards import LPIPSReward, SimilarityReward, as_reward

SIZE = 28


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    """A file of random weights as torchvision publishes them."""
    path = tmp_path_factory.mktemp("torchvision") / "squeezenet1_1.pth"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        torch.save(squeezenet1_1(weights=None).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def dino_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dinov2")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = Dinov2Config(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=SIZE, initializer_range=0.3
        )
        Dinov2Model(config).save_pretrained(folder)
    BitImageProcessor(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE}).save_pretrained(folder)
    return folder


@pytest.fixture
def pictures():
    """Three 8-bit images."""
    noise = torch.rand(3, 3, 64, 48, generator=torch.Generator().manual_seed(0))
    return (noise * 255).round() / 255


class TestLPIPS:
    def test_is_minus_the_distance_of_the_package(self, backbone, pictures):
        torch_model = squeezenet1_1(weights=None)
        torch_model.load_state_dict(torch.load(backbone, weights_only=True))
        official = lpips.LPIPS(net="squeeze", pnet_rand=True, verbose=False)
        for name, weight in official.net.named_parameters():
            # slice3.6.squeeze.weight is features.6.squeeze.weight.
            weight.data = torch_model.get_parameter("features." + name.split(".", 1)[1]).data
        with torch.no_grad():
            pairs = [official(2 * pictures - 1, 2 * pictures[i : i + 1] - 1)[:, 0, 0, 0] for i in range(2)]
        reward = LPIPSReward(pictures[:2], network="squeeze", backbone=backbone)
        assert pairs[0][1] > 0.01
        torch.testing.assert_close(reward(pictures, [""] * 3), -(pairs[0] + pairs[1]) / 2)
        single = LPIPSReward(to_pil_image(pictures[0]), network="squeeze", backbone=backbone)
        torch.testing.assert_close(single(pictures, [""] * 3), -pairs[0])

    def test_references_follow_the_images_size(self, backbone, pictures):
        reward = LPIPSReward(pictures[0], network="squeeze", backbone=backbone)
        reward.probe(image_size=(40, 72), needs_gradient=True)

    def test_backbones_of_another_network_are_refused(self, pictures, backbone, tmp_path):
        torch.save({"features.0.weight": torch.ones(1)}, tmp_path / "other.pth")
        for path in (tmp_path / "other.pth", tmp_path / "nowhere.pth"):
            with pytest.raises(OSError, match=f"cannot load backbone='{path}' of network 'squeeze'"):
                LPIPSReward(pictures[0], network="squeeze", backbone=path)
        with pytest.raises(ValueError, match="network='resnet'; choose"):
            LPIPSReward(pictures[0], network="resnet")

    def test_without_the_package(self, pictures, monkeypatch):
        monkeypatch.setitem(sys.modules, "lpips", None)
        with pytest.raises(ImportError, match=r"needs the package 'lpips'.*diamond-diffusers\[lpips\]"):
            LPIPSReward(pictures[0])


class TestSimilarity:
    def test_is_the_mean_cosine_of_the_pooled_features(self, dino_folder, pictures):
        """Pixels are taken from the checkpoint's own processor, on images that it need not resize."""
        images = pictures[..., :SIZE, :SIZE]
        processor, model = AutoImageProcessor.from_pretrained(dino_folder), AutoModel.from_pretrained(dino_folder)
        with torch.no_grad():
            pixels = processor([to_pil_image(image) for image in images], return_tensors="pt").pixel_values
            features = torch.nn.functional.normalize(model(pixels).pooler_output)
        expected = features @ features[:2].T
        assert expected[0, 1] < 0.99
        reward = SimilarityReward([to_pil_image(image) for image in images[:2]], dino_folder)
        torch.testing.assert_close(reward(images, [""] * 3), expected.mean(1))

    def test_clip_is_compared_in_its_projected_space(self, clip_folder, pictures):
        reward = SimilarityReward(pictures[0], clip_folder)
        pixels = reward.preprocessing(pictures)
        with torch.no_grad():
            model = CLIPModel.from_pretrained(clip_folder)
            projected = model.visual_projection(model.vision_model(pixels).pooler_output)
        expected = torch.nn.functional.cosine_similarity(projected, projected[:1])
        torch.testing.assert_close(reward(pictures, [""] * 3), expected)

    def test_an_image_is_like_itself_in_every_dtype(self, dino_folder, pictures):
        reward = SimilarityReward(pictures[1], dino_folder)
        for dtype in (torch.float32, torch.bfloat16):
            scores = reward.to(dtype=dtype)(pictures, [""] * 3)
            assert scores.argmax() == 1
            assert abs(scores[1] - 1) < 1e-5

    @pytest.mark.parametrize("gradient_checkpointing", [False, True])
    def test_gradients(self, dino_folder, pictures, gradient_checkpointing):
        reward = SimilarityReward(pictures[0], dino_folder, gradient_checkpointing=gradient_checkpointing)
        reward.to(dtype=torch.float64)
        images = (0.3 + 0.4 * pictures[1:, :, :SIZE, :SIZE].double()).requires_grad_()
        (gradient,) = torch.autograd.grad(reward.score(images, ["", ""]).sum(), images)
        direction = torch.randn(images.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        step = 1e-5
        with torch.no_grad():
            ends = [reward.score(images + sign * step * direction, ["", ""]).sum() for sign in (1, -1)]
        torch.testing.assert_close((gradient * direction).sum(), (ends[0] - ends[1]) / (2 * step), rtol=1e-4, atol=1e-7)

    def test_a_model_without_pooled_features(self, dino_folder, pictures):
        reward = SimilarityReward(pictures[0], dino_folder)
        reward.model = type("Unpooled", (torch.nn.Linear,), {"forward": lambda self, pixel_values: ()})(1, 1)
        reward.model.device, reward.model.dtype = torch.device("cpu"), torch.float32
        with pytest.raises(ValueError, match="checkpoint of a Unpooled returns no pooled image feature"):
            reward(pictures, [""] * 3)

    def test_what_cannot_be_loaded(self, pictures, dino_folder, tmp_path):
        with pytest.raises(OSError, match=f"cannot load checkpoint='{tmp_path}'"):
            SimilarityReward(pictures[0], tmp_path)
        deeper = Dinov2Config.from_pretrained(dino_folder, num_hidden_layers=3)
        shallow = Dinov2Model.from_pretrained(dino_folder)
        shallow.config = deeper
        shallow.save_pretrained(tmp_path / "shallow")
        AutoImageProcessor.from_pretrained(dino_folder).save_pretrained(tmp_path / "shallow")
        with pytest.raises(ValueError, match=r"lacks encoder.* other weights of a dinov2"):
            SimilarityReward(pictures[0], tmp_path / "shallow")


@pytest.mark.parametrize(
    ("references", "error", "sentence"),
    [
        (torch.rand(4, 8, 8), ValueError, r"references of shape \[4, 8, 8\]"),
        (torch.zeros(3, 8, 8, dtype=torch.uint8), ValueError, r"torch\.uint8; give a floating tensor"),
        (255 * torch.ones(3, 8, 8), ValueError, r"references from 255 to 255; scale them to \[0, 1\]"),
        (["reference.png"], TypeError, "give a tensor or PIL images"),
        ([], ValueError, "images"),
    ],
)
def test_malformed_references(references, error, sentence):
    with pytest.raises(error, match=sentence):
        SimilarityReward(references)


@pytest.mark.parametrize("name", ["lpips", "similarity"])
def test_a_name_alone_does_not_make_them(name):
    with pytest.raises(
        ValueError,
        match=f"The reward '{name}' needs references, so its name alone does not make it; construct .*--import",
    ):
        as_reward(name)

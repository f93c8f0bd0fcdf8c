import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, SiglipConfig, SiglipImageProcessor, SiglipModel

from diamond_diffusers.rewards import (
    AestheticReward,
    AestheticV1Reward,
    CLIPReward,
    HPSv2Reward,
    HPSv21Reward,
    PickScoreReward,
    hub,
)
from diamond_diffusers.rewards.clip import base

from ..rounding import assert_same_from_a_copy
from .golden import L14_CONFIG, TOKENIZER, Golden, official_crops, score_table


class TestNoNetwork:
    @pytest.mark.parametrize("reward", [CLIPReward, PickScoreReward, HPSv2Reward, HPSv21Reward])
    def test_one_sentence_names_the_checkpoint(self, reward):
        with pytest.raises(OSError, match=r"^Reward '\w+' cannot load checkpoint='.*; give "):
            reward(local_files_only=True)


class TestOpenClip:
    """Built-in architectures are stood in for by tiny ones of the same name."""

    @pytest.fixture
    def built_in(self, monkeypatch):
        def replace(architecture, config):
            monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, architecture, config)

        return replace

    @pytest.fixture
    def hps_weights(self, built_in, tmp_path):
        golden = Golden("hpsv2")
        built_in("ViT-H-14", golden.values["config"])
        torch.save({"state_dict": golden.unpacked_weights()}, tmp_path / "HPS.pt")
        return tmp_path / "HPS.pt"

    @pytest.mark.parametrize("reward", [HPSv2Reward, HPSv21Reward])
    def test_hps_reads_a_weights_file(self, hps_weights, reward):
        golden = Golden("hpsv2")
        table = score_table(reward(hps_weights, preprocessing="crop"), [official_crops(golden.images)], golden.prompts)
        torch.testing.assert_close(table, golden.scores("scores_clip_crop"), atol=1e-6, rtol=0)

    @pytest.mark.parametrize(
        ("reward", "name", "file"),
        [(HPSv2Reward, "hpsv2", "HPS_v2_compressed.pt"), (HPSv21Reward, "hpsv2_1", "HPS_v2.1_compressed.pt")],
    )
    def test_hps_downloads_its_version(self, hps_weights, monkeypatch, reward, name, file):
        asked = []
        monkeypatch.setattr(
            hub, "hf_hub_download", lambda *names, **options: asked.append((names, options)) or hps_weights
        )
        assert reward(revision="main").name == name
        assert asked == [(("xswu/HPSv2", file), {"revision": "main"})]

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda weights: weights.pop("visual.proj"), r"Missing key\(s\) in state_dict: .visual.proj."),
            (lambda weights: weights.update(extra=torch.zeros(1)), r"Unexpected key\(s\) in state_dict: .extra."),
            (lambda weights: weights.update({"ln_final.bias": torch.zeros(3)}), r"size mismatch for ln_final.bias"),
        ],
    )
    def test_other_weights_are_named(self, built_in, tmp_path, change, message):
        golden = Golden("hpsv2")
        built_in("ViT-H-14", golden.values["config"])
        weights = golden.unpacked_weights()
        change(weights)
        save_file(weights, tmp_path / "hps.safetensors")
        with pytest.raises(OSError, match=message):
            HPSv2Reward(tmp_path / "hps.safetensors")

    def test_openai_weights_get_their_own_activation(self, built_in, checkpoints, monkeypatch):
        """The built-in ViT-L-14 has the activation of LAION's weights; OpenAI's tag needs another."""
        golden = Golden("clip_l14")
        file = checkpoints["clip_l14"].removeprefix("local-dir:") + "/open_clip_model.safetensors"
        built_in("ViT-L-14", {key: value for key, value in L14_CONFIG.items() if key != "quick_gelu"})
        monkeypatch.setattr(open_clip.factory, "download_pretrained", lambda *arguments, **options: file)
        reward = CLIPReward("open_clip:ViT-L-14/openai")
        table = score_table(reward, [official_crops(golden.images)], golden.prompts)
        torch.testing.assert_close(table, golden.scores("imagereward_CLIPScore"), atol=1e-6, rtol=0)

    @pytest.mark.parametrize(
        ("checkpoint", "message"),
        [
            ("open_clip:ViT-B-32/no_such_tag", "no_such_tag"),
            ("open_clip:ViT-Q/openai", "ViT-Q"),
            ("local-dir:/no/such/folder", "not found: /no/such/folder"),
        ],
    )
    def test_what_is_not_there(self, checkpoint, message):
        with pytest.raises(OSError, match=message):
            CLIPReward(checkpoint)

    def test_an_architecture_without_weights(self):
        with pytest.raises(ValueError, match=r"got checkpoint='open_clip:ViT-B-32', which names no weights; give open"):
            CLIPReward("open_clip:ViT-B-32")

    def test_hps_takes_other_checkpoints_too(self, hps_weights, checkpoints, exact):
        expected = HPSv2Reward(hps_weights)(*exact)
        assert_same_from_a_copy(HPSv2Reward(f"open_clip:ViT-H-14/{hps_weights}")(*exact), expected)
        cosine = PickScoreReward(checkpoints["pickscore"], scale=1)(*exact)
        torch.testing.assert_close(HPSv2Reward(checkpoints["pickscore"])(*exact), cosine)
        with pytest.raises(OSError, match=r"'hpsv2' got checkpoint='nowhere.pt', which does not exist"):
            HPSv2Reward("nowhere.pt")

    def test_options_of_transformers_are_refused(self, checkpoints):
        with pytest.raises(ValueError, match=r"got revision='main', which open_clip does not take; only cache_dir"):
            CLIPReward(checkpoints["clip_l14"], revision="main")


@pytest.fixture(scope="module")
def siglip_folder(tmp_path_factory):
    """A tiny random SigLIP, which resizes both sides and reads texts without a mask."""
    folder = tmp_path_factory.mktemp("siglip")
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {"vocab_size": 49408, "max_position_embeddings": 16, "projection_size": 32, "pad_token_id": 1}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = SiglipConfig(text_config=tower | text, vision_config=tower | {"image_size": 32, "patch_size": 8})
        model = SiglipModel(config)
        with torch.no_grad():
            for weight in model.parameters():
                if weight.ndim >= 2:
                    weight.normal_(0, weight[0].numel() ** -0.5)
        model.save_pretrained(folder)
    SiglipImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    AutoTokenizer.from_pretrained(TOKENIZER, model_max_length=16).save_pretrained(folder)
    return folder


class TestSiglip:
    def test_equals_the_logits_of_the_model_without_its_bias(self, siglip_folder):
        reward = CLIPReward(siglip_folder, scale="logit_scale")
        images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        prompts = ["a cat", "two dogs on a red sofa", ""]
        tokens = reward.tower.tokenizer(prompts, padding="max_length", max_length=16, return_tensors="pt")
        model = SiglipModel.from_pretrained(siglip_folder)
        with torch.no_grad():
            logits = model(input_ids=tokens.input_ids, pixel_values=2 * images - 1).logits_per_image - model.logit_bias
        assert logits.std() > 0.01
        torch.testing.assert_close(score_table(reward, [images], prompts), logits.T, atol=1e-5, rtol=1e-5)
        assert reward.image_features(torch.rand(1, 3, 50, 70)).shape == (1, 32)


class TestPickScore:
    def test_the_cosine_by_option(self, checkpoints, exact):
        scores = PickScoreReward(checkpoints["pickscore"])(*exact)
        cosines = PickScoreReward(checkpoints["pickscore"], scale=1)(*exact)
        torch.testing.assert_close(cosines * Golden("pickscore").values["logit_scale"], scores)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_the_scale_is_never_rounded(self, checkpoints, dtype):
        reward = PickScoreReward(checkpoints["pickscore"], dtype=dtype)
        assert reward.scale == pytest.approx(Golden("pickscore").values["logit_scale"], rel=1e-6)

    def test_the_official_processor_goes_with_the_official_checkpoint(self, monkeypatch):
        asked = []

        def load(name, checkpoint, processor, *rest):
            asked.append((checkpoint, processor))
            raise OSError

        monkeypatch.setattr(base, "load_clip", load)
        for arguments in ({}, {"checkpoint": "mine"}, {"checkpoint": "mine", "processor": "other"}):
            with pytest.raises(OSError):
                PickScoreReward(**arguments)
        official = ("yuvalkirstain/PickScore_v1", "laion/CLIP-ViT-H-14-laion2B-s32B-b79K")
        assert asked == [official, ("mine", None), ("mine", "other")]


class TestHeads:
    def test_torch_files_are_read_without_pickles(self, checkpoints, tmp_path):
        torch.save({"weight": torch.ones(1, 768), "bias": torch.zeros(1)}, tmp_path / "head.pth")
        reward = AestheticV1Reward(tmp_path / "head.pth", checkpoints["clip_l14"])
        features = torch.nn.functional.normalize(torch.rand(2, 768), dim=-1)
        torch.testing.assert_close(reward.rate(features), features.sum(-1))
        torch.save(torch.nn.Linear(768, 1), tmp_path / "module.pth")
        with pytest.raises(OSError, match=r"'aesthetic_v1' cannot load head='.*module.pth' .*; give head="):
            AestheticV1Reward(tmp_path / "module.pth", checkpoints["clip_l14"])

    @pytest.mark.parametrize("name", ["head.safetensors", "head.pth"])
    @pytest.mark.parametrize("content", [b"", b"no weights"])
    def test_damaged_files_are_named(self, checkpoints, tmp_path, name, content):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(OSError, match=rf"'aesthetic_v1' cannot load head='.*{name}' .*; give head="):
            AestheticV1Reward(tmp_path / name, checkpoints["clip_l14"])

    def test_a_file_of_something_else_is_named(self, checkpoints, tmp_path):
        torch.save(torch.ones(1, 768), tmp_path / "head.pth")
        with pytest.raises(OSError, match=r"cannot load head=.*holds something other than named tensors"):
            AestheticV1Reward(tmp_path / "head.pth", checkpoints["clip_l14"])

    def test_other_heads(self, checkpoints, tmp_path):
        with pytest.raises(ValueError, match=r"of another architecture .*layers.0.weight.*; give the published head"):
            AestheticReward(checkpoints["vit_l_14"], checkpoints["clip_l14"])
        with pytest.raises(ValueError, match=r"of another architecture .*Missing key.*weight"):
            AestheticV1Reward(checkpoints["mlp"], checkpoints["clip_l14"])
        with pytest.raises(OSError, match=r"cannot load head='.*absent.pth'"):
            AestheticReward(tmp_path / "absent.pth", checkpoints["clip_l14"])

    def test_a_head_of_another_clip(self, checkpoints, exact):
        reward = AestheticV1Reward(checkpoints["vit_b_32"], checkpoints["clip_l14"])
        with pytest.raises(
            ValueError, match=r"CLIP features of width 768, but its head reads 512; give the checkpoint"
        ):
            reward(*exact)

    @pytest.mark.parametrize("reward", [AestheticReward, AestheticV1Reward])
    def test_the_published_head_is_downloaded_once_and_checked(self, checkpoints, tmp_path, monkeypatch, reward):
        asked = []
        source = {AestheticReward: checkpoints["mlp"], AestheticV1Reward: checkpoints["vit_l_14"]}[reward]

        def download(url, path, hash_prefix, progress):
            asked.append((url, hash_prefix))
            torch.save(load_file(source), path)

        monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
        monkeypatch.setattr(torch.hub, "download_url_to_file", download)
        for _ in range(2):
            reward(checkpoint=checkpoints["clip_l14"])
        assert asked == [(reward.url, reward.sha256)]

    def test_rows_do_not_mix(self, checkpoints):
        reward = AestheticReward(checkpoints["mlp"], checkpoints["clip_l14"])
        images = official_crops(Golden("aesthetic").images[:3]).requires_grad_()
        (gradient,) = torch.autograd.grad(reward(images, [""] * 3)[1], images)
        assert gradient[1].abs().sum() > 0 and gradient[[0, 2]].abs().sum() == 0


def test_hps_preprocessing_is_checked():
    with pytest.raises(ValueError, match=r"'hpsv2' got preprocessing='squash'; give 'pad' or 'crop'"):
        HPSv2Reward("local-dir:x", preprocessing="squash")

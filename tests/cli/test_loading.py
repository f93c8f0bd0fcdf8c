"""Options that say how a model is loaded."""

import json

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import save_file

from benchmarks.zoo.stable_diffusion import build_tiny_stable_diffusion
from diamond_diffusers import DiamondMapPipeline, Guidance, Guide
from diamond_diffusers.cli import loading as module
from diamond_diffusers.cli.loading import load_model
from diamond_diffusers.cli.loras import MAP_ADAPTER, Lora, parsed_loras
from diamond_diffusers.cli.records import LoadingOptions
from diamond_diffusers.evaluation.benchmark.records import fingerprint, modules_of
from diamond_diffusers.maps.diamond_map import ADAPTER
from diamond_diffusers.pipelines import quantization
from diamond_diffusers.pipelines.loading import MAP_FOLDER, embedded_model

from ..families.common import lora_weights
from ..families.family import tiny_preview_vae
from .invoking import refusal, succeed


@pytest.fixture(scope="module")
def parts(tiny_folder, tmp_path_factory):
    """A folder with two LoRAs of the tiny model, and decoders of its latents and of others."""
    folder = tmp_path_factory.mktemp("parts")
    weights = lora_weights(DiamondMapPipeline.from_pretrained(tiny_folder).family, ("to_q", "to_v"))
    save_file(weights, folder / "style.safetensors")
    save_file({name: weight.flip(0) for name, weight in weights.items()}, folder / "rank=2.safetensors")
    tiny_preview_vae(4, 4).save_pretrained(folder / "preview")
    tiny_preview_vae(8, 4).save_pretrained(folder / "wide")
    return folder


@pytest.fixture
def load(tiny_folder, tmp_path):
    """Loads the tiny model, or another one."""

    def run(model=tiny_folder, **options):
        pipe = load_model(model and str(model), LoadingOptions(**options), tmp_path / "out")
        pipe.set_progress_bar_config(disable=True)
        return pipe

    return run


def image(pipe, **call):
    generator = torch.Generator().manual_seed(0)
    return pipe("a star", num_inference_steps=2, generator=generator, output_type="pt", **call).images


WRONG = {
    "no_offload": (("--offload", "cpu"), "--offload is 'cpu'; choose one of model, group, sequential"),
    "offload_of_cpu": (("--offload", "model", "--device", "cpu"), "--offload is 'model', but the device is the CPU"),
    "no_quantization": (("--quantize", "int3"), "--quantize is 'int3'; choose one of nf4, int8, fp8"),
    "package": (("--quantize", "int8"), "--quantize is 'int8', but torchao is not installed; pip install"),
    "package_of_no_use": (("--quantize", "nf4", "--device", "cpu"), "--quantize is 'nf4', which needs a CUDA device"),
    "revision_of_folder": (("--revision", "main"), "--revision is 'main', but the folder"),
    "few_step": (("--few-step", "fast"), "--few-step is 'fast', but the adapters that --lora names are none; give"),
    "no_lora": (("--lora", "no/such.safetensors"), "--lora is 'no/such.safetensors', whose source is no file"),
    "no_repository": (("--lora", "../../up"), "whose source is no file or folder here, nor the name of a repository"),
    "empty_lora": (("--lora", ""), "--lora is ''; give [NAME=]SOURCE[=WEIGHT], such as lcm=latent"),
    "name_of_lora": (("--lora", "a.b={parts}/style.safetensors"), "where NAME is of letters, digits, '_' and '-'"),
    "name_of_maps": (
        ("--lora", "diamond_map={parts}/style.safetensors"),
        "'diamond_map' is the adapter of Diamond Maps",
    ),
    "weight_of_lora": (("--lora", "{parts}/style.safetensors=nan"), "whose weight is no finite number"),
    "same_name": (
        ("--lora", "a={parts}/style.safetensors", "--lora", "a={parts}/rank=2.safetensors"),
        "--lora gives the adapter name 'a' twice; name each LoRA otherwise",
    ),
    "damaged_lora": (("--lora", "{parts}/preview/config.json"), "/preview/config.json', which cannot be loaded ("),
    "no_preview": (("--preview-vae", "/nowhere"), "--preview-vae is '/nowhere', which cannot be loaded ("),
    "channels": (("--preview-vae", "{parts}/wide"), "its latents have 8 channels, but those of the model 4)"),
    "no_tiny_decoder": (("--preview-vae", "{model}/vae"), "(it is a AutoencoderKL); give an AutoencoderTiny"),
    "no_map": (("--diamond-map", "{parts}"), "holds no diamond_map_config.json"),
    "other_map": (
        ("--diamond-map", "{embedded}"),
        "for a base whose in_channels is 32, but that of this flux model is",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_is_refused_before_the_model_is_loaded(tiny_folder, parts, tmp_path, monkeypatch, case):
    def load(*arguments, **options):
        raise AssertionError("the model is loaded")

    # Whatever is installed here.
    monkeypatch.setattr(quantization, "find_spec", lambda name: None)
    monkeypatch.setattr(DiffusionPipeline, "from_pretrained", load)
    arguments, sentence = WRONG[case]
    filled = [text.format(parts=parts, model=tiny_folder, embedded=embedded_model()) for text in arguments]
    output = tmp_path / "out"
    assert sentence in refusal("generate", "a star", "--model", tiny_folder, "--output", output, *filled)
    assert not output.exists()


def test_a_model_that_cannot_be_asked_for_is_not_said_to_be_broken(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    sentence = refusal("generate", "a star", "--model", "someone/nowhere", "--alignment", "none", "--output", tmp_path)
    assert "which cannot be loaded (it is not in the cache, and the Hub cannot be reached); give" in sentence


@pytest.mark.parametrize(
    ("options", "device", "sentence"),
    [
        ({"quantize": "nf4"}, "cpu", "needs a CUDA device, but the device is 'cpu'; take --quantize int8"),
        ({"quantize": "nf4", "offload": "group"}, "cuda", "--offload is 'group', which does not move weights of"),
        ({"quantize": "fp8", "offload": "sequential"}, "cuda", "take --offload model or group"),
        ({"quantize": "int8", "offload": "sequential"}, "cuda", "take --offload model or group"),
    ],
)
def test_what_a_device_or_hook_cannot_do_is_refused(load, monkeypatch, options, device, sentence):
    monkeypatch.setattr(quantization, "find_spec", lambda name: name)
    monkeypatch.setattr(module, "usable_device", lambda name: device)
    with pytest.raises(ValueError, match=sentence):
        load(**options)


def test_a_model_without_loras_is_named(monkeypatch, load, parts):
    monkeypatch.setattr("diamond_diffusers.pipelines.loading.class_of", lambda name: DiffusionPipeline)
    with pytest.raises(ValueError, match="but diffusers loads no LoRA into a FluxPipeline"):
        load(lora=[f"{parts}/style.safetensors"])


def test_the_embedded_model_has_no_variants_and_revisions(load):
    with pytest.raises(ValueError, match="--variant is 'fp16', but the embedded model has no variants"):
        load(None, variant="fp16")
    with pytest.raises(ValueError, match="--revision is 'main', but the embedded model has no revisions"):
        load(None, revision="main")


def test_the_name_of_maps_is_that_of_their_adapter():
    """Which the command line knows without importing torch."""
    assert MAP_ADAPTER == ADAPTER


def test_loras_of_the_hub_are_named_by_repository_and_file():
    given = ["someone/style", "lcm=someone/fast/sub/file.safetensors=0.5", "someone/other=-1"]
    assert parsed_loras(given) == [
        Lora(given[0], "someone/style", None, "default_0"),
        Lora(given[1], "someone/fast", "sub/file.safetensors", "lcm", 0.5),
        Lora(given[2], "someone/other", None, "default_2", -1.0),
    ]


def test_loras_act_as_in_the_stock_pipeline(load, parts):
    first, second = parts / "style.safetensors", parts / "rank=2.safetensors"
    pipe = load(lora=[str(first), f"fast={second}=0.5"], few_step="fast")
    assert pipe.few_step == ("fast",) and pipe.get_active_adapters() == ["default_0", "fast"]
    stock = DiamondMapPipeline.from_pipe(load().pipeline, defaults=pipe.defaults)
    plain = image(stock)
    stock.load_lora_weights(first, adapter_name="default_0")
    stock.load_lora_weights(second, adapter_name="fast")
    stock.set_adapters(["default_0", "fast"], [1.0, 0.5])
    assert torch.equal(image(pipe), image(stock))
    assert (image(pipe) - plain).abs().max() > 1e-3
    assert torch.equal(image(load(lora=[f"{second}=0"])), plain)


def test_parts_are_loaded_beside_the_model(load, parts):
    pipe = load(preview_vae=f"{parts}/preview", few_step="true")
    assert type(pipe.preview_vae).__name__ == "AutoencoderTiny" and pipe.few_step is True
    saved = str(embedded_model() / MAP_FOLDER)
    pipe = load(None, diamond_map=saved, dtype="bfloat16", few_step="false")
    assert pipe.family.has_diamond_map and pipe.dtype is torch.bfloat16 and pipe.few_step is False


def test_a_variant_is_loaded(load, tiny_folder, tmp_path):
    pipe = DiamondMapPipeline.from_pretrained(tiny_folder)
    pipe.pipeline.save_pretrained(tmp_path / "both", variant="half")
    assert torch.equal(image(load(tmp_path / "both", variant="half"), height=16, width=16), image(pipe, **PLAIN))
    with pytest.raises(ValueError, match=r"--model is .* which cannot be loaded .*variant=fp16"):
        load(tmp_path / "both", variant="fp16")


PLAIN = {"max_sequence_length": 512, "true_cfg_scale": 1.0, "negative_prompt": None}


def test_stock_keywords_reach_the_stock_loader(tiny_folder, monkeypatch):
    given = {"variant": "fp16", "revision": "main", "quantization_config": object(), "device_map": "balanced"}
    seen = {}

    def loaded(cls, model, **options):
        seen.update(options)
        return from_pretrained(model)

    from_pretrained = DiffusionPipeline.from_pretrained
    monkeypatch.setattr(DiffusionPipeline, "from_pretrained", classmethod(loaded))
    DiamondMapPipeline.from_pretrained(tiny_folder, **given)
    assert seen == given


@pytest.mark.parametrize(
    ("offload", "method", "options"),
    [
        ("model", "enable_model_cpu_offload", {"device": "cuda"}),
        ("sequential", "enable_sequential_cpu_offload", {"device": "cuda"}),
        (
            "group",
            "enable_group_offload",
            {"offload_type": "block_level", "num_blocks_per_group": 1, "use_stream": True},
        ),
    ],
)
def test_offloading_is_that_of_diffusers(load, parts, monkeypatch, offload, method, options):
    seen, moved = [], []
    monkeypatch.setattr(module, "usable_device", lambda name: "cuda")
    monkeypatch.setattr(DiffusionPipeline, method, lambda self, *devices, **given: seen.append(given))
    monkeypatch.setattr(DiffusionPipeline, "to", lambda self, *devices: moved.append(self))
    monkeypatch.setattr("diffusers.AutoencoderTiny.to", lambda self, *devices, **given: moved.append(self) or self)
    pipe = load(offload=offload, preview_vae=f"{parts}/preview", dtype="float32")
    assert seen == [options]
    # It is no component, which hooks would move.
    assert moved[-1] is pipe.preview_vae and pipe.pipeline not in moved


def test_fp8_holds_linear_weights_in_a_byte(load):
    pipe, full = load(quantize="fp8", dtype="float32"), load()
    weight = pipe.transformer.transformer_blocks[0].attn.to_q.weight
    assert weight.dtype is torch.float8_e4m3fn and pipe.transformer.dtype is torch.float32
    call = {"alignment": Guidance(guide=Guide("pathwise")), "reward": "brightness"}
    assert (image(pipe, **call) - image(full, **call)).abs().mean() < 0.05


def test_fp8_holds_convolutions_too_and_they_are_differentiated(load, tmp_path):
    build_tiny_stable_diffusion().save_pretrained(tmp_path / "unet")
    pipe, full = load(tmp_path / "unet", quantize="fp8"), load(tmp_path / "unet", dtype="bfloat16")
    assert pipe.unet.conv_in.weight.dtype is torch.float8_e4m3fn and pipe.unet.dtype is torch.bfloat16
    call = {"alignment": Guidance(guide=Guide("pathwise")), "reward": "brightness", "height": 16, "width": 16}
    assert (image(pipe, **call) - image(full, **call)).float().abs().mean() < 0.05


def test_int8_is_drawn_with_and_differentiated(load):
    pytest.importorskip("torchao")
    pipe = load(quantize="int8")
    assert type(pipe.transformer.transformer_blocks[0].attn.to_q.weight).__name__ == "Int8Tensor"
    assert type(pipe.text_encoder_2.encoder.block[0].layer[0].SelfAttention.q.weight).__name__ == "Int8Tensor"
    # Small enough as it is.
    assert {type(weight) for weight in pipe.text_encoder.parameters()} == {torch.nn.Parameter}
    assert len(fingerprint(modules_of(pipe.components))) == 16
    assert image(pipe, alignment=Guidance(guide=Guide("pathwise")), reward="brightness").isfinite().all()


def test_nf4_is_asked_for_by_component(tiny_folder, monkeypatch):
    """Whatever bitsandbytes makes of it, which needs a CUDA device."""
    monkeypatch.setattr("importlib.metadata.version", lambda name: "1.0")
    index = json.loads((tiny_folder / "model_index.json").read_text())
    config = quantization.quantization_config("nf4", index, "transformer", torch.bfloat16)
    assert set(config.quant_mapping) == {"transformer", "text_encoder_2"}
    for each in config.quant_mapping.values():
        assert (each.load_in_4bit, each.bnb_4bit_quant_type, each.bnb_4bit_compute_dtype) == (
            True,
            "nf4",
            torch.bfloat16,
        )


def test_a_record_tells_how_the_model_was_loaded_and_it_is_redrawn_so(tiny_folder, parts, redness_reward, tmp_path):
    out, lora = tmp_path / "out", f"fast={parts}/style.safetensors=0.5"
    model = ("--model", tiny_folder, "--reward", redness_reward, "--lora", lora, "--few-step", "false")
    succeed("generate", "a star", *model, "--alignment", "none", "--output", out)
    told = json.loads((out / "record.json").read_text())["settings"]["loading"]
    nothing = dict.fromkeys(("variant", "revision", "diamond_map", "preview_vae", "quantize"))
    assert told == {**nothing, "lora": [lora], "few_step": "false"}
    once = ("--methods", "plain", "--num-prompts", 1, "--budgets", 6)
    succeed("benchmark", *model, *once, "--output", out)
    (record,) = (out / "images" / "plain_6").glob("*.json")
    again = ("redraw", record, "--output", tmp_path / "again.png", "--device", "cpu")
    assert "bit for bit" in succeed(*again)
    assert "loading is {" in refusal("benchmark", *model[:4], *once, "--output", out)
    stored = json.loads(record.read_text())
    for change, sentence in (
        ({"lora": "x"}, "lora of settings.loading of '{record}' is 'x' in place of a list or null; take"),
        ({"luck": 1}, "settings.loading of '{record}' has 'luck', which is unknown; take the record as"),
    ):
        settings = {**stored["settings"], "loading": {**stored["settings"]["loading"], **change}}
        record.write_text(json.dumps({**stored, "settings": settings}))
        assert sentence.format(record=record) in refusal(*again)


def test_texts_of_a_file_join_the_arguments(tiny_folder, redness_reward, tmp_path):
    file, out = tmp_path / "prompts.txt", tmp_path / "out"
    file.write_text("a ring\n\ntwo stars\n")
    call = ("--model", tiny_folder, "--reward", redness_reward, "--num-inference-steps", 1, "--output", out)
    succeed("generate", "a star", "--prompts", file, *call, "--no-plain", "--num-particles", 2)
    record = json.loads((out / "record.json").read_text())
    assert [image["prompt"] for image in record["images"]] == ["a star", "a ring", "two stars"]
    assert set(record["cost"]) == {"aligned"} and not list(out.glob("plain_*"))
    assert (out / "contact_sheet.png").exists() and len(list(out.glob("aligned_*.png"))) == 3
    scored = ("score", *sorted(out.glob("aligned_*.png")), "--reward", redness_reward, "--format", "csv")
    rows = succeed(*scored, "--prompt", "a star", "--prompts", file).splitlines()
    assert [row.split(",")[1] for row in rows[1:]] == ["a star", "a ring", "two stars"]
    assert "--no-plain is given, but alignment 'none' draws plain images" in refusal(
        "generate", "a star", *call, "--alignment", "none", "--no-plain"
    )
    assert "PROMPT is not given, and neither is --prompts" in refusal("generate", *call)

"""Tiny random vision-language models of the real classes of transformers, saved as a user would download them."""

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

SPECIAL = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
WORDS = ["user", "assistant", "Does", "this", "figure", "show", "Please", "answer", "yes", "or", "no", ".", "?", '"']
WORDS += ["Yes", "No", "a", "red", "cat"]
IDS = {word: index for index, word in enumerate(["<pad>", "<unk>", *SPECIAL, *WORDS])}
"""The vocabulary of the Qwen models, whose scores existing tests know."""

FURTHER_SPECIAL = ["<bos>", "<image>", "<video>", "<img>", "</img>", "<fake_token_around_image>", "<global-img>"]
FURTHER_SPECIAL += ["<end_of_utterance>", "<think>", "</think>"]
FURTHER_WORDS = ["1", "2", "3", "4", "5", "10", "one", "two", "blue", "dog", "Is", "it", "How", "many", "cats", "are"]
FURTHER_WORDS += ["Choose", "from", ":", ",", "in", "word", "one", "Answer"]
ALL_IDS = dict(IDS)
for word in [*FURTHER_SPECIAL, *FURTHER_WORDS]:
    ALL_IDS.setdefault(word, len(ALL_IDS))

TEMPLATE = (
    "{% for message in messages %}<|im_start|> {{ message['role'] }} {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>{% endfor %}{% if add_generation_prompt %}<|im_start|> assistant{% endif %}"
)
TOWER = {"hidden_size": 32, "intermediate_size": 64}
DECODER = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}


def tokenizer(ids=IDS, special=SPECIAL, **named):
    words = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        unk_token="<unk>",
        additional_special_tokens=special,
        # An empty dictionary would take the others' place.
        **({"extra_special_tokens": named} if named else {}),
    )


def all_words(**named):
    """A tokeniser of all words, with named special tokens."""
    return tokenizer(ALL_IDS, [*SPECIAL, *FURTHER_SPECIAL], **named)


def decoder(**options):
    """The options of a tiny language model."""
    return TOWER | DECODER | {"vocab_size": len(ALL_IDS), "bos_token_id": None, "eos_token_id": 3} | options


def template(image, begin=""):
    """A chat template with an image written so."""
    return begin + TEMPLATE.replace("<|vision_start|><|image_pad|><|vision_end|>", image)


def qwen(config, model, processor, video, vision, patch, words=None):
    """A maker of models of the Qwen family."""

    def make():
        ids = IDS if words is None else ALL_IDS
        text = TOWER | DECODER | {"vocab_size": len(ids), "bos_token_id": None, "eos_token_id": IDS["<|im_end|>"]}
        text |= {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}}
        tower = vision | {"depth": 2, "num_heads": 2, "patch_size": patch}
        places = {"image": "<|image_pad|>", "video": "<|video_pad|>"}
        places |= {"vision_start": "<|vision_start|>", "vision_end": "<|vision_end|>"}
        made = getattr(transformers, config)(
            text_config=text,
            vision_config=tower,
            **{f"{place}_token_id": IDS[token] for place, token in places.items()},
        )
        images = transformers.Qwen2VLImageProcessor(
            size={"shortest_edge": 4096, "longest_edge": 16384}, patch_size=patch
        )
        spoken = tokenizer() if words is None else words()
        video_processor = getattr(transformers, video)()
        return (
            getattr(transformers, model)(made),
            getattr(transformers, processor)(images, spoken, video_processor, chat_template=TEMPLATE),
        )

    return make


QWEN_2_TOWER = {"embed_dim": 32, "hidden_size": 32, "mlp_ratio": 2}
QWEN_25_TOWER = TOWER | {"out_hidden_size": 32, "fullatt_block_indexes": [1]}
QWEN_3_TOWER = TOWER | {"out_hidden_size": 32, "deepstack_visual_indexes": [0], "num_position_embeddings": 16}


def internvl():
    vision = TOWER | {"num_hidden_layers": 2, "num_attention_heads": 2, "image_size": [28, 28], "patch_size": [7, 7]}
    config = transformers.InternVLConfig(
        text_config=decoder(model_type="qwen2"),
        vision_config=vision,
        image_token_id=ALL_IDS["<|image_pad|>"],
        image_seq_length=4,
    )
    spoken = all_words(
        start_image_token="<img>",
        end_image_token="</img>",
        context_image_token="<|image_pad|>",
        video_token="<video>",
    )
    images = transformers.GotOcr2ImageProcessor(size={"height": 28, "width": 28}, crop_to_patches=True, max_patches=4)
    processor = transformers.InternVLProcessor(
        images,
        spoken,
        transformers.InternVLVideoProcessor(),
        image_seq_length=4,
        chat_template=template("<|image_pad|>"),
    )
    return transformers.InternVLForConditionalGeneration(config), processor


def llava_onevision():
    pinpoints = [[28, 28], [28, 56], [56, 28], [56, 56]]
    vision = TOWER | {"num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28, "patch_size": 7}
    config = transformers.LlavaOnevisionConfig(
        text_config=decoder(model_type="qwen2"),
        vision_config=vision | {"model_type": "siglip_vision_model", "vision_use_head": False},
        image_token_index=ALL_IDS["<image>"],
        video_token_index=ALL_IDS["<video>"],
        image_grid_pinpoints=pinpoints,
    )
    processor = transformers.LlavaOnevisionProcessor(
        transformers.LlavaOnevisionImageProcessor(size={"height": 28, "width": 28}, image_grid_pinpoints=pinpoints),
        all_words(),
        transformers.LlavaOnevisionVideoProcessor(),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        chat_template=template("<image>"),
    )
    return transformers.LlavaOnevisionForConditionalGeneration(config), processor


def idefics(name):
    def make():
        vision = TOWER | {"num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28, "patch_size": 7}
        config = getattr(transformers, f"{name}Config")(
            text_config=decoder(model_type="llama"),
            vision_config=vision,
            image_token_id=ALL_IDS["<image>"],
            scale_factor=2,
            pad_token_id=0,
        )
        images = getattr(transformers, f"{name}ImageProcessor")(
            size={"longest_edge": 56}, max_image_size={"longest_edge": 28}
        )
        named = {"image_token": "<image>", "fake_image_token": "<fake_token_around_image>"}
        videos = []
        if name == "SmolVLM":
            from transformers.models.smolvlm import processing_smolvlm

            # It words the lengths of videos, for which its own processor asks, images or not.
            processing_smolvlm.num2words = processing_smolvlm.num2words or str
            videos = [transformers.SmolVLMVideoProcessor()]
        processor = getattr(transformers, f"{name}Processor")(
            images, all_words(**named), *videos, image_seq_len=4, chat_template=template("<image>")
        )
        return getattr(transformers, f"{name}ForConditionalGeneration")(config), processor

    return make


def gemma3():
    vision = TOWER | {"num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28, "patch_size": 7}
    config = transformers.Gemma3Config(
        text_config=decoder(sliding_window=8, layer_types=["sliding_attention", "full_attention"]),
        vision_config=vision | {"model_type": "siglip_vision_model"},
        mm_tokens_per_image=4,
        image_token_index=ALL_IDS["<image>"],
        boi_token_index=ALL_IDS["<img>"],
        eoi_token_index=ALL_IDS["</img>"],
    )
    spoken = all_words(boi_token="<img>", eoi_token="</img>", image_token="<image>")
    spoken.bos_token = "<bos>"
    # As the real one does, although its template writes the token, too.
    begin = [("<bos>", ALL_IDS["<bos>"])]
    spoken.backend_tokenizer.post_processor = processors.TemplateProcessing("<bos> $A", special_tokens=begin)
    images = transformers.Gemma3ImageProcessor(size={"height": 28, "width": 28})
    processor = transformers.Gemma3Processor(
        images, spoken, chat_template=template("<img>", "<bos>"), image_seq_length=4
    )
    return transformers.Gemma3ForConditionalGeneration(config), processor


def paligemma():
    vision = TOWER | {"num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28, "patch_size": 7}
    config = transformers.PaliGemmaConfig(
        text_config=decoder(model_type="gemma"),
        vision_config=vision | {"model_type": "siglip_vision_model", "projection_dim": 32, "vision_use_head": False},
        projection_dim=32,
        hidden_size=32,
        image_token_index=ALL_IDS["<image>"],
    )
    images = transformers.SiglipImageProcessor(size={"height": 28, "width": 28})
    images.image_seq_length = 16
    spoken = all_words(image_token="<image>")
    spoken.bos_token = "<bos>"
    return transformers.PaliGemmaForConditionalGeneration(config), transformers.PaliGemmaProcessor(images, spoken)


QWEN_2_5 = ("Qwen2_5_VLConfig", "Qwen2_5_VLForConditionalGeneration", "Qwen2_5_VLProcessor", "Qwen2VLVideoProcessor")
QWEN_3 = ("Qwen3VLConfig", "Qwen3VLForConditionalGeneration", "Qwen3VLProcessor", "Qwen3VLVideoProcessor")
QWEN_2 = ("Qwen2VLConfig", "Qwen2VLForConditionalGeneration", "Qwen2VLProcessor", "Qwen2VLVideoProcessor")
MAKERS = {
    "qwen2_vl": qwen(*QWEN_2, QWEN_2_TOWER, 14, all_words),
    "qwen2_5_vl": qwen(*QWEN_2_5, QWEN_25_TOWER, 14, all_words),
    "qwen3_vl": qwen(*QWEN_3, QWEN_3_TOWER, 16, all_words),
    "internvl": internvl,
    "llava_onevision": llava_onevision,
    "idefics3": idefics("Idefics3"),
    "smolvlm": idefics("SmolVLM"),
    "gemma3": gemma3,
    "paligemma": paligemma,
    # With the few words that the first tests of VQAScore know.
    "few_words_qwen2_5_vl": qwen(*QWEN_2_5, QWEN_25_TOWER, 14),
    "few_words_qwen3_vl": qwen(*QWEN_3, QWEN_3_TOWER, 16),
}


def save_tiny_model(kind, folder):
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        model, processor = MAKERS[kind]()
        for weight in model.parameters():
            # The default initialisation is so small that all images score alike.
            if weight.ndim >= 2:
                weight.normal_(0, 1.5 * weight[0].numel() ** -0.5)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)

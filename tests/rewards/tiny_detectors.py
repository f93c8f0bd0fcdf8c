"""Real detectors of transformers, tiny and random, as `save_pretrained` writes them, and one whose boxes are drawn."""

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    BertConfig,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    GroundingDinoImageProcessor,
    GroundingDinoProcessor,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    Mask2FormerImageProcessor,
    Owlv2Config,
    Owlv2ForObjectDetection,
    Owlv2ImageProcessor,
    Owlv2Processor,
    PreTrainedTokenizerFast,
    SwinConfig,
)

from diamond_diffusers.rewards.detection import Detector
from diamond_diffusers.rewards.detection.detectors import Detections

WORDS = ["a", "photo", "of", "red", "blue", "apple", "dog", "cat", "traffic", "light", "."]


def word_tokenizer(special, length):
    """Words as tokens, between the two special ones that are given after the padding and the unknown one."""
    ids = {word: index for index, word in enumerate([*special, *WORDS])}
    words = Tokenizer(models.WordLevel(ids, unk_token=special[1]))
    words.normalizer = normalizers.Lowercase()
    words.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    first, last = special[2:4]
    words.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}", special_tokens=[(first, ids[first]), (last, ids[last])]
    )
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token"), special, strict=False))
    return PreTrainedTokenizerFast(tokenizer_object=words, model_max_length=length, **names)


def lively(model):
    """With weights so large that scores differ from image to image."""
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim >= 2:
                weight.normal_(0, 1.5 * weight[0].numel() ** -0.5)
    return model


def save_owlv2(folder):
    tokenizer = word_tokenizer(["<pad>", "<unk>", "<s>", "</s>"], 8)
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {"vocab_size": len(tokenizer), "max_position_embeddings": 8}
    text |= {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
    vision = {"image_size": 48, "patch_size": 8}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = Owlv2Config(text_config=tower | text, vision_config=tower | vision, projection_dim=32)
        lively(Owlv2ForObjectDetection(config)).save_pretrained(folder)
    images = Owlv2ImageProcessor(size={"height": 48, "width": 48})
    Owlv2Processor(images, tokenizer).save_pretrained(folder)
    return folder


def swin(**stages):
    sizes = {"image_size": 64, "embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2], "window_size": 4}
    return SwinConfig(**sizes, **stages)


def save_grounding_dino(folder):
    tokenizer = word_tokenizer(["[PAD]", "[UNK]", "[CLS]", "[SEP]"], 64)
    text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = GroundingDinoConfig(
            backbone_config=swin(out_indices=[2, 3, 4]),
            text_config=BertConfig(vocab_size=len(tokenizer), max_position_embeddings=64, **text),
            num_queries=20,
            d_model=32,
            encoder_layers=1,
            decoder_layers=2,
            encoder_ffn_dim=32,
            decoder_ffn_dim=32,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            max_text_len=64,
        )
        lively(GroundingDinoForObjectDetection(config)).save_pretrained(folder)
    images = GroundingDinoImageProcessor(size={"shortest_edge": 96, "longest_edge": 128})
    GroundingDinoProcessor(images, tokenizer).save_pretrained(folder)
    return folder


def save_mask2former(folder, classes=("person", "dog", "cat"), edge=64):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = Mask2FormerConfig(
            backbone_config=swin(out_features=["stage1", "stage2", "stage3", "stage4"]),
            feature_size=32,
            mask_feature_size=32,
            hidden_dim=32,
            encoder_feedforward_dim=32,
            dim_feedforward=32,
            encoder_layers=1,
            decoder_layers=2,
            num_attention_heads=2,
            num_queries=10,
            id2label=dict(enumerate(classes)),
        )
        lively(Mask2FormerForUniversalSegmentation(config)).save_pretrained(folder)
    size = {"shortest_edge": edge, "longest_edge": 2 * edge}
    Mask2FormerImageProcessor(size=size, num_labels=len(classes)).save_pretrained(folder)
    return folder


class Drawn(Detector):
    """Finds boxes that were drawn: of each phrase, corners and confidences; the same in all images."""

    architecture, threshold, template = "drawn", 0.5, "{}"
    differentiable = True

    def __init__(self, **boxes):
        self.boxes = {name.replace("_", " "): found for name, found in boxes.items()}
        self.model = torch.nn.Identity()
        self.asked = []

    def detect(self, images, phrases):
        self.asked.append(list(phrases))
        every = [(phrase, *each) for phrase in phrases for each in self.boxes.get(phrase, [])] or [
            ("", (0, 0, 1, 1), 0)
        ]
        scores = torch.tensor([[confidence * (name == phrase) for phrase in phrases] for name, _, confidence in every])
        boxes = torch.tensor([corners for _, corners, _ in every], dtype=torch.float32)
        # A bright image is seen a little more clearly.
        return [Detections(scores * (0.9 + 0.1 * image.mean()), boxes) for image in images]

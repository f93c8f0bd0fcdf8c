"""Word-level tokenizers of the miniature world, one in CLIP's layout and one in T5's."""

from __future__ import annotations

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from .grammar import vocabulary

MAX_LENGTH = 16

PAD, UNKNOWN, END, BEGIN = "<pad>", "<unk>", "</s>", "<s>"

# A CLIP text model whose `eos_token_id` is 2 pools at the largest id instead of at the end of the text.
CLIP_SPECIAL_TOKENS = (PAD, BEGIN, UNKNOWN, END)
T5_SPECIAL_TOKENS = (PAD, END, UNKNOWN)


def clip_tokenizer() -> PreTrainedTokenizerFast:
    """The words of the grammar between `<s>` (id 1) and `</s>` (id 3); `<pad>` is 0, `<unk>` 2."""
    words = _word_level(CLIP_SPECIAL_TOKENS)
    begin, end = CLIP_SPECIAL_TOKENS.index(BEGIN), CLIP_SPECIAL_TOKENS.index(END)
    words.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A {END}", special_tokens=[(BEGIN, begin), (END, end)]
    )
    return _wrap(words, bos_token=BEGIN)


def t5_tokenizer() -> PreTrainedTokenizerFast:
    """The words of the grammar with `</s>` (id 1) appended; `<pad>` is 0, `<unk>` 2."""
    words = _word_level(T5_SPECIAL_TOKENS)
    words.post_processor = processors.TemplateProcessing(
        single=f"$A {END}", special_tokens=[(END, T5_SPECIAL_TOKENS.index(END))]
    )
    return _wrap(words)


def _word_level(special_tokens: tuple[str, ...]) -> Tokenizer:
    ids = {word: index for index, word in enumerate([*special_tokens, *vocabulary()])}
    words = Tokenizer(models.WordLevel(ids, unk_token=UNKNOWN))
    words.normalizer = normalizers.Lowercase()
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return words


def _wrap(words: Tokenizer, **special_tokens: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token=PAD,
        unk_token=UNKNOWN,
        eos_token=END,
        model_max_length=MAX_LENGTH,
        padding_side="right",
        model_input_names=["input_ids", "attention_mask"],
        **special_tokens,
    )

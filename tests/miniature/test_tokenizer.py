"""Tokenizers: ids, padding, and pooling at the end of the text, also after a reload in a new process."""

import json
import subprocess
import sys

import pytest
import torch
from transformers import AutoTokenizer, CLIPTextModel

from benchmarks.miniature.train_clip import build_clip
from diamond_diffusers.miniature.grammar import CATEGORIES, all_captions, vocabulary
from diamond_diffusers.miniature.tokenizer import MAX_LENGTH, clip_tokenizer, t5_tokenizer

TEXTS = ["three red circles", "a purple star left of a blue cross", "a zebra"]

RELOAD = """
import json, sys, torch
from transformers import AutoTokenizer, CLIPTextModel
folder, texts = sys.argv[1], json.loads(sys.argv[2])
tokens = AutoTokenizer.from_pretrained(folder)(texts, padding="max_length", return_tensors="pt")
pooled = CLIPTextModel.from_pretrained(folder)(**tokens).pooler_output
print(json.dumps({"ids": tokens.input_ids.tolist(), "pooled": pooled.tolist()}))
"""


def word_id(word: str, num_special: int) -> int:
    return num_special + vocabulary().index(word)


def test_clip_ids_stand_between_begin_and_end():
    tokenizer = clip_tokenizer()
    ids = tokenizer(TEXTS[0]).input_ids
    assert ids == [1, *(word_id(word, 4) for word in TEXTS[0].split()), 3]
    assert tokenizer("a zebra").input_ids == [1, word_id("a", 4), tokenizer.unk_token_id, 3]
    assert tokenizer.convert_tokens_to_ids(["<pad>", "<s>", "<unk>", "</s>"]) == [0, 1, 2, 3]
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 3)


def test_t5_ids_close_with_the_end():
    tokenizer = t5_tokenizer()
    assert tokenizer(TEXTS[0]).input_ids == [*(word_id(word, 3) for word in TEXTS[0].split()), 1]
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (0, 1, 2)


@pytest.mark.parametrize("build", [clip_tokenizer, t5_tokenizer])
def test_every_caption_is_known_and_fits(build):
    tokenizer = build()
    texts = [caption.text for category in CATEGORIES for caption in all_captions(category)]
    tokens = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt")
    assert tokens.input_ids.shape == (len(texts), MAX_LENGTH)
    assert not (tokens.input_ids == tokenizer.unk_token_id).any()
    assert ((tokens.input_ids == tokenizer.eos_token_id).sum(1) == 1).all()
    torch.testing.assert_close(tokens.attention_mask.bool(), tokens.input_ids != tokenizer.pad_token_id)
    assert tokenizer("A RED  circle").input_ids == tokenizer("a red circle").input_ids


@pytest.mark.parametrize("build", [clip_tokenizer, t5_tokenizer])
def test_ids_survive_saving(build, tmp_path):
    tokenizer = build()
    tokenizer.save_pretrained(tmp_path)
    reloaded = AutoTokenizer.from_pretrained(tmp_path)
    assert reloaded(TEXTS).input_ids == tokenizer(TEXTS).input_ids
    assert reloaded.model_max_length == MAX_LENGTH


def in_this_process(folder):
    tokens = AutoTokenizer.from_pretrained(folder)(TEXTS, padding="max_length", return_tensors="pt")
    with torch.no_grad():
        return tokens.input_ids, CLIPTextModel.from_pretrained(folder)(**tokens).pooler_output


def in_a_new_process(folder):
    command = [sys.executable, "-c", RELOAD, str(folder), json.dumps(TEXTS)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    reloaded = json.loads(output.strip().splitlines()[-1])
    return torch.tensor(reloaded["ids"]), torch.tensor(reloaded["pooled"])


@pytest.mark.parametrize("reload", [in_this_process, pytest.param(in_a_new_process, marks=pytest.mark.slow)])
def test_pooling_reads_the_end_of_the_text_after_a_reload(reload, tmp_path):
    torch.manual_seed(0)
    clip, tokenizer = build_clip().eval(), clip_tokenizer()
    text_model = CLIPTextModel(clip.config.text_config).eval()
    text_model.load_state_dict(clip.text_model.state_dict())
    text_model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    tokens = tokenizer(TEXTS, padding="max_length", return_tensors="pt")
    with torch.no_grad():
        states = text_model(**tokens).last_hidden_state
    ends = tokens.attention_mask.sum(1) - 1
    ids, pooled = reload(tmp_path)
    assert torch.equal(ids, tokens.input_ids)
    torch.testing.assert_close(pooled, states[torch.arange(len(TEXTS)), ends])

"""Answers as tokens: the ways in which a model may write one, and how likely it is to begin with one of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from .model import Asked, Logits, Tokens

Answer: TypeAlias = str | Sequence[str]
"""A text, or several that mean the same."""

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def surface_forms(answer: str) -> tuple[str, ...]:
    """The ways in which a model may write a short answer: in small letters or capitalised, after a space or not.

    A number of up to ten may be a word or a figure.

    Example:
        >>> surface_forms("yes")
        ('yes', 'Yes', ' yes', ' Yes')
        >>> surface_forms("two")
        ('two', 'Two', '2', ' two', ' Two', ' 2')
    """
    text = answer.strip()
    ways = [text, text.lower(), text[:1].upper() + text[1:]]
    if text.lower() in NUMBERS:
        ways.append(str(NUMBERS.index(text.lower())))
    elif text in map(str, range(len(NUMBERS))):
        word = NUMBERS[int(text)]
        ways += [word, word.capitalize()]
    return tuple(dict.fromkeys([*ways, *(f" {way}" for way in ways)]))


def _tokens(tokenizer: Any, text: str) -> Tokens:
    """A text without the tokens that begin or end one."""
    # By itself, a fast tokeniser would turn off the padding that another thread is about to use.
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return tuple(tokenizer.encode(text, add_special_tokens=False))
    return tuple(backend.encode(text, add_special_tokens=False).ids)


def single_token(name: str, tokenizer: Any, answer: str) -> int:
    """The token that an answer of the reward `name` is.

    Raises:
        ValueError: it is several tokens, or none that the tokeniser knows.
    """
    ids = _tokens(tokenizer, answer)
    if len(ids) != 1 or ids[0] == tokenizer.unk_token_id:
        raise ValueError(
            f"Reward '{name}' got answer={answer!r}, which is {len(ids)} tokens or an unknown one of this model; "
            "give a word that is one token, such as 'Yes'."
        )
    return ids[0]


def answer_tokens(name: str, tokenizer: Any, answer: Answer) -> list[Tokens]:
    """The token sequences that an answer may begin with, none of which begins with another.

    Forms that the tokeniser does not know are left out, and so are those whose first token is white space alone, with
    which no answer begins; unless there is no other.

    Raises:
        ValueError: no form of the answer is known to the tokeniser.
    """
    forms = [answer] if isinstance(answer, str) else list(answer)
    known: dict[Tokens, bool] = {}
    for form in forms:
        ids = _tokens(tokenizer, form)
        if ids and tokenizer.unk_token_id not in ids:
            known.setdefault(ids, bool(tokenizer.decode([ids[0]]).strip()))
    words = [ids for ids, begins_with_word in known.items() if begins_with_word] or list(known)
    if not words:
        raise ValueError(
            f"Reward '{name}' got the answer {answer!r}, which this model's tokeniser cannot write; give another."
        )
    return [ids for ids in words if not any(ids != other and ids[: len(other)] == other for other in words)]


class AnswerRows:
    """The rows in which answers to questions about images are read, and the places where each token stands.

    Args:
        images: for each pair, the row of its image.
        questions: one for each pair.
        forms: for each pair, the token sequences of its answer.

    Attributes:
        asked: the distinct rows, in the order of the pairs.
    """

    def __init__(self, images: Sequence[int], questions: Sequence[str], forms: Sequence[Sequence[Tokens]]) -> None:
        self.forms = forms
        needed: dict[tuple[int, str], dict[Tokens, None]] = {}
        for image, question, answer in zip(images, questions, forms, strict=True):
            begun = needed.setdefault((image, question), {})
            begun.update(dict.fromkeys(form[:-1] for form in answer))
        rows: dict[Asked, int] = {}
        reading: dict[tuple[int, str, Tokens], int] = {}
        for (image, question), begun in needed.items():
            longest_first = sorted(begun, key=len, reverse=True)
            for tokens in longest_first:
                # What follows the first tokens of a longer beginning is read on the way.
                key = (image, question, tokens)
                if key not in reading:
                    reading[key] = rows.setdefault(Asked(*key), len(rows))
                    for end in range(len(tokens)):
                        reading.setdefault((image, question, tokens[:end]), reading[key])
        self.asked = list(rows)
        pairs = zip(images, questions, forms, strict=True)
        self._row_of = [[reading[(image, question, form[:-1])] for form in answer] for image, question, answer in pairs]

    def log_probabilities(self, found: Iterable[tuple[range, Logits]]) -> Tensor:
        """The logarithm of the probability of each pair's answer, `[P]`, float32.

        Args:
            found: what the model says next in some of the rows, until all rows have had their turn.
        """
        wanted = [
            (row, depth, token)
            for answer, rows in zip(self.forms, self._row_of, strict=True)
            for form, row in zip(answer, rows, strict=True)
            for depth, token in enumerate(form)
        ]
        order: list[int] = []
        parts: list[Tensor] = []
        for rows, logits in found:
            here = [index for index, (row, _, _) in enumerate(wanted) if row in rows]
            local = [(wanted[index][0] - rows.start, *wanted[index][1:]) for index in here]
            places = [(row, logits.places[row][depth], token) for row, depth, token in local]
            row, place, token = torch.tensor(places, device=logits.values.device).T
            parts.append(logits.values[row, place, token] - logits.values.logsumexp(-1)[row, place])
            order += here
        tokens = torch.cat(parts)
        if order != list(range(len(order))):
            tokens = tokens[torch.tensor(order, device=tokens.device).argsort()]
        lengths = [len(form) for answer in self.forms for form in answer]
        forms = pad_sequence(tokens.split(lengths), batch_first=True).sum(1)
        padded = pad_sequence(
            forms.split([len(answer) for answer in self.forms]), batch_first=True, padding_value=-torch.inf
        )
        return padded.logsumexp(1)

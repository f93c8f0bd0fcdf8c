"""The noun phrases of a prompt, and its words without adjectives, by spaCy."""

from __future__ import annotations

from functools import cached_property
from typing import Any, Protocol

PIPELINE = "en_core_web_sm"
LEFT_OUT = ("top", "the side", "the left", "the right")
"""Phrases that name a place rather than a thing."""


class Parser(Protocol):
    """What T2I-CompBench needs to know of the grammar of a prompt."""

    def noun_phrases(self, text: str) -> list[str]:
        """The noun phrases, but for those that name a place."""

    def without_adjectives(self, text: str) -> str:
        """The words, but for adjectives, with one space between them."""


class SpacyParser:
    """spaCy's small pipeline for English, which T2I-CompBench uses; it is loaded when it is first needed.

    Raises:
        ImportError: spaCy or its pipeline is not installed.
    """

    def __init__(self) -> None:
        try:
            import spacy

            if not spacy.util.is_package(PIPELINE):
                raise ImportError(f"the pipeline {PIPELINE} is not installed")
        except ImportError as error:
            raise ImportError(
                f"suite 't2i_compbench' splits prompts with spaCy ({error}); install it by "
                f"`pip install diamond-diffusers[suites-t2i-compbench]` and `python -m spacy download {PIPELINE}`, or "
                "give prompts with noun_phrases in their metadata"
            ) from error

    @cached_property
    def _pipeline(self) -> Any:
        import spacy

        return spacy.load(PIPELINE)

    def noun_phrases(self, text: str) -> list[str]:
        return [chunk.text for chunk in self._pipeline(text).noun_chunks if chunk.text not in LEFT_OUT]

    def without_adjectives(self, text: str) -> str:
        return " ".join(token.text for token in self._pipeline(text) if token.pos_ != "ADJ")

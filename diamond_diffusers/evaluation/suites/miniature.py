"""The judge of the embedded model's small world, as a suite."""

from __future__ import annotations

from collections.abc import Sequence

from PIL.Image import Image

from ...miniature.grammar import parse_caption
from ...miniature.judge import judge
from ...rewards.preprocessing import images_from_pil
from ..benchmark.prompts import Prompt
from . import register_suite
from .answering import one_prompt_each
from .base import SuiteJudge, Verdict


@register_suite("miniature")
class MiniatureJudge(SuiteJudge):
    """Judges images of the miniature's captions from their pixels, as `diamond-diffusers benchmark` does."""

    name = "miniature"
    source = "this package"
    licence = "Apache-2.0"

    @classmethod
    def check(cls, prompts: Sequence[Prompt]) -> None:
        for prompt in prompts:
            parse_caption(prompt.text)

    def judge(self, images: Sequence[Image], prompts: Sequence[Prompt]) -> list[Verdict]:
        found = [
            judge(images_from_pil([image]), [prompt.text]).item() for image, prompt in one_prompt_each(images, prompts)
        ]
        return [Verdict(float(is_right), "" if is_right else "not what the caption says") for is_right in found]

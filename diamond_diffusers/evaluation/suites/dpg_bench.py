"""DPG-Bench: long prompts, with questions that build on each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..benchmark.prompts import Prompt
from . import register_suite
from .base import Verdict
from .dsg import DSGJudge, answers_by_kind


@register_suite("dpg_bench")
class DPGBenchJudge(DSGJudge):
    """Judges by DSG's rule, but that a question which does not count makes those that build on it not count in turn.

    As in the published program, this holds for questions that come later in the file. Reported beside the score are the
    shares of yes by kind of question, before parents are looked at. The published scores are those of mPLUG-large's
    answers; name the model with the scores of any other.

    Args:
        vlm: what answers: a checkpoint, or an object that judges (`rewards.vision_language.judge.Judge`); yes is the
            answer where it is likelier than no.
        device: device of a checkpoint's model.
        dtype: dtype of a checkpoint's model; by default its own.

    Source: Hu et al. 2024, "ELLA: Equip Diffusion Models with LLM for Enhanced Semantic Alignment".
    """

    name = "dpg_bench"
    source = "Hu et al. 2024, arXiv:2403.05135"
    licence = "Apache-2.0"
    prompts = "dpg_bench"
    is_transitive = True

    @classmethod
    def parts(cls, prompt: Prompt, verdict: Verdict) -> Mapping[str, Sequence[float]]:
        """The answers by kind of question."""
        return answers_by_kind(prompt, verdict)

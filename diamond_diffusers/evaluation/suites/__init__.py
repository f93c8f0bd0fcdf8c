"""Published benchmarks of text-to-image models: their prompts, and the rules that judge images; one file each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...core.registry import Registry

if TYPE_CHECKING:
    from .base import SuiteJudge

SUITES: Registry[type[SuiteJudge]] = Registry(
    "suite",
    "suites",
    __name__,
    helpers=("answering", "base", "blip", "compbench_spatial_rules", "geneval_rules", "noun_phrases"),
    aliases={"dpg": "dpg_bench", "geneval-2": "geneval2", "dpg-bench": "dpg_bench", "t2i-compbench": "t2i_compbench"},
    base="diamond_diffusers.evaluation.suites.base:SuiteJudge",
)

register_suite = SUITES.register
"""The decorator that makes a class of your own known by a name, such as `@register_suite("mine")`."""

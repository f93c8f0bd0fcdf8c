"""The instruction that HPSv3 was trained with, as text, from the package that it was published in."""

from __future__ import annotations

import ast
from importlib.util import find_spec
from pathlib import Path

MODULE = "dataset/data_collator_qwen.py"
QUESTION, ENDING = "INSTRUCTION", "prompt_with_special_token"
PLACEHOLDER = "{text_prompt}"


def published_instruction() -> str:
    """The text of one request, with `{text_prompt}` in the prompt's place.

    It is read from the file of the package `hpsv3` that holds it; nothing of the package is run.

    Raises:
        ImportError: the package is not installed, or the text is not where version 1.0 has it.
    """
    spec = find_spec("hpsv3")
    folders = None if spec is None else spec.submodule_search_locations
    for folder in folders or ():
        path = Path(folder) / MODULE
        if path.is_file():
            texts = _constants(path.read_text(encoding="utf-8"))
            if QUESTION in texts and ENDING in texts:
                return texts[QUESTION] + texts[ENDING]
            raise ImportError(f"'{path}' has no {QUESTION} and {ENDING}")
    raise ModuleNotFoundError("No module named 'hpsv3'")


def _constants(source: str) -> dict[str, str]:
    """The strings that a module assigns to names."""
    return {
        statement.targets[0].id: statement.value.value
        for statement in ast.parse(source).body
        if isinstance(statement, ast.Assign)
        and isinstance(statement.targets[0], ast.Name)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    }

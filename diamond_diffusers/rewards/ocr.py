"""The text in the image against the text that the prompt quotes."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence

import numpy
import torch
from numpy.typing import NDArray
from PIL.Image import Image
from torch import Tensor

from .base import Reward
from .optional_packages import optional_package
from .preprocessing import images_to_pil
from .quoted_text import normalised, quoted_parts, text_score
from .registry import register_reward

LONGEST = 16
"""How many times longer than wide an image is read: narrow ones are enlarged until they exceed all memory."""


@register_reward("ocr")
class OCRReward(Reward):
    """How much of the text that the prompt puts in quotation marks can be read in the image, from 0 to 1.

    RapidOCR reads the image (PP-OCRv4 on onnxruntime, on the CPU; English and Chinese, at any angle). What it reads is
    compared as Flow-GRPO's OCR reward does it: in lower case and without white space, 1 where the wanted text is part
    of what was read, and otherwise `1 - min(edit distance, length) / length` with the length of the wanted text. Where
    the prompt quotes several texts they may stand in any order; see `quoted_text.text_score`.

    The reward has no gradient. Images are read one after another, in about a quarter of a second of one core each.

    Args:
        text: what is to be read, one text or several, whatever the prompt; None for what the prompt quotes.
        without_text: the score of images whose prompt quotes nothing; None refuses such prompts.
        min_confidence: lines that RapidOCR is less sure of are left out, from 0 to 1. By default none is, as in
            Flow-GRPO, so that half-formed letters count.
        num_threads: of each reading; None for as many as torch uses.
        name: name under which the scores are reported.

    Raises:
        ImportError: `rapidocr_onnxruntime` is not installed.
        ValueError: an argument is out of range, or `text` is empty; in scoring, a prompt quotes no text.

    Source: Liu et al. 2025, "Flow-GRPO: Training Flow Matching Models via Online RL", section 5.1 and `ocr.py` of its
    code.
    """

    differentiable = False
    licence = "Apache-2.0"
    default_reward_scale = 10.0
    source = "Liu et al. 2025, arXiv:2505.05470"
    requires = ("rapidocr_onnxruntime",)

    def __init__(
        self,
        text: str | Sequence[str] | None = None,
        *,
        without_text: float | None = None,
        min_confidence: float = 0.0,
        num_threads: int | None = None,
        name: str = "ocr",
    ) -> None:
        parts = [text] if isinstance(text, str) else text
        if parts is not None and not any(normalised(part) for part in parts):
            raise ValueError(f"Reward '{name}' got text={text!r}, which holds no character; give what is to be read.")
        if not 0 <= min_confidence <= 1:
            raise ValueError(f"Reward '{name}' got min_confidence={min_confidence}; give a number from 0 to 1.")
        if num_threads is not None and num_threads < 1:
            raise ValueError(f"Reward '{name}' got num_threads={num_threads}; give at least 1, or None.")
        self.name = name
        self.parts = None if parts is None else [part for part in parts if normalised(part)]
        self.without_text = without_text
        self.reads_prompts = parts is None
        package = optional_package(name, *self.requires, "rewards-ocr", note=" under a Python below 3.13")
        # RapidOCR takes as many threads as there are cores where it is asked for more.
        threads = min(num_threads or torch.get_num_threads(), os.cpu_count() or 1)
        self.reader = package.RapidOCR(text_score=min_confidence, intra_op_num_threads=threads, inter_op_num_threads=1)
        # It keeps what it prepares an image by as an attribute while it reads that.
        self._lock = threading.Lock()

    def check_prompts(self, prompts: Sequence[str]) -> None:
        """See `Reward.check_prompts`: a prompt has to quote what is to be read."""
        for prompt in prompts:
            self._wanted(prompt)

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores `[B]` of images `[B, 3, H, W]` in [0, 1]."""
        wanted = [self._wanted(prompt) for prompt in prompts]
        scores = [
            # Where there is nothing to be read, a prompt has got this far by `without_text`.
            text_score(parts, self.read(image)) if parts else self.without_text
            for parts, image in zip(wanted, images_to_pil(images), strict=True)
        ]
        return torch.tensor(scores)

    def read(self, image: Image) -> str:
        """The text in an RGB image, line after line from top to bottom; empty where there is none."""
        # Its arrays are in the channels' order of OpenCV.
        pixels = numpy.ascontiguousarray(_widened(numpy.asarray(image))[..., ::-1])
        with self._lock:
            lines, _ = self.reader(pixels)
        return "\n".join(text for _, text, _ in lines or [])

    def _wanted(self, prompt: str) -> list[str]:
        parts = self.parts or [part for part in quoted_parts(prompt) if normalised(part)]
        if not parts and self.without_text is None:
            raise ValueError(
                f"Reward '{self.name}' got the prompt {prompt!r}, which quotes no text; put what is to be read in "
                "quotation marks, or construct OCRReward(text=...) or OCRReward(without_text=0.0) in Python."
            )
        return parts


def _widened(pixels: NDArray[numpy.uint8]) -> NDArray[numpy.uint8]:
    """The pixels `[H, W, 3]`, with black ones on the right or below where the image is longer than `LONGEST` allows."""
    height, width = pixels.shape[:2]
    least = -(-max(height, width) // LONGEST)
    return numpy.pad(pixels, ((0, max(0, least - height)), (0, max(0, least - width)), (0, 0)))

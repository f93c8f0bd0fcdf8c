"""VQAScore: the probability with which a vision-language model affirms that the image shows its prompt."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import Any, Unpack

from torch import Tensor

from .registry import register_reward
from .vision_language.answers import single_token
from .vision_language.judge import CHECKPOINT, JudgeOptions, VisionLanguageJudge
from .vision_language.judged_reward import JudgedReward

QUESTION = 'Does this figure show "{}"? Please answer yes or no.'


@register_reward("vqascore")
class VQAScoreReward(JudgedReward):
    """Probability that a vision-language model's answer to "Does this figure show the prompt?" starts with "Yes".

    The model may be any transformers image-text-to-text model that answers at once (an "instruct", not a "thinking"
    model). Scores are differentiable to the pixels if the model's image processor works on tensors, as those of
    Qwen2.5-VL, Qwen3-VL and most others do; the attribute `differentiable` tells. The scores are those of 8-bit images
    in the stock processor, and the gradient passes its rounding as if it were not there.

    Args:
        checkpoint: a name on the Hub or a local folder, with weights in safetensors and a chat template.
        question: a text with `{}` in the prompt's place.
        answer: one token of the model's vocabulary.
        options: further options of `VisionLanguageJudge`; `name` is that under which the scores are reported.

    Raises:
        ImportError: the package that quantises is not installed.
        OSError: the checkpoint cannot be found or read.
        TypeError: an option is unknown.
        ValueError: the checkpoint is no such model, or `question`, `answer` or an option is malformed.

    Source: Lin et al. 2024, "Evaluating Text-to-Visual Generation with Image-to-Text Generation", equation 1.
    """

    source = "Lin et al. 2024, arXiv:2404.01291"
    default_reward_scale = 10.0
    judge: VisionLanguageJudge

    def __init__(
        self,
        checkpoint: str | PathLike[str] = CHECKPOINT,
        *,
        question: str = QUESTION,
        answer: str = "Yes",
        **options: Unpack[JudgeOptions],
    ) -> None:
        name = options.get("name", "vqascore")
        if "{}" not in question:
            raise ValueError(f"Reward '{name}' got question={question!r}; put {{}} in the prompt's place.")
        super().__init__(checkpoint, "vqascore", **options)
        self.max_batch_size = options.get("max_batch_size")
        self.question = question
        single_token(name, self.processor.tokenizer, answer)
        self.answer = answer

    @property
    def model(self) -> Any:
        """The model of transformers."""
        return self.judge.model

    @property
    def processor(self) -> Any:
        """Its processor."""
        return self.judge.processor

    def check_prompts(self, prompts: Sequence[str]) -> None:
        """See `Reward.check_prompts`: a prompt must not hold a token that stands for an image."""
        self.check_questions(self._questions(prompts))

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Probabilities `[B]` of images `[B, 3, H, W]` in [0, 1] and `B` prompts."""
        return self.judge.probabilities(images, self._questions(prompts), [self.answer] * len(prompts))

    def _questions(self, prompts: Sequence[str]) -> list[str]:
        return [self.question.replace("{}", prompt) for prompt in prompts]

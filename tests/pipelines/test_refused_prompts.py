"""Prompts that a reward cannot score images of are refused before anything is sampled."""

import pytest
import torch

from diamond_diffusers.rewards import Brightness, Reward


class Quotes(Reward):
    """Scores prompts with a quotation alone."""

    name = "quotes"
    seen = 0

    def check_prompts(self, prompts):
        for prompt in prompts:
            if '"' not in prompt:
                raise ValueError(f"Reward 'quotes' got the prompt {prompt!r}, which quotes nothing; quote something.")

    def score(self, images, prompts):
        type(self).seen += 1
        return images.mean((1, 2, 3))


@pytest.mark.parametrize(
    "reward",
    [
        Quotes(),
        2 * Quotes() + Brightness(),
        Brightness() + (Quotes() < 0.9),
        [Brightness(), Quotes()],
    ],
    ids=["alone", "in a sum", "in a constraint", "of the second prompt"],
)
def test_a_later_prompt_is_refused_before_the_first_is_sampled(shared_pipe, reward):
    Quotes.seen = 0
    with pytest.raises(ValueError, match="got the prompt 'a blue ring', which quotes nothing"):
        shared_pipe(['a red "star"', "a blue ring"], reward=reward, alignment="best_of_n", num_inference_steps=1)
    assert Quotes.seen == 0


def test_each_prompt_is_asked_of_its_own_reward(shared_pipe):
    out = shared_pipe(
        ['a red "star"', "a blue ring"],
        reward=[Quotes(), Brightness()],
        alignment="best_of_n",
        num_inference_steps=1,
        output_type="pt",
        generator=torch.Generator().manual_seed(0),
    )
    assert out.images.shape[0] == 2

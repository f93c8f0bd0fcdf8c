"""Images that a vision-language model grades: start `vllm serve Qwen/Qwen2.5-VL-7B-Instruct` first."""

from diamond_diffusers import BestOfN, DiamondMapPipeline
from diamond_diffusers.rewards import RemoteReward
from diamond_diffusers.rewards.remote import ChatCompletions, ExpectedGrade

RUBRIC = 'Rate from 1 to 5 how well this image shows "{}". Answer with the number alone.'


def draw(url: str = "http://localhost:8000/v1", model: str = "Qwen/Qwen2.5-VL-7B-Instruct") -> None:
    pipe = DiamondMapPipeline.from_pretrained()
    # Of a service that asks for a key: api_key_env="OPENAI_API_KEY".
    with RemoteReward(url, ChatCompletions(model, RUBRIC, ExpectedGrade(1, 5)), name="rubric") as judge:
        out = pipe(
            "a red star left of a blue ring", reward=judge, alignment=BestOfN(num_particles=4), num_inference_steps=6
        )
    out.images[0].save("star.png")
    print(out.rewards, judge.usage)


if __name__ == "__main__":
    draw()

import pytest
import torch
from torchvision.transforms.functional import to_pil_image
from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor

from diamond_diffusers.rewards import QuestionListReward, RubricReward, VQAScoreReward

from .vision_language_models import IDS, save_tiny_model

PROMPTS = ["a cat", "a red cat", "red"]
MODELS = ["qwen2_5_vl", "qwen3_vl"]


@pytest.fixture(scope="module", params=MODELS)
def folder(request, tmp_path_factory):
    path = tmp_path_factory.mktemp(request.param)
    save_tiny_model(f"few_words_{request.param}", path)
    return path


@pytest.fixture
def pictures():
    """Three 8-bit images of a size that has to be resized."""
    noise = torch.rand(3, 3, 90, 70, generator=torch.Generator().manual_seed(0))
    return (noise * 255).round() / 255


def stock_scores(folder, pictures, prompts):
    """One by one, from PIL images, by the first token that `generate` would draw."""
    model, processor = AutoModelForImageTextToText.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    scores = []
    for picture, prompt in zip(pictures, prompts, strict=True):
        question = f'Does this figure show "{prompt}"? Please answer yes or no.'
        content = [{"type": "image"}, {"type": "text", "text": question}]
        text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        inputs = processor(text=[text], images=[to_pil_image(picture)], return_tensors="pt")
        drawn = model.generate(
            **inputs, max_new_tokens=1, do_sample=False, output_scores=True, return_dict_in_generate=True
        )
        scores.append(drawn.scores[0].softmax(-1)[0, IDS["Yes"]])
    return torch.stack(scores)


def test_is_the_stock_model_s_probability_of_yes(folder, pictures):
    """Prompts of different lengths share a batch, so padding must not matter."""
    expected = stock_scores(folder, pictures, PROMPTS)
    reward = VQAScoreReward(folder)
    assert reward.differentiable
    assert expected.std() > 1e-3
    torch.testing.assert_close(reward(pictures, PROMPTS), expected, rtol=1e-4, atol=1e-6)


def test_gradients(folder):
    """Against differences by whole 8-bit levels, which the scores see exactly where no resizing rounds them again."""
    reward = VQAScoreReward(folder)
    patch = reward.processor.image_processor.patch_size
    generator = torch.Generator().manual_seed(0)
    levels = torch.randint(10, 240, (2, 3, 6 * patch, 4 * patch), generator=generator)
    images = (levels / 255).requires_grad_()
    (gradient,) = torch.autograd.grad(reward(images, PROMPTS[:2]).log().sum(), images)
    step = torch.randint(0, 2, levels.shape, generator=generator) * 2.0 - 1
    ends = [reward((levels + sign * step) / 255, PROMPTS[:2]).log().sum() for sign in (1, -1)]
    torch.testing.assert_close((gradient * step).sum() / 255, (ends[0] - ends[1]) / 2, rtol=0.05, atol=0)


def test_asking_for_gradients_changes_no_score(folder, pictures):
    reward = VQAScoreReward(folder)
    scores = reward(pictures.clone().requires_grad_(), PROMPTS)
    torch.testing.assert_close(scores.detach(), reward(pictures, PROMPTS))


def test_gradient_checkpointing(folder, pictures):
    rewards = VQAScoreReward(folder), VQAScoreReward(folder, gradient_checkpointing=True)
    images = pictures.clone().requires_grad_()
    gradients = [torch.autograd.grad(reward(images, PROMPTS).sum(), images)[0] for reward in rewards]
    torch.testing.assert_close(*gradients)


def test_a_processor_on_pil_images_makes_a_black_box(folder, pictures, monkeypatch):
    load = AutoProcessor.from_pretrained

    def load_with_pil(*arguments, **options):
        processor = load(*arguments, **options)
        processor.image_processor = AutoImageProcessor.from_pretrained(*arguments, **options, backend="pil")
        return processor

    monkeypatch.setattr(AutoProcessor, "from_pretrained", load_with_pil)
    reward = VQAScoreReward(folder)
    assert not reward.differentiable
    with pytest.raises(ValueError, match="'vqascore' gives no gradients to the pixels; choose an alignment"):
        reward.probe(needs_gradient=True)
    torch.testing.assert_close(reward(pictures, PROMPTS), stock_scores(folder, pictures, PROMPTS), rtol=1e-4, atol=1e-6)


def test_half_precision(folder, pictures):
    low, exact = VQAScoreReward(folder, dtype=torch.bfloat16), VQAScoreReward(folder)
    assert low.model.dtype == torch.bfloat16 and exact.model.dtype == torch.float32
    scores = low(pictures, PROMPTS)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores.log(), exact(pictures, PROMPTS).log(), atol=0.2, rtol=0)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"question": "Is it nice?"}, "question='Is it nice?'; put {} in the prompt's place"),
        ({"answer": "a cat"}, "answer='a cat', which is 2 tokens"),
        ({"answer": "Perhaps"}, "answer='Perhaps', which is 1 tokens or an unknown one"),
    ],
)
def test_bad_input(folder, options, sentence):
    with pytest.raises(ValueError) as error:
        VQAScoreReward(folder, **options)
    assert sentence in str(error.value)


def test_prompts_that_stand_for_images_are_refused_before_there_are_any(folder):
    vqascore = VQAScoreReward(folder)
    rubric = RubricReward(judge=vqascore.judge, grades={"yes": 1, "no": 0})
    questions = QuestionListReward(lambda prompt: [f"Does it show {prompt}?"], vqascore.judge)
    for reward in (vqascore, rubric, questions):
        reward.check_prompts(["a cat"])
        with pytest.raises(ValueError, match=r"'<\|video_pad\|>' stands for an image; leave it out"):
            reward.check_prompts(["a cat", "a <|video_pad|> cat"])


def test_checkpoints_of_another_kind_are_refused(folder, clip_folder, tmp_path):
    with pytest.raises(OSError, match=r"cannot load checkpoint=.* or a folder with an image-text-to-text model"):
        VQAScoreReward(clip_folder)
    AutoModelForImageTextToText.from_pretrained(folder).save_pretrained(tmp_path)
    processor = AutoProcessor.from_pretrained(folder)
    processor.chat_template = processor.tokenizer.chat_template = None
    processor.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="lacks a chat template"):
        VQAScoreReward(tmp_path)

"""Rewards that ask for more than images and prompts."""

from functools import partial

import pytest
import torch
from torch import nn

from diamond_diffusers.rewards import CallableReward, ClippedReward, Reward, as_reward

PROMPTS = ["one", "two", "three"]


def batch():
    generator = torch.Generator().manual_seed(0)
    return torch.rand(3, 3, 8, 8, generator=generator), torch.randn(3, 4, 2, 2, generator=generator)


def latent_norm(images, prompts, latents):
    return -latents.square().mean((1, 2, 3))


def certain(images, prompts, noise_to_signal):
    return images.mean((1, 2, 3)) / (1 + noise_to_signal)


def widths(images, prompts, pil_images):
    return [image.size[0] + image.getpixel((0, 0))[0] for image in pil_images]


def patient(images, prompts, latents=None):
    return images.mean((1, 2, 3)) + (0 if latents is None else 1)


def latent_reward():
    return CallableReward(latent_norm, differentiable=True)


class TestWhatIsGiven:
    def test_latents(self):
        images, latents = batch()
        scores = latent_reward()(images, PROMPTS, latents=latents, noise_to_signal=1.0)
        torch.testing.assert_close(scores, latent_norm(images, PROMPTS, latents))

    def test_gradients_reach_the_latents(self):
        images, latents = batch()
        latents.requires_grad_()
        latent_reward()(images, PROMPTS, latents=latents).sum().backward()
        torch.testing.assert_close(latents.grad, -2 * latents.detach() / 16)

    @pytest.mark.parametrize("level", [0.5, torch.tensor(0.5), torch.full((3,), 0.5)])
    def test_a_level_is_one_per_image(self, level):
        seen = []

        def look(images, prompts, noise_to_signal):
            seen.append(noise_to_signal)
            return certain(images, prompts, noise_to_signal)

        images, _ = batch()
        scores = CallableReward(look, differentiable=True)(images, PROMPTS, noise_to_signal=level)
        assert torch.equal(seen[-1], torch.full((3,), 0.5))
        torch.testing.assert_close(scores, images.mean((1, 2, 3)) / 1.5)

    def test_pil_images_need_no_caller(self):
        images, _ = batch()
        expected = 8 + (images[:, 0, 0, 0] * 255).round()
        assert torch.equal(as_reward(widths)(images, PROMPTS), expected)

    def test_a_default_stands_in(self):
        images, latents = batch()
        reward = as_reward(patient)
        torch.testing.assert_close(reward(images, PROMPTS, latents=latents), reward(images, PROMPTS) + 1)

    def test_methods_and_modules_ask_in_the_same_way(self):
        class Method(Reward):
            name = "method"

            def score(self, images, prompts, latents):
                return latents.mean((1, 2, 3))

        class Module(nn.Module):
            def forward(self, images, prompts, latents):
                return latents.mean((1, 2, 3))

        images, latents = batch()
        expected = latents.mean((1, 2, 3))
        module = CallableReward(Module(), differentiable=True)
        for reward in (Method(), module, ClippedReward(Method(), -9), 1.0 * module):
            assert reward.wanted_context == {"latents": True}
            torch.testing.assert_close(reward(images, PROMPTS, latents=latents), expected)

    def test_every_term_gets_its_own(self):
        images, latents = batch()
        total = latent_reward() + 2 * CallableReward(certain, differentiable=True) + as_reward(widths)
        assert total.wanted_context == {"latents": True, "noise_to_signal": True, "pil_images": True}
        output = total.evaluate(images, PROMPTS, latents=latents, noise_to_signal=3.0)
        torch.testing.assert_close(output.terms["latent_norm"], latent_norm(images, PROMPTS, latents))
        torch.testing.assert_close(output.terms["certain"], images.mean((1, 2, 3)) / 4)
        torch.testing.assert_close(
            output.total, output.terms["latent_norm"] + 2 * output.terms["certain"] + output.terms["widths"]
        )

    def test_batches_are_cut_alike(self):
        seen = []

        def look(images, prompts, latents, noise_to_signal, pil_images):
            seen.append((len(images), len(prompts), len(latents), len(noise_to_signal), len(pil_images)))
            return latents.mean((1, 2, 3)) + noise_to_signal

        images, latents = batch()
        reward = CallableReward(look, differentiable=False, max_batch_size=2)
        scores = reward(images, PROMPTS, latents=latents, noise_to_signal=torch.arange(3.0))
        assert seen == [(2,) * 5, (1,) * 5]
        torch.testing.assert_close(scores, latents.mean((1, 2, 3)) + torch.arange(3.0))

    def test_a_black_box_sees_no_graph(self):
        def look(images, prompts, latents):
            return latents.numpy().mean((1, 2, 3))

        images, latents = batch()
        reward = CallableReward(look, differentiable=False)
        assert not reward(images.requires_grad_(), PROMPTS, latents=latents.requires_grad_()).requires_grad


class TestErrors:
    def test_missing(self):
        with pytest.raises(ValueError, match=r"'latent_norm' needs `latents`, but this call has none; pass latents"):
            latent_reward()(batch()[0], PROMPTS)

    def test_unknown(self):
        with pytest.raises(TypeError, match=r"got sigma=...; the context is made of latents and noise_to_signal"):
            as_reward(patient)(batch()[0], PROMPTS, sigma=1.0)

    def test_another_number_of_rows(self):
        images, latents = batch()
        with pytest.raises(ValueError, match=r"got latents of shape \[2, 4, 2, 2\] for 3 images; give one row"):
            as_reward(patient)(images, PROMPTS, latents=latents[:2])


def only_images(images):
    return images.mean((1, 2, 3))


def one_more(images, prompts, strength):
    return strength * images.mean((1, 2, 3))


class TestSignatures:
    @pytest.mark.parametrize("function", [only_images, one_more, nn.Identity()])
    def test_other_parameters_are_refused_at_once(self, function):
        with pytest.raises(
            TypeError, match=r"^Reward '\w+' cannot be called with images and prompts \(.*\); name no further "
        ):
            as_reward(function)

    @pytest.mark.parametrize(
        "function", [patient, widths, partial(one_more, strength=2), lambda *inputs, **more: inputs[0].mean((1, 2, 3))]
    )
    def test_defaults_and_context_are_fine(self, function):
        as_reward(function).probe()

    def test_what_cannot_be_called(self):
        with pytest.raises(TypeError, match=r"'three' is 3; give a callable \(images, prompts\) -> scores"):
            CallableReward(3, "three")


class TestProbe:
    def test_the_level_is_known(self):
        reward = CallableReward(certain)
        reward.probe(needs_gradient=True)
        assert reward.differentiable

    def test_latents_are_given_or_missed(self):
        reward = CallableReward(latent_norm)
        with pytest.raises(
            ValueError, match=r"needs latents, so that it cannot be tried on a random image; say whether"
        ):
            _ = reward.differentiable
        with pytest.raises(ValueError, match=r"needs `latents`"):
            reward.probe()
        reward = as_reward(patient)
        reward.probe(latents=torch.zeros(1, 4, 2, 2), needs_gradient=True)
        assert reward.differentiable

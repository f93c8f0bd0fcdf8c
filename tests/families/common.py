"""What `DiamondMapPipeline` owes its users whatever the family: one list of tests, run for each.

A family's tests subclass `FamilyTests` and set `family`; further variants of the same class (another prediction type,
another guidance embedding) may subclass `StockTests` alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from diffusers import PyramidAttentionBroadcastConfig
from diffusers.hooks import HookRegistry, ModelHook
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from torch import Tensor
from torch._dynamo.utils import counters

from benchmarks.counting import GraphMemory, counted
from diamond_diffusers import SMC, DiamondMapPipeline, Guidance, Guide, NoAlignment
from diamond_diffusers.families.base import Family
from diamond_diffusers.pipelines.modules import is_offloaded

from .calls import CallTests, first_of_all
from .family import PROMPTS, brightness, generators

# What takes different ways through the code: resampling, a gradient of the reward, one of the network.
BATCH_METHODS = {
    "none": NoAlignment(),
    "smc": SMC(num_particles=3),
    "guidance": Guidance(num_particles=2),
    "pathwise": Guidance(guide=Guide("pathwise")),
}


def offload_model(pipe: DiamondMapPipeline) -> None:
    pipe.enable_model_cpu_offload(device="cpu")


def offload_sequentially(pipe: DiamondMapPipeline) -> None:
    # The stock method, which covers text encoders too, cannot offload them from the CPU to itself.
    for component in (pipe.family.network_module, pipe.vae):
        cpu_offload(component, "cpu")


def offload_groups(pipe: DiamondMapPipeline) -> None:
    pipe.family.network_module.enable_group_offload(torch.device("cpu"), offload_type="leaf_level")


class FamilyTests(CallTests):
    """Everything that every family owes."""

    @pytest.mark.parametrize("name", first_of_all(BATCH_METHODS))
    def test_an_image_depends_on_its_own_prompt_and_generator_alone(self, pipe: DiamondMapPipeline, name: str) -> None:
        """Given its features: text encoders may round several prompts differently from one."""
        call = {"reward": brightness, "alignment": BATCH_METHODS[name], "particle_batch_size": 2}
        embeds = self.family.embeds(pipe.pipeline, PROMPTS)
        embeds = {key: rows for key, rows in embeds.items() if not key.startswith("negative")}
        second = {key: rows[1:] for key, rows in embeds.items()}
        together = self.images(pipe, None, reward_prompt=PROMPTS, **call, **embeds)
        alone = self.images(pipe, None, reward_prompt=PROMPTS[1:], generator=generators(1, first=1), **call, **second)
        # Chunks of equal shapes: bit for bit.
        assert torch.equal(together[1:], alone)
        if name != "smc":
            by_prompt = self.images(pipe, PROMPTS[1:], generator=generators(1, first=1), **call)
            torch.testing.assert_close(by_prompt, alone, atol=1e-4, rtol=0)
            unchunked = self.images(pipe, **{**call, "particle_batch_size": None})
            torch.testing.assert_close(unchunked, together, atol=1e-4, rtol=0)

    @pytest.mark.shared
    def test_rewards_are_those_of_the_returned_images(self, pipe: DiamondMapPipeline) -> None:
        for selection, count in (("sample", 4), ("best", 4), ("all", 8)):
            out = pipe(
                PROMPTS,
                reward=brightness,
                alignment=SMC(num_particles=2),
                num_images_per_prompt=2,
                final_selection=selection,
                generator=generators(4),
                **{**self.family.call, "output_type": "pt"},
            )
            assert len(out.images) == len(out.rewards) == count
            assert out.log_evidence.shape == (4,)
            torch.testing.assert_close(brightness(out.images, PROMPTS), out.rewards)

    @pytest.mark.shared
    def test_guidance_raises_the_reward(self, pipe: DiamondMapPipeline) -> None:
        for gradient in ("isotropic", "pathwise"):
            guidance = Guidance(guide=Guide(gradient, max_shift=1.0))
            call = {**self.family.call, "reward": brightness, "alignment": guidance}
            # A scale of 0 takes no look-aheads, and so other draws.
            rewards = {
                scale: pipe(["a red circle"] * 4, generator=generators(4), reward_scale=scale, **call)
                for scale in (1e-6, 20.0)
            }
            figures = [step.gradient_norm for step in rewards[20.0].trace.steps]
            assert all(figure.isfinite().all() for figure in figures)
            assert figures[-1].min() > 0
            assert rewards[20.0].rewards.mean() > rewards[1e-6].rewards.mean()

    def test_a_guided_step_costs_one_of_each(self, pipe: DiamondMapPipeline) -> None:
        self.assert_step_costs(pipe, self.family.call, guided=False)

    def test_a_guided_step_under_classifier_free_guidance_costs_two_evaluations(self, pipe: DiamondMapPipeline) -> None:
        # Without a variant under that guidance the family has none, as SANA-Sprint.
        if self.family.guided is not None:
            self.assert_step_costs(pipe, {**self.family.call, **self.family.variants[self.family.guided]}, guided=True)

    def assert_step_costs(self, pipe: DiamondMapPipeline, call: Mapping[str, Any], guided: bool) -> None:
        """Per particle: one network evaluation, one decode, one reward call, one backward pass."""
        weights = list(pipe.family.network_module.parameters())
        with counted(pipe) as counts:
            out = pipe(PROMPTS, reward=brightness, alignment=Guidance(guide=Guide("pathwise"), num_particles=3), **call)
        # Frozen for the call, so that graphs do not hold what only weights would need.
        assert not counts.trained_weights
        assert all(weight.requires_grad for weight in weights)
        particles = 2 * 3
        steps = len(out.trace.steps)
        assert steps == len(pipe.prepare(PROMPTS, **call).levels()) - 1
        assert counts.network == counts.backward == out.cost.network_evaluations == out.cost.backward_passes
        # Guidance may end, or leave out, some levels; then its rows cost less there.
        assert counts.network == particles * steps if not guided else counts.network > particles * steps
        assert counts.decoded == out.cost.decodes == particles * (steps + 1)
        # Three random ones are scored before the run, to see that the reward works and has gradients.
        assert out.cost.reward_calls == out.cost.decodes + 3

    def test_plain_sampling_decodes_each_image_once(self, pipe: DiamondMapPipeline) -> None:
        with counted(pipe) as counts:
            out = pipe(PROMPTS, **self.family.call)
            assert counts.decoded == out.cost.decodes == 2
            pipe(PROMPTS, **{**self.family.call, "output_type": "latent"})
        assert counts.decoded == 2
        assert counts.backward == 0

    @pytest.mark.shared
    def test_graphs_hold_one_chunk_however_many_particles(self, pipe: DiamondMapPipeline) -> None:
        peaks = []
        for particles in (2, 4):
            guidance = Guidance(guide=Guide("pathwise"), num_particles=particles)
            with GraphMemory().watched() as memory:
                pipe(PROMPTS, reward=brightness, alignment=guidance, particle_batch_size=2, **self.family.call)
            assert memory.live == 0
            peaks.append(memory.peak)
        assert peaks[0] == peaks[1] > 0

    @pytest.mark.shared
    def test_gradient_checkpointing_changes_nothing_but_memory(self, pipe: DiamondMapPipeline) -> None:
        call = {**self.family.call, "output_type": "pt", "reward": brightness}
        call["alignment"] = Guidance(guide=Guide("pathwise"))
        with counted(pipe) as held:
            plain = pipe(PROMPTS, generator=generators(), **call)
        with counted(pipe) as recomputed:
            checkpointed = pipe(PROMPTS, generator=generators(), gradient_checkpointing=True, **call)
        torch.testing.assert_close(checkpointed.images, plain.images, atol=1e-5, rtol=0)
        for step, plain_step in zip(checkpointed.trace.steps, plain.trace.steps, strict=True):
            torch.testing.assert_close(step.gradient_norm, plain_step.gradient_norm, atol=1e-6, rtol=1e-4)
        assert recomputed.network == 2 * held.network

    @pytest.mark.shared
    def test_look_aheads_alone_are_decoded_by_the_preview_vae(self, pipe: DiamondMapPipeline) -> None:
        pipe = DiamondMapPipeline.from_pipe(
            pipe.pipeline, preview_vae=self.family.preview_vae(pipe.pipeline).requires_grad_(False)
        )
        previewed = []
        hook = pipe.preview_vae.decoder.register_forward_hook(lambda module, args, output: previewed.append(args))
        out_of = {"reward": brightness, "alignment": Guidance(), "generator": generators()}
        with counted(pipe) as counts:
            out = pipe(PROMPTS, **out_of, **{**self.family.call, "output_type": "pt"})
        hook.remove()
        assert len(previewed) == len(out.trace.steps)
        assert counts.decoded == 2
        assert out.cost.decodes == 2 * (len(out.trace.steps) + 1)
        torch.testing.assert_close(brightness(out.images, PROMPTS), out.rewards)

    @pytest.mark.shared
    def test_slicing_and_tiling_of_the_vae(self) -> None:
        pipe = self.fresh()
        whole = self.images(pipe)
        for part in ("slicing", "tiling"):
            if hasattr(pipe.vae, f"enable_{part}"):
                getattr(pipe.vae, f"enable_{part}")()
                self.assert_same(self.images(pipe), whole)
                getattr(pipe.vae, f"disable_{part}")()
        if hasattr(pipe.vae, "tile_latent_min_size"):
            pipe.vae.enable_tiling()
            pipe.vae.tile_latent_min_size, pipe.vae.tile_sample_min_size = 2, 2 * whole.shape[-1] // 4
            self.assert_stock(pipe)

    def test_lora_weights_act_as_in_the_stock_pipeline(self) -> None:
        pipe = self.fresh()
        if not self.family.has_lora:
            with pytest.raises(AttributeError, match="LoRA"):
                pipe.load_lora_weights({})
            return
        weights = lora_weights(self.fresh().family, self.family.lora_targets)
        plain = self.images(pipe)
        pipe.load_lora_weights(weights, adapter_name="style")
        pipe.set_adapters(["style"], [0.7])
        stock = self.family.build()
        stock.load_lora_weights(weights, adapter_name="style")
        stock.set_adapters(["style"], [0.7])
        styled = self.images(pipe)
        self.assert_same(styled, self.images(stock))
        assert (styled - plain).abs().mean() > 1e-3
        pipe.unload_lora_weights()
        self.assert_same(self.images(pipe), plain)

    @pytest.mark.shared
    @pytest.mark.parametrize("offload", [offload_model, offload_sequentially, offload_groups])
    def test_offloaded_components(
        self, pipe: DiamondMapPipeline, offload: Callable[[DiamondMapPipeline], None]
    ) -> None:
        call = {**self.family.call, "output_type": "pt", "reward": brightness}
        call["alignment"] = Guidance(guide=Guide("pathwise"))
        expected = pipe(PROMPTS, generator=generators(), **call)
        offloaded = self.fresh()
        assert not is_offloaded(offloaded.pipeline)
        offload(offloaded)
        with counted(offloaded) as counts:
            out = offloaded(PROMPTS, generator=generators(), **call)
        self.assert_same(out.images, expected.images)
        # Graphs would keep offloaded weights alive, so the network is evaluated again on the way back.
        assert counts.network == 2 * expected.cost.network_evaluations
        assert is_offloaded(offloaded.pipeline)

    @pytest.mark.shared
    def test_attention_backends(self) -> None:
        pipe = self.fresh()
        expected = self.images(pipe)
        network = pipe.family.network_module
        network.set_attention_backend("_native_math")
        try:
            self.assert_same(self.images(pipe), expected)
        finally:
            network.set_attention_backend("native")
            network.reset_attention_backend()

    # Some seconds each: by default of FLUX with a Diamond Map alone.
    @pytest.mark.slow
    def test_a_compiled_network_is_compiled_once(self) -> None:
        pipe = self.fresh()
        expected = self.images(pipe)
        graphs = []

        def count_graphs(*step: Any) -> dict:
            graphs.append(counters["stats"]["unique_graphs"])
            return {}

        torch._dynamo.reset()
        counters.clear()
        # A break of the graph is an error here.
        pipe.family.network_module.compile(backend="eager", fullgraph=True)
        try:
            self.assert_same(self.images(pipe, callback_on_step_end=count_graphs), expected)
            self.images(pipe)
            assert counters["stats"]["unique_graphs"] == graphs[1] > 0
        finally:
            torch._dynamo.reset()

    def test_a_saved_model_is_stock_and_loads_again(self, tmp_path: Any) -> None:
        pipe = DiamondMapPipeline(self.family.build(), dict(self.family.call))
        expected = self.images(pipe)
        pipe.save_pretrained(tmp_path)
        again = DiamondMapPipeline.from_pretrained(tmp_path)
        stock = type(pipe.pipeline).from_pretrained(tmp_path)
        for loaded in (again, stock):
            loaded.set_progress_bar_config(disable=True)
        assert again.defaults == self.family.call
        call = {"generator": generators(), "output_type": "pt"}
        torch.testing.assert_close(again(PROMPTS, **call).images, expected, atol=1e-5, rtol=0)
        self.assert_same(self.images(stock), expected)

    @pytest.mark.shared
    def test_a_feature_cache_is_refused(self) -> None:
        pipe = self.fresh()
        network = pipe.family.network_module
        hooks = HookRegistry.check_if_exists_or_initialize(network)
        hooks.register_hook(RememberingHook(), "cache")
        with pytest.raises(ValueError, match="feature cache"):
            self.images(pipe)
        hooks.remove_hook("cache")
        if hasattr(network, "enable_cache"):
            network.enable_cache(
                PyramidAttentionBroadcastConfig(
                    spatial_attention_block_skip_range=2, current_timestep_callback=lambda: 500
                )
            )
            with pytest.raises(ValueError, match="feature cache"):
                self.images(pipe)
            network.disable_cache()
        self.images(pipe)


class RememberingHook(ModelHook):
    """What the hooks of every feature cache have in common."""

    _is_stateful = True

    def reset_state(self, module: torch.nn.Module) -> None:
        pass


def lora_weights(family: Family, targets: tuple[str, ...]) -> dict[str, Tensor]:
    """A random LoRA for a family's network, in diffusers' format."""
    with torch.random.fork_rng():
        torch.manual_seed(2)
        family.network_module.add_adapter(
            LoraConfig(r=2, lora_alpha=2, target_modules=list(targets), init_lora_weights=False)
        )
    weights = get_peft_model_state_dict(family.network_module)
    return {f"{family.network_name}.{name}": weight for name, weight in weights.items()}

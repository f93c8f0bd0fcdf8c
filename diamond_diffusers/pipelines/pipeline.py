"""`DiamondMapPipeline`: a stock diffusers pipeline whose samples obey a reward."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from ..alignment import Alignment, as_alignment
from ..alignment.base import FINAL_SELECTIONS, AlignmentResult, StepCallback
from ..alignment.model import TiltedModel
from ..alignment.random_source import RandomSource
from ..backbones import Conditions, backbone_for, check_supported
from ..rewards import Reward, RewardLike, as_reward
from .arguments import num_images, resolve_arguments, reward_texts
from .loading import embedded_model, read_defaults, write_defaults
from .output import DiamondMapPipelineOutput


class DiamondMapPipeline:
    """Owns one stock pipeline, to which every attribute that is not defined here is delegated.

    So `components`, `scheduler`, `load_lora_weights`, `enable_model_cpu_offload`, `set_progress_bar_config` and the
    rest act on the stock pipeline and mean what they mean there.

    Args:
        pipeline: a loaded stock pipeline of a supported class.
        defaults: values for arguments of a call that are not given (`height`, `num_inference_steps`, `alignment`,
            `reward`, ...).

    Raises:
        TypeError: the pipeline's class is not supported.
    """

    def __init__(self, pipeline: DiffusionPipeline, defaults: Mapping[str, Any] | None = None) -> None:
        self.__dict__.update(
            pipeline=pipeline, backbone=backbone_for(pipeline), defaults=dict(defaults or {}), _named_rewards={}
        )

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike | None = None, **kwargs: Any
    ) -> DiamondMapPipeline:
        """Loads a supported diffusers pipeline from a folder or the Hub, or the embedded model if none is named.

        Args:
            pretrained_model_name_or_path: folder or Hub repository; None for the embedded miniature.
            **kwargs: of `DiffusionPipeline.from_pretrained` (`dtype`, `revision`, `variant`, `token`, `cache_dir`,
                `device_map`, `quantization_config`, components, ...).

        Raises:
            TypeError: the pipeline's class is not supported; raised before its weights are loaded.
        """
        model = embedded_model() if pretrained_model_name_or_path is None else pretrained_model_name_or_path
        hub = {key: kwargs[key] for key in ("revision", "token", "cache_dir", "local_files_only") if key in kwargs}
        check_supported(DiffusionPipeline.load_config(model, **hub)["_class_name"])
        defaults = read_defaults(model, **hub)
        return cls(DiffusionPipeline.from_pretrained(model, **kwargs), defaults)

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline) -> DiamondMapPipeline:
        """Wraps a loaded stock pipeline; its components, dtype, hooks and scheduler stay as they are."""
        return cls(pipeline)

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """Saves the stock pipeline, loadable by stock diffusers, and this model's defaults beside it."""
        self.pipeline.save_pretrained(save_directory, **kwargs)
        write_defaults(save_directory, self.backbone.family, self.defaults)

    def to(self, *args: Any, **kwargs: Any) -> DiamondMapPipeline:
        """Moves or casts the stock pipeline; returns this object."""
        self.pipeline.to(*args, **kwargs)
        return self

    def __getattr__(self, name: str) -> Any:
        if name in ("pipeline", "backbone", "defaults", "_named_rewards"):
            raise AttributeError(name)
        return getattr(self.pipeline, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("pipeline", "backbone"):
            raise AttributeError(f"{name!r} is fixed; wrap another pipeline with DiamondMapPipeline.from_pipe(...)")
        if name == "defaults":
            self.__dict__[name] = dict(value)
        else:
            setattr(self.pipeline, name, value)

    def __repr__(self) -> str:
        return f"DiamondMapPipeline({type(self.pipeline).__name__}, defaults={self.defaults})"

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        *,
        reward: RewardLike | None = None,
        alignment: Alignment | str | None = None,
        reward_scale: float | None = None,
        final_selection: str | None = None,
        particle_batch_size: int | None = None,
        reward_prompt: str | list[str] | None = None,
        negative_prompt: str | list[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        num_images_per_prompt: int | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[..., dict[str, Any]] | None = None,
        **kwargs: Any,
    ) -> DiamondMapPipelineOutput | tuple:
        """Draws images that follow the prompts and obey the reward.

        Args:
            prompt: one or several texts.
            reward: a `Reward`, any callable `(images, prompts) -> scores`, or an expression such as `"clip + 2*mine"`;
                None for the model's own, if it has one.
            alignment: an `Alignment` or its name; None for the model's own, else `smc` with a reward and `none`
                without.
            reward_scale: multiplies the reward in the tilted law `p(z) exp(reward_scale * reward)`.
            final_selection: which particles of an image are returned: `sample` (one, drawn by weight), `best` or `all`;
                None for the method's own choice.
            particle_batch_size: rows of one network, decoder or reward call; None for all at once.
            reward_prompt: what the reward reads, where it is not the prompt.
            negative_prompt, height, width, num_inference_steps, num_images_per_prompt, output_type, return_dict:
                as of the stock pipeline.
            generator: one, or one for each image; image `i` depends on generator `i` alone.
            latents: starting noise in the stock pipeline's own form, a row for each image or each particle.
            callback_on_step_end: called as by the stock pipeline, with this object first, and with the latents of all
                particles; it may return replaced latents, or set `_interrupt`.
            **kwargs: every other argument of the stock `__call__`; one that cannot be honoured is refused by name.

        Returns:
            `DiamondMapPipelineOutput`, or `(images, rewards)` with `return_dict=False`.

        Raises:
            ValueError, TypeError: an argument is unknown or out of range; raised before any sampling.
        """
        given = dict(
            kwargs,
            prompt=prompt,
            negative_prompt=negative_prompt,
            height=height,
            width=width,
            num_inference_steps=num_inference_steps,
            num_images_per_prompt=num_images_per_prompt,
        )
        arguments = resolve_arguments(self.backbone, given, self.defaults)
        count = num_images(arguments)
        texts = reward_texts(arguments, reward_prompt)
        reward = self._resolve_reward(reward, alignment)
        alignment = self._resolve_alignment(alignment, reward)
        if reward is not None:
            size = (arguments.get("height") or 64, arguments.get("width") or 64)
            device = self.pipeline._execution_device
            reward.probe(device, size, texts[0] or "a photo", needs_gradient=alignment.needs_reward_gradient)
        selection = final_selection or alignment.default_selection
        if selection not in FINAL_SELECTIONS:
            raise ValueError(f"final_selection is {selection!r}; choose one of {', '.join(FINAL_SELECTIONS)}")
        if selection == "best" and reward is None:
            raise ValueError("final_selection is 'best', but no reward compares particles; give reward=...")
        if reward is not None and not any(texts):
            raise ValueError("prompt is None, so the reward has nothing to read; give reward_prompt=...")
        scale = self.defaults.get("reward_scale", 1.0) if reward_scale is None else reward_scale
        random = RandomSource(generator, count, self.pipeline._execution_device)

        self.pipeline._interrupt = False
        conditions = self.backbone.encode(arguments)
        model = TiltedModel(self.backbone, conditions, texts, reward, scale, particle_batch_size)
        levels = self.backbone.levels(arguments, conditions)
        x = self._starting_particles(arguments, conditions, alignment, levels[0], random, latents)
        with self.pipeline.progress_bar(total=len(levels) - 1) as progress_bar:
            on_step = self._step_callback(levels, progress_bar, callback_on_step_end)
            result = alignment.run(model, x, levels, random, on_step)
        output = self._output(model, result, selection, random, output_type)
        self.pipeline.maybe_free_model_hooks()
        return output if return_dict else (output.images, output.rewards)

    def _resolve_reward(self, reward: RewardLike | None, alignment: Alignment | str | None) -> Reward | None:
        if reward is None:
            reward = self.defaults.get("reward")
        if reward is None:
            if alignment is not None and as_alignment(alignment).needs_reward:
                raise ValueError(
                    f"reward is None, and this {type(self.pipeline).__name__} has no reward of its own; "
                    "give reward=... or alignment='none'"
                )
            return None
        if isinstance(reward, str):
            # A named reward is a model: loaded once, not at every call.
            if reward not in self._named_rewards:
                self._named_rewards[reward] = as_reward(reward)
            reward = self._named_rewards[reward]
        return as_reward(reward).to(device=self.pipeline._execution_device)

    def _resolve_alignment(self, alignment: Alignment | str | None, reward: Reward | None) -> Alignment:
        if alignment is None:
            alignment = self.defaults.get("alignment", "smc") if reward is not None else "none"
        alignment = as_alignment(alignment)
        alignment.check(reward)
        return alignment

    def _starting_particles(
        self,
        arguments: Mapping[str, Any],
        conditions: Conditions,
        alignment: Alignment,
        level: float,
        random: RandomSource,
        latents: Tensor | None,
    ) -> Tensor:
        """`[B P, ...]`; the first particle of each image starts where the stock pipeline would."""
        count, particles = random.num_images, alignment.num_particles
        if latents is not None:
            return self._given_particles(alignment, level, random, latents)
        generators = random.generators
        first = self.backbone.initial_latents(arguments, conditions, count, generators)
        if particles == 1:
            return first
        others = count * (particles - 1)
        if isinstance(generators, list | tuple):
            generators = [generator for generator in generators for _ in range(particles - 1)]
        more = self.backbone.initial_latents(arguments, conditions, others, generators)
        return torch.cat([first.unflatten(0, (count, 1)), more.unflatten(0, (count, -1))], 1).flatten(0, 1)

    def _given_particles(self, alignment: Alignment, level: float, random: RandomSource, latents: Tensor) -> Tensor:
        count, particles = random.num_images, alignment.num_particles
        if len(latents) not in (count, count * particles):
            raise ValueError(
                f"latents holds {len(latents)} rows for {count} images of {particles} particles; "
                f"give {count} or {count * particles}"
            )
        if len(latents) == count and particles > 1:
            if not alignment.transition.is_stochastic:
                raise ValueError(
                    f"latents holds {count} rows, from which all {particles} particles of an image would take the "
                    f"same deterministic path; give {count * particles} rows or a stochastic transition"
                )
            latents = latents.repeat_interleave(particles, 0)
        latents = latents.to(self.pipeline._execution_device, torch.promote_types(latents.dtype, torch.float32))
        path = self.backbone.path
        return path.to_bounded(latents, path.time(level))

    def _step_callback(
        self,
        levels: list[float],
        progress_bar: Any,
        callback: Callable[..., dict[str, Any]] | None,
    ) -> StepCallback:
        path, timesteps = self.backbone.path, self.pipeline.scheduler.timesteps

        def on_step(index: int, x: Tensor) -> Tensor | None:
            progress_bar.update()
            if callback is None:
                return None
            time = path.time(levels[index + 1])
            latents = path.from_bounded(x, time)
            returned = callback(self, index, timesteps[index], {"latents": latents}) or {}
            if self.pipeline.interrupt:
                raise StopIteration
            replaced = returned.get("latents", latents)
            return None if replaced is latents else path.to_bounded(replaced.to(x), time)

        return on_step

    def _output(
        self,
        model: TiltedModel,
        result: AlignmentResult,
        selection: str,
        random: RandomSource,
        output_type: str,
    ) -> DiamondMapPipelineOutput:
        chosen = result.select(selection, random).to(result.latents.device)
        rows = torch.arange(len(chosen), device=chosen.device)[:, None]

        def pick(per_particle: Tensor) -> Tensor:
            return per_particle[rows.to(per_particle.device), chosen.to(per_particle.device)].flatten(0, 1)

        if output_type == "latent":
            images = pick(result.latents)
        else:
            images = pick(result.images) if result.images is not None else self._decode(model, pick(result.latents))
            images = self.pipeline.image_processor.postprocess(
                images, output_type=output_type, do_denormalize=[False] * len(images)
            )
        return DiamondMapPipelineOutput(
            images=images,
            rewards=None if result.rewards is None else pick(result.rewards),
            reward_terms={name: pick(term) for name, term in result.reward_terms.items()},
            log_weights=pick(result.log_weights),
            log_evidence=result.log_evidence,
            trace=result.trace,
            cost=model.cost,
        )

    def _decode(self, model: TiltedModel, z: Tensor) -> Tensor:
        return model.decode(z, model.owners(len(z) // model.num_images, z.device))

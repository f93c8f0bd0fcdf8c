"""`DiamondMapPipeline`: a stock diffusers pipeline whose samples obey a reward."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from diffusers import DiffusionPipeline
from huggingface_hub import CommitInfo
from torch import Tensor, nn

from ..alignment.base import Method
from ..alignment.budget import fit_to_budget
from ..alignment.execution import Execution
from ..alignment.law import Law, check_reward_scale
from ..alignment.processes import DistributedState, ParticleShards
from ..alignment.random_source import RandomSource
from ..core.checks import check_counts
from ..families.compat import alone_with
from ..families.registry import family_of
from ..maps.storage import read_diamond_map
from ..rewards import RewardLike
from .adapters import AdapterMethods
from .arguments import (
    check_differentiable,
    check_falling,
    checked_few_step,
    checked_selection,
    is_offloaded,
    num_images,
    ordinary,
    refuse_cache,
    resolve_arguments,
    reward_texts,
    wants_latents,
)
from .callbacks import StepEnd, check_callback
from .freezing import frozen
from .loading import HUB_OPTIONS, check_class, embedded_model, find_map, read_base_defaults, single_file_class
from .output import DiamondMapPipelineOutput, make_output
from .particles import starting_particles
from .resolution import resolve_alignment, resolve_reward
from .saving import save_model
from .scoring import encode_for_scores, reward_probe
from .signature import SignatureOfCall, StockCall

OPTIONS = ("defaults", "few_step", "score_model", "preview_vae")


class DiamondMapPipeline(AdapterMethods):
    """Owns one stock pipeline, to which every attribute that is not defined here is delegated.

    So `components`, `scheduler`, `load_lora_weights`, `enable_model_cpu_offload`, `set_progress_bar_config` and the
    rest act on the stock pipeline and mean what they mean there.

    Args:
        pipeline: a loaded stock pipeline of a supported class.
        defaults: values for arguments of a call that are not given (`height`, `num_inference_steps`, `alignment`,
            `reward`, ...).
        few_step: True where the checkpoint is a few-step model (a flow map), or the name or names of the LoRA adapters
            that make it one: then the map is the model with them and the denoiser the model without; None to tell by
            the checkpoint's configuration, its scheduler and its name, in this order.
        score_model: a stock or wrapped pipeline of an ordinary model of the same latents, which gives the posterior
            mean where a few-step model has none.
        preview_vae: a small decoder of the same latents (`AutoencoderTiny`) for look-aheads; final images are decoded
            in full.

    Attributes:
        few_step, score_model, preview_vae: as given; they may be set later, as after `load_lora_weights`.

    Raises:
        TypeError: the pipeline's class is not supported.
        ValueError: `few_step` names an adapter that is not loaded.
    """

    __signature__ = SignatureOfCall()

    def __init__(
        self,
        pipeline: DiffusionPipeline,
        defaults: Mapping[str, Any] | None = None,
        *,
        few_step: bool | str | Sequence[str] | None = None,
        score_model: DiamondMapPipeline | DiffusionPipeline | None = None,
        preview_vae: nn.Module | None = None,
    ) -> None:
        if isinstance(pipeline, DiamondMapPipeline):
            raise TypeError(
                "pipeline is a DiamondMapPipeline already; use it as it is, or take DiamondMapPipeline.from_pipe(pipe)"
            )
        self.__dict__.update(
            pipeline=pipeline,
            family=family_of(pipeline),
            defaults=dict(defaults or {}),
            _base_defaults={},
            _named_rewards={},
        )
        self.few_step = few_step
        self.score_model = score_model
        self.preview_vae = preview_vae

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike | None = None, **kwargs: Any
    ) -> DiamondMapPipeline:
        """Loads a supported diffusers pipeline or a Diamond Map, or the embedded model if none is named.

        Args:
            pretrained_model_name_or_path: folder or Hub repository of a pipeline, of a Diamond Map, which names its
                base, or of both; None for the embedded miniature.
            **kwargs: of this class (`defaults`, which go before those that are declared, `few_step`, `score_model`,
                `preview_vae`) and of `DiffusionPipeline.from_pretrained` (`dtype`, `revision`, `variant`, `token`,
                `cache_dir`, `device_map`, `quantization_config`, components, ...).

        Raises:
            TypeError: the pipeline's class is not supported; raised before its weights are loaded.
            ValueError: a Diamond Map is damaged, or holds what it should not; raised before weights are loaded.
        """
        model = embedded_model() if pretrained_model_name_or_path is None else pretrained_model_name_or_path
        hub = {key: kwargs[key] for key in HUB_OPTIONS if key in kwargs}
        diamond_map = find_map(model, hub)
        if diamond_map is not None and diamond_map.is_alone:
            # The revision is that of the map; its base names its own.
            kwargs["revision"] = hub["revision"] = diamond_map.config["base_revision"]
            model = diamond_map.base
        check_class(model, **hub)
        saved = diamond_map and read_diamond_map(diamond_map.source, **diamond_map.hub)
        own = {name: kwargs.pop(name) for name in OPTIONS if name in kwargs}
        given = own.pop("defaults", None) or {}
        defaults = {**read_base_defaults(model, **hub), **given}
        pipe = cls(DiffusionPipeline.from_pretrained(model, **kwargs), defaults, **own)
        if model == embedded_model():
            # Its convolutions, small ones on a CPU, are twice as fast so.
            pipe.pipeline.vae.to(memory_format=torch.channels_last)
        if saved is not None:
            pipe._adopt(saved)
            pipe.defaults = {**pipe.defaults, **given}
        return pipe

    @classmethod
    def from_single_file(cls, pretrained_model_link_or_path: str | os.PathLike, **kwargs: Any) -> DiamondMapPipeline:
        """Loads a supported pipeline from one checkpoint file.

        Args:
            pretrained_model_link_or_path: a file, or its address on the Hub.
            **kwargs: of this class and of the stock pipeline's `from_single_file`; `config` names the folder or
                repository of the pipeline's configuration and is found from the checkpoint's keys if not given.

        Raises:
            TypeError: the pipeline's class is not supported, or stock diffusers cannot load it from a single file.
        """
        own = {name: kwargs.pop(name) for name in OPTIONS if name in kwargs}
        loader = single_file_class(pretrained_model_link_or_path, kwargs)
        return cls(loader.from_single_file(pretrained_model_link_or_path, **kwargs), **own)

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline | DiamondMapPipeline, **kwargs: Any) -> DiamondMapPipeline:
        """Wraps a loaded stock pipeline; its components, dtype, hooks and scheduler stay as they are.

        Args:
            pipeline: of a supported class; or one that is wrapped, which hands on its own of the following.
            **kwargs: of this class (`defaults`, `few_step`, `score_model`, `preview_vae`).

        Raises:
            TypeError: the pipeline's class is not supported.
            ValueError: a Diamond Map is loaded in the pipeline, which two cannot share.
        """
        if not isinstance(pipeline, DiamondMapPipeline):
            return cls(pipeline, **kwargs)
        if pipeline.family.has_diamond_map:
            raise ValueError(
                "pipeline has a Diamond Map loaded, which two wrappers cannot share; use it as it is, or call its "
                "unload_diamond_map() first"
            )
        return cls(pipeline.pipeline, **{**{name: getattr(pipeline, name) for name in OPTIONS}, **kwargs})

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """Saves the stock pipeline, loadable by stock diffusers, and beside it this model's defaults and Diamond Map.

        The weights are those of the base: LoRA adapters and wrappers are neither saved nor merged. In place of a
        `DiamondMapScheduler` its stock scheduler is saved. A Diamond Map comes with a model card, which replaces one
        that is there.

        Args:
            save_directory: is created.
            **kwargs: of the card (`license`, `sample_images`, `sample_prompt`) and of the stock method
                (`safe_serialization`, `variant`, `max_shard_size`, `push_to_hub`, `repo_id`, `private`, `token`, ...).

        Raises:
            TypeError, ValueError: an argument is unknown or of no use; raised before anything is written.
        """
        save_model(self.family, self.defaults, self._base_defaults, save_directory, **kwargs)

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> CommitInfo:
        """Uploads what `save_pretrained` saves; without a Diamond Map, with the model card that stock diffusers gives.

        Args:
            repo_id: is made if it does not exist.
            **kwargs: as of `save_pretrained`.
        """
        with tempfile.TemporaryDirectory() as folder:
            kwargs = {**kwargs, "push_to_hub": True, "repo_id": repo_id}
            return save_model(self.family, self.defaults, self._base_defaults, folder, **kwargs)

    def to(self, *args: Any, **kwargs: Any) -> DiamondMapPipeline:
        """Moves or casts the stock pipeline; returns this object."""
        self.pipeline.to(*args, **kwargs)
        if self.family.posterior_map is not None:
            self.family.posterior_map.conditioning.to(self.pipeline.device)
        return self

    @property
    def few_step(self) -> bool | tuple[str, ...] | None:
        return self.family.few_step

    @property
    def score_model(self) -> DiamondMapPipeline | None:
        return self.__dict__["_score_model"]

    @property
    def preview_vae(self) -> nn.Module | None:
        return self.family.preview_vae

    def __getattr__(self, name: str) -> Any:
        if name in ("pipeline", "family", "defaults", "_base_defaults", "_named_rewards", "_score_model"):
            raise AttributeError(name)
        return getattr(self.pipeline, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("pipeline", "family"):
            raise AttributeError(f"{name!r} is fixed; wrap another pipeline with DiamondMapPipeline.from_pipe(...)")
        if name == "defaults":
            self.__dict__[name] = dict(value)
        elif name == "few_step":
            self.family.few_step = checked_few_step(self.family, value)
        elif name == "score_model":
            wrapped = value if value is None or isinstance(value, DiamondMapPipeline) else DiamondMapPipeline(value)
            self.__dict__["_score_model"] = wrapped
            self.family.score_model = wrapped and wrapped.family
        elif name == "preview_vae":
            self.family.preview_vae = value
        else:
            setattr(self.pipeline, name, value)

    @property
    def __class__(self) -> type[DiffusionPipeline]:
        """The stock pipeline's, by which `AutoPipelineForText2Image.from_pipe` and its like know what it is.

        So `isinstance` finds both classes, and `type` this one.
        """
        return type(self.__dict__["pipeline"]) if "pipeline" in self.__dict__ else DiamondMapPipeline

    def __reduce__(self) -> tuple:
        # Pickle refuses objects whose two classes differ, unless they say how they are made.
        return object.__new__, (type(self),), self.__dict__

    def __dir__(self) -> list[str]:
        return sorted({*dir(type(self)), *vars(self), *dir(self.pipeline)})

    def __repr__(self) -> str:
        return f"DiamondMapPipeline({type(self.pipeline).__name__}, defaults={self.defaults})"

    @StockCall
    @torch.inference_mode(False)
    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        *,
        reward: RewardLike | None = None,
        alignment: Method | str | None = None,
        reward_scale: float | None = None,
        max_network_evaluations: int | None = None,
        final_selection: str | None = None,
        particle_batch_size: int | None = None,
        gradient_checkpointing: bool | None = None,
        distributed_state: DistributedState | None = None,
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
            alignment: a `Method` or its name; None for the model's own, else `smc` with a reward and `none`
                without. One of the model's own that differentiates the reward gives way to SMC where the reward cannot
                be differentiated.
            reward_scale: multiplies the reward in the tilted law `p(z) exp(reward_scale * reward)`.
            max_network_evaluations: what an image may cost, a backward pass counting 2: in place of the method's own
                count of particles, candidates or iterations, which becomes the largest within it.
            final_selection: which particles of an image are returned: `sample` (one, drawn by weight), `heaviest` (the
                one of the largest weight), `best` or `all`; None for the method's own choice.
            particle_batch_size: rows of one network, decoder or reward call; None for all at once. A last chunk is
                filled up, so that an image is the same, bit for bit, whatever else is in the batch, from the same
                embeddings: text encoders may round several prompts differently from one.
            gradient_checkpointing: whether network, decoder and reward are evaluated again on the backward pass
                instead of holding what they computed; None for only where components are offloaded.
            distributed_state: accelerate's `PartialState` or `Accelerator`, or a process group of `torch.distributed`,
                whose processes make this call together: each evaluates its share of the particles and returns what one
                process would. All must give the same arguments and generators of the same seeds.
            reward_prompt: what the reward reads, where it is not the prompt.
            negative_prompt, height, width, num_inference_steps, num_images_per_prompt, output_type, return_dict:
                as of the stock pipeline.
            generator: one, or one for each image; image `i` depends on generator `i` alone. With alignment off they,
                or torch's global one, are left as the stock pipeline leaves them.
            latents: starting noise in the stock pipeline's own form, a row for each image or each particle.
            callback_on_step_end: called as by the stock pipeline, with this object first, and with the latents of all
                particles. It may change latents and the other tensors of `callback_on_step_end_tensor_inputs`, in place
                or by returning others, set `_guidance_scale`, or end the run by setting `_interrupt`.
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
        check_counts(max_network_evaluations=max_network_evaluations, particle_batch_size=particle_batch_size)
        refuse_cache(self.family)
        arguments, latents = ordinary(resolve_arguments(self.family, given, self.defaults)), ordinary(latents)
        count = num_images(arguments)
        check_falling(arguments)
        with self.family.calling(arguments):
            texts = reward_texts(arguments, reward_prompt)
            reward = resolve_reward(reward, alignment, self.family, self.defaults, self._named_rewards)
            alignment = resolve_alignment(alignment, reward, self.family, self.defaults, arguments)
            if alignment.needs_reward_gradient:
                check_differentiable(self._modules())
            watched = arguments.get("callback_on_step_end_tensor_inputs", ["latents"])
            watched = check_callback(self.family, alignment, callback_on_step_end, watched)
            selection = checked_selection(final_selection or alignment.default_selection, reward, texts)
            scale = self.defaults.get("reward_scale", 1.0) if reward_scale is None else reward_scale
            check_reward_scale(scale)
            random = RandomSource(generator, count, self.pipeline._execution_device)
            shards = ParticleShards.of(distributed_state)
            if shards is not None:
                shards.check_same(
                    prompt=arguments["prompt"],
                    reward_prompt=texts,
                    num_inference_steps=arguments["num_inference_steps"],
                    alignment=(type(alignment).__name__, alignment.num_particles),
                    generator=random.states(),
                    latents=latents,
                )
            checkpointing = is_offloaded(self.pipeline) if gradient_checkpointing is None else gradient_checkpointing
            device = self.pipeline._execution_device
            probe = reward_probe(reward, arguments, texts[0], device, alignment.needs_reward_gradient)
            if not wants_latents(reward):
                probe()

            with alone_with(self.family.network_module):
                self.pipeline._interrupt = False
                conditions = self.family.encode(arguments)
                levels = self.family.levels(arguments, conditions)
            scoring = encode_for_scores(self.score_model, arguments)
            execution = Execution(particle_batch_size, checkpointing, shards)
            law = Law(self.family, conditions, texts, reward, scale, scoring, execution)
            self.pipeline._num_timesteps = len(levels) - 1
            if max_network_evaluations is not None:
                alignment = fit_to_budget(alignment, law, levels, max_network_evaluations)
            x = starting_particles(self.family, arguments, conditions, alignment, levels[0], random, latents)
            if wants_latents(reward):
                probe(latents=x[:1])
            total = alignment.num_stages(law, levels)
            with self.pipeline.progress_bar(total=total) as progress_bar, frozen(self._modules()):
                on_step = StepEnd(self, alignment, levels, progress_bar, callback_on_step_end, watched)
                for progress in alignment.iterate(law, x, levels, random):
                    if on_step(progress):
                        break
                result = progress.result()
            output = make_output(law, alignment, result, selection, random, output_type)
            self.pipeline.maybe_free_model_hooks()
        return output if return_dict else (output.images, output.rewards)

    def _modules(self) -> list[nn.Module]:
        """Everything with weights that a call evaluates, but for the reward."""
        own = [*self.pipeline.components.values(), self.preview_vae]
        scoring = [] if self.score_model is None else self.score_model._modules()
        return [module for module in own if isinstance(module, nn.Module)] + scoring

"""`DiamondMapPipeline`: a stock diffusers pipeline whose samples obey a reward."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, Literal, cast

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from ..alignment.auto_scale import AutoRewardScale
from ..alignment.base import Method
from ..alignment.processes import DistributedState
from ..core.conversions import Values
from ..core.wording import shown
from ..families.registry import family_of
from ..maps.storage import read_diamond_map
from ..rewards import RewardLike
from .adapters import AdapterMethods
from .attributes import StockAttributes
from .call import Call, prepare
from .callbacks import UserCallback
from .compiling import CompileMethods
from .defaults import checked_defaults
from .loading import (
    HUB_OPTIONS,
    base_of,
    check_class,
    class_of,
    embedded_model,
    find_map,
    loader_of,
    read_base_defaults,
    single_file_class,
)
from .misplaced import LOADER_OPTIONS
from .output import DiamondMapPipelineOutput
from .run import Run, interrupt_runs
from .run_options import RunOptions
from .saving_methods import SavingMethods
from .shared_budget import SharedBudget
from .signature import SignatureOfCall, StockCall
from .watch import Watch


class DiamondMapPipeline(AdapterMethods, CompileMethods, SavingMethods, StockAttributes):
    """A stock diffusers pipeline whose samples obey a reward.

    It owns one stock pipeline, to which every attribute that is not defined here is delegated: `components`,
    `scheduler`, `load_lora_weights`, `enable_model_cpu_offload`, `set_progress_bar_config` and the rest act on the
    stock pipeline and mean what they mean there.

    Args:
        pipeline: a loaded stock pipeline of a supported class.
        defaults: values for arguments of a call that are not given (`height`, `num_inference_steps`, `alignment`,
            `reward`, ...).
        few_step: True if the checkpoint is a few-step model (a flow map), False if not. The name or names of LoRA
            adapters, if these make the model a flow map: the map is then the model with them, and the denoiser the
            model without them. None decides by the checkpoint's configuration, its scheduler and its name, in this
            order.
        score_model: a stock or wrapped pipeline of an ordinary model with the same latents. It gives the posterior mean
            to a few-step model, which has none.
        preview_vae: a small decoder of the same latents (`AutoencoderTiny`) for look-aheads; final images are decoded
            in full.

    Attributes:
        few_step, score_model, preview_vae: as given; they may be set later, as after `load_lora_weights`.

    Raises:
        TypeError: the pipeline's class is not supported.
        ValueError: `few_step` names an adapter that is not loaded.

    Example:
        >>> pipe = DiamondMapPipeline.from_pretrained()
        >>> out = pipe("a red star", num_inference_steps=2, generator=torch.Generator().manual_seed(0))
        >>> out.images[0].size
        (64, 64)
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
        family = family_of(pipeline)
        super().__init__(pipeline, family, checked_defaults(type(pipeline), defaults))
        self.few_step = few_step  # type: ignore[misc, assignment]
        self.score_model = score_model  # type: ignore[misc]
        self.preview_vae = preview_vae  # type: ignore[misc]

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str] | None = None, **kwargs: Any
    ) -> DiamondMapPipeline:
        """Loads a supported diffusers pipeline or a Diamond Map, or the embedded model if none is named.

        Args:
            pretrained_model_name_or_path: folder or Hub repository of a pipeline, of a Diamond Map, which names its
                base, or of both; None for the embedded miniature.
            **kwargs: arguments of this class (`defaults`, which override those that the model declares, `few_step`,
                `score_model`, `preview_vae`) and of `DiffusionPipeline.from_pretrained` (`dtype`, `revision`,
                `variant`, `token`, `cache_dir`, `device_map`, `quantization_config`, components, ...).

        Raises:
            TypeError: the pipeline's class is not supported; raised before its weights are loaded.
            ValueError: a Diamond Map is damaged or holds invalid values; raised before weights are loaded.
        """
        model = embedded_model() if pretrained_model_name_or_path is None else pretrained_model_name_or_path
        if not isinstance(model, str | os.PathLike):
            raise TypeError(
                f"pretrained_model_name_or_path is {shown(model)}; give a folder or the name of a repository on the Hub"
            )
        for name in {field.name for field in fields(RunOptions)} & kwargs.keys():
            raise TypeError(f"{name!r} is an argument of a call; give pipe(..., {name}=...)")
        hub = {key: kwargs[key] for key in HUB_OPTIONS if key in kwargs}
        diamond_map = find_map(model, hub)
        model, hub = base_of(model, hub, diamond_map)
        kwargs |= hub
        name = check_class(model, **hub)
        loader = loader_of(name)
        saved = None if diamond_map is None else read_diamond_map(diamond_map.source, **diamond_map.hub)
        own = {name: kwargs.pop(name) for name in LOADER_OPTIONS if name in kwargs}
        given = checked_defaults(class_of(name), own.pop("defaults", None))
        declared = read_base_defaults(model, **hub)
        pipe = cls(loader.from_pretrained(model, **kwargs), **own)
        # What a model declares may be for another version, and is looked at when it is used.
        pipe._take_defaults({**declared, **given})
        if model == embedded_model():
            # Its convolutions, small ones on a CPU, are twice as fast so.
            pipe.pipeline.vae.to(memory_format=torch.channels_last)
        if saved is not None:
            pipe._adopt(saved)
            pipe._take_defaults({**pipe.defaults, **given})
        return pipe

    @classmethod
    def from_single_file(
        cls, pretrained_model_link_or_path: str | os.PathLike[str], **kwargs: Any
    ) -> DiamondMapPipeline:
        """Loads a supported pipeline from one checkpoint file.

        Args:
            pretrained_model_link_or_path: a file, or its address on the Hub.
            **kwargs: arguments of this class and of the stock pipeline's `from_single_file`. `config` names the folder
                or repository of the pipeline's configuration; if not given, it is found from the checkpoint's keys.

        Raises:
            TypeError: the pipeline's class is not supported, or stock diffusers cannot load it from a single file.
        """
        own = {name: kwargs.pop(name) for name in LOADER_OPTIONS if name in kwargs}
        loader = single_file_class(pretrained_model_link_or_path, kwargs)
        return cls(loader.from_single_file(pretrained_model_link_or_path, **kwargs), **own)

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline | DiamondMapPipeline, **kwargs: Any) -> DiamondMapPipeline:
        """Wraps a loaded stock pipeline; its components, dtype, hooks and scheduler stay as they are.

        Args:
            pipeline: a stock pipeline of a supported class, or a `DiamondMapPipeline`, whose own values of the
                following arguments are then the defaults.
            **kwargs: arguments of this class (`defaults`, `few_step`, `score_model`, `preview_vae`).

        Raises:
            TypeError: the pipeline's class is not supported.
            ValueError: a Diamond Map is loaded in the pipeline, which two wrappers cannot share.
        """
        if not isinstance(pipeline, DiamondMapPipeline):
            return cls(pipeline, **kwargs)
        if pipeline.family.has_diamond_map:
            raise ValueError(
                "pipeline has a Diamond Map loaded, which two wrappers cannot share; use it as it is, or call its "
                "unload_diamond_map() first"
            )
        own = {name: getattr(pipeline, name) for name in LOADER_OPTIONS if name != "defaults"}
        wrapped = cls(pipeline.pipeline, **{**own, **kwargs})
        if "defaults" not in kwargs:
            wrapped._take_defaults(pipeline.defaults)
        return wrapped

    def to(self, *args: Any, **kwargs: Any) -> DiamondMapPipeline:
        """Moves or casts the stock pipeline; returns this object."""
        self.pipeline.to(*args, **kwargs)
        if self.family.posterior_map is not None:
            self.family.posterior_map.conditioning.to(self.pipeline.device)
        return self

    def _checked_defaults(self, defaults: Mapping[str, Any]) -> Mapping[str, Any]:
        return checked_defaults(type(self.pipeline), defaults)

    def __repr__(self) -> str:
        return f"DiamondMapPipeline({type(self.pipeline).__name__}, defaults={self.defaults})"

    @StockCall
    def prepare(
        self,
        /,
        prompt: str | list[str] | None = None,
        *,
        reward_prompt: str | list[str] | None = None,
        **kwargs: Any,
    ) -> Call:
        """Resolves and checks the arguments of a call, for a sampling loop of your own.

        The prompts are encoded when they are first needed. The result holds everything that a call of this object
        starts from.

        Args:
            prompt: one or several texts.
            reward_prompt: text that a reward reads instead of the prompt.
            **kwargs: every other argument of the stock `__call__`; those that are not given take the model's default,
                or else the stock one. Arguments about the output (`output_type`, ...) have no effect here.

        Returns:
            A `Call` with `arguments`, `conditions`, `levels(...)` and `texts`. Sample and decode the model inside of
            `with call.active():`.

        Raises:
            TypeError: an argument is unknown or refused.
            ValueError: an argument is out of range, or the network has a feature cache enabled.

        Example:
            >>> pipe = DiamondMapPipeline.from_pretrained()
            >>> call = pipe.prepare("a red circle", num_inference_steps=4)
            >>> with call.active(), torch.no_grad():
            ...     levels, conditions = call.levels(), call.conditions
            ...     noise = pipe.family.prepare_latents(call.arguments, conditions, 1, torch.Generator().manual_seed(0))
            ...     x = pipe.family.from_stock(noise, levels[0])
            ...     image = pipe.family.decode(pipe.family.predict(x, levels[0], conditions), conditions)
            >>> image.shape
            torch.Size([1, 3, 64, 64])
        """
        call = prepare(self.family, {**kwargs, "prompt": prompt}, self.defaults, reward_prompt)
        scores = self.score_model
        return call if scores is None else call.with_score_model(scores.family, scores.defaults)

    @StockCall
    def __call__(
        self,
        /,
        prompt: str | list[str] | None = None,
        *,
        reward: RewardLike | list[RewardLike] | None = None,
        alignment: Method | str | Mapping[str, Any] | None = None,
        reward_scale: float | list[float] | AutoRewardScale | Literal["auto"] | None = None,
        max_network_evaluations: int | None = None,
        max_reward_calls: int | None = None,
        final_selection: str | None = None,
        particle_batch_size: int | Literal["auto"] | None = None,
        gradient_checkpointing: bool | Literal["auto"] | None = None,
        on_reward_error: str = "raise",
        watch: Watch | None = None,
        shared_budget: SharedBudget | None = None,
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
        callback_on_step_end: UserCallback | None = None,
        **kwargs: Any,
    ) -> DiamondMapPipelineOutput:
        """Draws images that follow the prompts and obey the reward.

        Args:
            prompt: one or several texts.
            reward: a `Reward`, any callable `(images, prompts) -> scores`, or an expression such as `"clip + 2*mine"`;
                None for the model's own, if it has one. A list has one of these for each prompt.
            alignment: a `Method`, its name or its serial form. `"auto"` takes the method that suits the model, the
                reward and the budget, by the table of `docs/choosing.md`; `out.choice` says which and why. None takes
                the method that the model declares, else `"auto"` with a reward and `none` without. If the model's own
                method differentiates the reward, but the reward has no gradient, `"auto"` takes its place.
            reward_scale: factor of the reward in the tilted law `p(z) exp(reward_scale * reward)`, or a list with one
                for each prompt. `"auto"`, short for `AutoRewardScale()`, finds that of each prompt from the rewards of
                plain samples. None takes the model's own, else the reward's (`default_reward_scale`), else 1; see
                `docs/judges/scales.md`.
            max_network_evaluations: budget of network evaluations for each image; a backward pass counts 2. The
                method's count of particles, candidates or iterations is set to the largest within this budget.
            max_reward_calls: budget of images that the reward scores for each image, look-aheads among them. With both
                budgets, the count is the largest within both. Trials of the reward before the run, the plain samples of
                `reward_scale="auto"`, and calls repeated because the reward failed come on top.
            final_selection: which particles of an image are returned: `sample` (one, drawn by weight), `heaviest` (the
                one of the largest weight), `best` or `all`; None for the method's own choice.
            particle_batch_size: the most rows of one network, decoder or reward call, all of one image. An image is
                then evaluated by the calls that it would be evaluated by alone, so that from the same embeddings it is
                the same, bit for bit, whatever else is in the batch. (Text encoders may round several prompts
                differently from one.) `"auto"` takes the largest that fits into memory, by what one row is found to
                take, and the rows of all images at once where these fit; see `docs/memory.md`. None is `"auto"` on
                accelerators; on a CPU it evaluates the rows of all images at once, which is faster where each has few
                of them. Where memory runs out, a step is run again in chunks of half the rows, with a warning.
            gradient_checkpointing: whether the backward pass evaluates network, decoder and reward again instead of
                holding what they computed. `"auto"` does so for those of them whose graphs do not fit into memory.
                None is `"auto"` on accelerators; on a CPU it does so only where components are offloaded.
            on_reward_error: what to do where the reward fails: `raise` its exception, which then has the best images so
                far as `best_images`; `retry` it up to 3 times first; or `skip` the images that fail, see
                `docs/rewards.md`.
            watch: a `Watch` of a held-out reward, which ends a method in rounds early and returns each image as it was
                where that reward was the highest.
            shared_budget: a `SharedBudget`, which says when an image is good enough, so that a method in rounds ends
                it and spends the rest of its budget on the images that are not.
            distributed_state: accelerate's `PartialState` or `Accelerator`, or a process group of `torch.distributed`,
                whose processes make this call together. Each evaluates its share of the particles, and all return what
                one process would return. All must pass the same arguments, and generators of the same seeds.
            reward_prompt: text that the reward reads instead of the prompt.
            negative_prompt, height, width, num_inference_steps, num_images_per_prompt, output_type, return_dict:
                as of the stock pipeline.
            generator: one generator, or one for each image; image `i` depends on generator `i` alone. With alignment
                off the generators, or torch's global one, end in the same state as after the stock pipeline.
            latents: starting noise in the stock pipeline's own form, a row for each image or each particle.
            callback_on_step_end: called as by the stock pipeline, with this object first, and with the latents of all
                particles. It may change latents and the other tensors of `callback_on_step_end_tensor_inputs`, in place
                or by returning others, set `_guidance_scale`, or end the run by setting `_interrupt`. The call then
                returns clean look-aheads, where stock pipelines decode latents that are still noisy.
            **kwargs: every other argument of the stock `__call__`; one that cannot be honoured is refused by name.

        Returns:
            `DiamondMapPipelineOutput`, or `(images, rewards)` with `return_dict=False`.

        Raises:
            ValueError, TypeError: an argument is unknown or out of range; raised before any sampling.
            torch.OutOfMemoryError, RuntimeError, MemoryError: memory does not hold a single row.
        """
        return_dict = Values().fitted(return_dict, bool, "return_dict")
        options = RunOptions(
            reward=reward,
            alignment=alignment,
            reward_scale=reward_scale,
            max_network_evaluations=max_network_evaluations,
            max_reward_calls=max_reward_calls,
            final_selection=final_selection,
            particle_batch_size=particle_batch_size,
            gradient_checkpointing=gradient_checkpointing,
            on_reward_error=on_reward_error,
            watch=watch,
            shared_budget=shared_budget,
            distributed_state=distributed_state,
            output_type=output_type,
            callback_on_step_end=callback_on_step_end,
        )
        call = self.prepare(
            prompt,
            reward_prompt=reward_prompt,
            negative_prompt=negative_prompt,
            height=height,
            width=width,
            num_inference_steps=num_inference_steps,
            num_images_per_prompt=num_images_per_prompt,
            generator=generator,
            latents=latents,
            **kwargs,
        )
        with Run(self, call, options, self.defaults, self._named_rewards) as run:
            for _ in run:
                pass
            output = run.output()
        # Typed as what nearly every caller gets, since types cannot follow `return_dict` through the descriptor.
        return output if return_dict else cast(DiamondMapPipelineOutput, (output.images, output.rewards))

    def iterate(self, prompt: str | list[str] | None = None, **kwargs: Any) -> Run:
        """Starts a call that you step through with `for progress in pipe.iterate(...)`.

        A call `pipe(...)` is this loop, run to its end. After every step, or round of a search, a `Progress` gives the
        particles, values, weights, effective sample size and cost so far, and draws previews on request. Closing the
        run ends it within a step, and `run.output()` then returns the best images so far.

        Args:
            prompt: one or several texts.
            **kwargs: every other argument of a call, except `return_dict`.

        Raises:
            ValueError, TypeError: an argument is unknown or out of range; raised before any sampling.

        Example:
            >>> with DiamondMapPipeline.from_pretrained().iterate("three red circles", num_inference_steps=8) as run:
            ...     for progress in run:
            ...         if progress.values is not None and progress.values.max() > 45:
            ...             break
            >>> run.output().images[0].size
            (64, 64)
        """
        own = {field.name for field in fields(RunOptions)} & kwargs.keys()
        options = RunOptions(**{name: kwargs.pop(name) for name in own})
        return Run(self, self.prepare(prompt, **kwargs), options, self.defaults, self._named_rewards)

    def interrupt(self) -> None:
        """Ends every call of this object that is on its way, within a step; another thread has to call it.

        Such a call returns its best images so far: the clean look-aheads of its particles, with trace and cost.
        Setting `_interrupt` does the same, as in stock pipelines: within a callback for the call of that callback.

        Example:
            >>> import threading
            >>> pipe = DiamondMapPipeline.from_pretrained()
            >>> timer = threading.Timer(0.5, pipe.interrupt)
            >>> timer.start()
            >>> out = pipe("three red circles", alignment="smc", num_inference_steps=1000)
            >>> len(out.trace.steps) < 1000
            True
        """
        interrupt_runs(self)

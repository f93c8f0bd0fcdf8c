"""Random draws of a batch of images, each from its own generator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from ..core.interval import Interval
from ..core.tensors import sent
from ..core.wording import shown
from ..transitions.base import Transition

_WAY = "give torch.Generator objects, such as torch.Generator().manual_seed(0)"


class RandomSource:
    """Draws for `num_images` images so that what image `i` receives depends on its generator alone.

    Args:
        generators: None for torch's global state, one generator for the whole batch, or one for each image.
        num_images: number of images B.
        device: where draws are put; they are made on each generator's own device.
        dtype: of the normals.

    Raises:
        TypeError: these are no generators.
        ValueError: their number is neither 1 nor `num_images`, or one is on a device of another kind.
    """

    def __init__(
        self,
        generators: torch.Generator | Sequence[torch.Generator] | None,
        num_images: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if isinstance(generators, Sequence) and not generators:
            raise TypeError(f"generator is {shown(generators)}, which is empty; {_WAY}")
        # diffusers takes no other sequence.
        given = list(generators) if isinstance(generators, Sequence) else generators
        for generator in given if isinstance(given, list) else [given]:
            if given is not None and not isinstance(generator, torch.Generator):
                raise TypeError(f"generator is {shown(generators)}, which is or holds {shown(generator)}; {_WAY}")
            if generator is not None and generator.device.type not in ("cpu", torch.device(device).type):
                raise ValueError(
                    f"generator is on {generator.device}, but images are made on {device}; give torch.Generator() or "
                    f"torch.Generator({str(device)!r})"
                )
        if isinstance(given, list) and len(given) not in (1, num_images):
            raise ValueError(
                f"generator holds {len(given)} generators for {num_images} images; give one, or one for each image"
            )
        self.generators = given[0] if isinstance(given, list) and len(given) == 1 else given
        self.num_images = num_images
        self.device = torch.device(device)
        self.dtype = dtype

    def normal(self, rows_per_image: int, shape: Sequence[int]) -> Tensor:
        """Standard normals `[num_images * rows_per_image, *shape]`, the rows of an image consecutive.

        The first row of an image is what it would receive as the only one, and the others are drawn aside, so that the
        first of several particles moves, bit for bit, as one alone.
        """
        first = self._rows(1, shape)
        if rows_per_image == 1:
            return first
        others = self.aside._rows(rows_per_image - 1, shape)
        return torch.cat([rows.unflatten(0, (self.num_images, -1)) for rows in (first, others)], 1).flatten(0, 1)

    @cached_property
    def aside(self) -> RandomSource:
        """Further draws, which leave this source's own as they are; seeded from where its generators stand by now."""
        generators: torch.Generator | list[torch.Generator]
        if isinstance(self.generators, list):
            generators = [_spawn(generator) for generator in self.generators]
        elif self.generators is not None:
            generators = _spawn(self.generators)
        else:
            devices = [] if self.device.type == "cpu" else [self.device]
            with torch.random.fork_rng(devices, device_type=self.device.type):
                generators = torch.Generator(self.device).manual_seed(_seed(None, self.device))
        return RandomSource(generators, self.num_images, self.device, self.dtype)

    def of_image(self, index: int) -> torch.Generator | None:
        """The generator that image `index` draws from."""
        return self.generators[index] if isinstance(self.generators, list) else self.generators

    def of_rows(self, images: Tensor) -> RandomSource:
        """A source for rows that belong to these images, `[N]`: to it each is an image with a generator of its own.

        A row's generator is seeded by a draw from that of its image, so that what an image receives depends on its own
        rows alone, however many the others have.
        """
        generators = []
        for image in images.tolist():
            own = self.of_image(image)
            device = self.device if own is None else own.device
            generators.append(torch.Generator(device).manual_seed(_seed(own, device)))
        return RandomSource(generators, len(images), self.device, self.dtype)

    def of_each_image(self) -> list[RandomSource]:
        """A source for each image, as of a call of it alone.

        Where the images share a generator, which would give them draws in turns, each has one that is seeded aside.
        """
        if self.num_images == 1:
            return [self]
        if not isinstance(self.generators, list):
            shared = self.aside.generators
            assert isinstance(shared, torch.Generator), "draws aside are of a generator of their own"
            seeds = [_seed(shared, shared.device) for _ in range(self.num_images)]
            generators = [torch.Generator(shared.device).manual_seed(seed) for seed in seeds]
            return [RandomSource(generator, 1, self.device, self.dtype) for generator in generators]
        sources = [RandomSource(generator, 1, self.device, self.dtype) for generator in self.generators]
        aside: RandomSource | None = self.__dict__.get("aside")
        if aside is not None:
            # What has been drawn aside by now is not drawn again.
            for source, further in zip(sources, aside.of_each_image(), strict=True):
                source.__dict__["aside"] = further
        return sources

    def states(self) -> list[Tensor]:
        """Of the generators, or of torch's global ones: sources of equal states draw the same."""
        if self.generators is None:
            # Each device has one of its own.
            if self.device.type == "cpu":
                return [torch.get_rng_state()]
            return [torch.get_device_module(self.device).get_rng_state(self.device)]
        generators = self.generators if isinstance(self.generators, list) else [self.generators]
        return [generator.get_state() for generator in generators]

    def snapshot(self) -> Callable[[], None]:
        """A function that brings everything drawn back to here: from this source, aside, or from torch's own state."""
        held = self.generators if isinstance(self.generators, list) else [self.generators]
        states = [(generator, generator.get_state()) for generator in held if generator is not None]
        device = None if self.device.type == "cpu" else torch.get_device_module(self.device)
        global_state = torch.get_rng_state()
        device_state = device and device.get_rng_state(self.device)
        aside: RandomSource | None = self.__dict__.get("aside")
        restore_aside = None if aside is None else aside.snapshot()

        def restore() -> None:
            for generator, state in states:
                generator.set_state(state)
            torch.set_rng_state(global_state)
            if device is not None:
                device.set_rng_state(device_state, self.device)
            if restore_aside is not None:
                restore_aside()
            else:
                # It is seeded anew, from where this source then stands.
                self.__dict__.pop("aside", None)

        return restore

    def _rows(self, rows_per_image: int, shape: Sequence[int]) -> Tensor:
        if isinstance(self.generators, list):
            return torch.cat([self._draw(rows_per_image, shape, generator) for generator in self.generators])
        return self._draw(self.num_images * rows_per_image, shape, self.generators)

    def _draw(self, rows: int, shape: Sequence[int], generator: torch.Generator | None) -> Tensor:
        device = self.device if generator is None else generator.device
        return sent(randn_tensor((rows, *shape), generator=generator, device=device, dtype=self.dtype), self.device)


def driving_noise(
    random: RandomSource,
    transition: Transition,
    x: Tensor,
    rows_per_image: int,
    interval: Interval,
) -> Tensor:
    """Driving noise of a step for the rows `x [N, ...]`, equally many of each image; a step without noise draws none.

    So that the generators are left as the stock pipeline leaves them.
    """
    if transition.draws_noise(interval):
        return random.normal(rows_per_image, x.shape[1:])
    return torch.zeros_like(x)


def _spawn(generator: torch.Generator) -> torch.Generator:
    """A generator of its own, seeded by what another would draw next."""
    return torch.Generator(generator.device).manual_seed(_seed(generator.clone_state(), generator.device))


def _seed(generator: torch.Generator | None, device: torch.device) -> int:
    # Apple's GPU draws whole numbers of 32 bits.
    return int(torch.randint(2**31 - 1 if device.type == "mps" else 2**63 - 1, (), generator=generator, device=device))

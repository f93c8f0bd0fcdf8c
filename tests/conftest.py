"""Fixtures of all tests.

What takes seconds to import is imported where it is used: the process that hands the tests out to the workers loads
this file before it starts them.
"""

import copy
import gc
import os

import pytest

DEFAULTS = {"height": 16, "width": 16, "num_inference_steps": 3, "max_sequence_length": 12, "true_cfg_scale": 2.0}


def pytest_collection_finish():
    """What the tests import is there to stay: a million objects that no collection of garbage has to look at again."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        import torch

        # Every core has a worker of its own.
        torch.set_num_threads(1)
    gc.collect()
    gc.freeze()


def save_tiny_model(folder, **defaults):
    """A random FLUX under classifier-free guidance, saved with its defaults."""
    from benchmarks.zoo.flux import build_tiny_flux
    from diamond_diffusers import DiamondMapPipeline

    DiamondMapPipeline(
        build_tiny_flux(guidance_embeds=False), {**DEFAULTS, "negative_prompt": "", **defaults}
    ).save_pretrained(folder)
    return folder


def redness(images, prompts):
    """A differentiable reward that costs nothing."""
    return images[:, 0].mean((1, 2)) - images[:, 1:].mean((1, 2, 3))


@pytest.fixture
def redness_reward(monkeypatch):
    """The reward's name in expressions."""
    from diamond_diffusers.rewards import REWARDS

    monkeypatch.setitem(REWARDS._entries, "redness", redness)
    return "redness"


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    import torch

    with torch.random.fork_rng():
        return save_tiny_model(tmp_path_factory.mktemp("tiny_flux"))


@pytest.fixture(scope="session")
def shared_pipe(tiny_folder):
    """The tiny model, read once, for tests that leave it as it is."""
    from diamond_diffusers import DiamondMapPipeline

    pipe = DiamondMapPipeline.from_pretrained(tiny_folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def tiny_pipe(shared_pipe):
    """A tiny model of the test's own, which takes half as long to copy as to read."""
    return copy.deepcopy(shared_pipe)


@pytest.fixture(scope="session")
def gpu():
    """The device of the tests marked `gpu`, which are skipped without one.

    `DIAMOND_TEST_DEVICE=cpu` runs what a CPU can do of them, so that they do not rot.
    """
    import torch

    named = os.environ.get("DIAMOND_TEST_DEVICE")
    found = torch.accelerator.current_accelerator(check_available=True) if named is None else torch.device(named)
    if found is None:
        pytest.skip("there is no GPU")
    # Products are as exact as on a CPU.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    return found


@pytest.fixture
def cudnn_attention():
    """Torch may choose cuDNN's attention, as by default; returns what asks it whether it still may."""
    from torch.backends import cuda

    before = cuda.cudnn_sdp_enabled()
    cuda.enable_cudnn_sdp(True)
    yield cuda.cudnn_sdp_enabled
    cuda.enable_cudnn_sdp(before)

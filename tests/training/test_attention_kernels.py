"""The trainer differentiates no attention of cuDNN, whose backward pass may give NaN in half precision."""

import pytest

from diamond_diffusers.training.trainer import Trainer
from tests.attention_kernels import watched

pytestmark = pytest.mark.usefixtures("cudnn_attention")


@pytest.mark.parametrize(
    ("loss", "further"),
    [
        ("central_difference", ()),
        ("central_difference", ("--gradient_checkpointing",)),
        ("lagrangian", ()),
        ("trajectories", ()),
    ],
)
def test_the_trainer(options, loss, further):
    run = Trainer(options("--loss", loss, "--max_train_steps", 1, *further))
    with watched({"block": run.pipe.transformer.transformer_blocks[0]}) as seen:
        run.run()
    assert seen["block"] and not any(seen["block"])

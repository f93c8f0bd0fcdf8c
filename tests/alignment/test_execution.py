"""How rows are evaluated: which parts are evaluated again on the backward pass."""

import dataclasses
from collections import Counter
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from diamond_diffusers.alignment.execution import Checkpointing, Execution

from ..core.mixture import make_mixture
from ..core.mixture_model import LINEAR, MixtureModel, images_of, law_of, unconditional

PARTS = tuple(field.name for field in dataclasses.fields(Checkpointing))


def gradient(checkpointing: Checkpointing, patch: pytest.MonkeyPatch) -> tuple[Tensor, Counter[str]]:
    """The gradient of a value, and how often each part is evaluated for it."""
    seen: Counter[str] = Counter()

    def counted(part: str, function: Callable[..., object]) -> Callable[..., object]:
        def evaluate(*args: object, **keywords: object) -> object:
            seen[part] += 1
            return function(*args, **keywords)

        return evaluate

    model = MixtureModel(make_mixture(3))
    # A decoder that is affine holds nothing which would have to be evaluated again.
    patch.setattr(model, "decode", lambda z, conditions, preview: images_of(z).square())
    for part, owner, name in zip(PARTS, (model, model, LINEAR), ("predict", "decode", "evaluate"), strict=True):
        patch.setattr(owner, name, counted(part, getattr(owner, name)))
    law = law_of(model, unconditional(), [""], LINEAR)
    law = dataclasses.replace(law, execution=Execution(gradient_checkpointing=checkpointing))
    x = torch.tensor([[0.3, -0.2, 0.5]], requires_grad=True)
    rows = law.rows(x)
    rows.tilt(rows.network.predict(x, 0.7), 0.7).sum().backward()
    return x.grad, seen


@pytest.mark.parametrize("wanted", [(), *((part,) for part in PARTS), PARTS], ids="+".join)
def test_the_parts_that_are_chosen_are_evaluated_twice(wanted, monkeypatch):
    checkpointing = Checkpointing(**dict.fromkeys(wanted, True))
    assert checkpointing.is_complete == (wanted == PARTS)
    checkpointed, seen = gradient(checkpointing, monkeypatch)
    assert seen == {part: 2 if part in wanted else 1 for part in PARTS}
    monkeypatch.undo()
    torch.testing.assert_close(checkpointed, gradient(Checkpointing(), monkeypatch)[0], atol=0, rtol=0)


def test_a_reward_is_evaluated_again_to_its_end():
    """Torch would end the second evaluation by an exception, which a reward might take for one of its own."""
    passed = []

    def score(index: Tensor, images: Tensor) -> Tensor:
        try:
            return images.exp()
        except Exception as error:
            passed.append(error)
            raise

    execution = Execution(gradient_checkpointing=Checkpointing(reward=True))
    x = torch.ones(2, requires_grad=True)
    execution.checkpointed("reward", score, torch.arange(2), x).sum().backward()
    assert passed == []
    torch.testing.assert_close(x.grad, torch.full((2,), torch.e))

"""Checks that are settled together."""

import pytest
import torch

from diamond_diffusers.core.deferred import (
    checks_at_once,
    deferred_checks,
    faults_shown_to,
    own_checks,
    read,
    require,
    settle,
)

YES, NO = torch.tensor([True, True]), torch.tensor([True, False])


def fault(name: str = "fault") -> ValueError:
    return ValueError(name)


def test_outside_of_a_context_checks_are_made_at_once() -> None:
    require(YES, fault)
    with pytest.raises(ValueError, match="fault"):
        require(NO, fault)
    settle()


def test_within_a_context_the_first_fault_is_raised_at_its_end() -> None:
    reached = []
    with pytest.raises(ValueError, match="first"), deferred_checks():
        require(YES, lambda: fault("none"))
        with deferred_checks():
            require(NO, lambda: fault("first"))
        require(NO, lambda: fault("second"))
        reached.append(True)
    assert reached
    # Nothing is left of it.
    with deferred_checks():
        settle()


def test_checks_of_several_flags_are_told_apart() -> None:
    for wrong in range(3):
        with pytest.raises(ValueError, match=f"check {wrong}$"), deferred_checks():
            for number, count in enumerate((3, 1, 2)):
                flags = torch.ones(count, dtype=torch.bool)
                flags[-1] = number != wrong
                require(flags.reshape(1, count), lambda number=number: fault(f"check {number}"))


def test_what_is_read_settles_what_was_checked_before() -> None:
    values = torch.tensor([[1.0, -torch.inf], [torch.nan, 3.0]], dtype=torch.float64)
    torch.testing.assert_close(read(values), values, equal_nan=True)
    with deferred_checks():
        require(YES, fault)
        found = read(values)
        torch.testing.assert_close(found, values, equal_nan=True)
        require(NO, fault)
        with pytest.raises(ValueError, match="fault"):
            read(values)


def test_an_exception_gives_way_to_the_fault_that_may_be_its_cause() -> None:
    with pytest.raises(ValueError, match="fault"), deferred_checks():
        require(NO, fault)
        raise KeyError("what NaN has led to")
    with pytest.raises(KeyError), deferred_checks():
        require(YES, fault)
        raise KeyError("its own")
    # Where memory runs out nothing more is asked of the device.
    with pytest.raises(torch.OutOfMemoryError), deferred_checks():
        require(NO, fault)
        raise torch.OutOfMemoryError("CUDA out of memory")


def test_checks_at_once_settle_those_before_them() -> None:
    with pytest.raises(ValueError, match="before"), deferred_checks():
        require(NO, lambda: fault("before"))
        with checks_at_once():
            pytest.fail("the fault comes first")
    with deferred_checks():
        with pytest.raises(ValueError, match="within"), checks_at_once():
            require(NO, lambda: fault("within"))
        require(YES, fault)


def test_a_call_within_another_has_checks_of_its_own() -> None:
    with pytest.raises(ValueError, match="outer"), deferred_checks():
        require(NO, lambda: fault("outer"))
        with own_checks():
            with pytest.raises(ValueError, match="inner"):
                require(NO, lambda: fault("inner"))
            with pytest.raises(ValueError, match="deferred"), deferred_checks():
                require(NO, lambda: fault("deferred"))
            settle()


def test_faults_are_shown_before_they_are_raised() -> None:
    seen: list[Exception] = []
    with pytest.raises(ValueError, match="shown") as raised, deferred_checks():
        require(YES, fault)
        with faults_shown_to(seen.append):
            require(NO, lambda: fault("shown"))
    assert seen == [raised.value]
    seen.clear()
    with pytest.raises(ValueError, match="not shown"), deferred_checks():
        with faults_shown_to(seen.append):
            require(YES, fault)
        require(NO, lambda: fault("not shown"))
    assert not seen

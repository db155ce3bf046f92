from __future__ import annotations

import pytest

from registry.domain.errors import Reason, RefusalError
from runnerd.rpc.intake import IntakeBudget


def test_reserve__up_to_the_limit_and_not_a_byte_more() -> None:
    budget = IntakeBudget(100)
    with budget.reserve(60), budget.reserve(40):
        assert budget.used_bytes == 100
        with pytest.raises(RefusalError) as refused, budget.reserve(1):
            pytest.fail("one byte too many was taken")
    assert refused.value.reason is Reason.OVERLOADED
    assert budget.used_bytes == 0


def test_share__one_tenant_cannot_hold_what_belongs_to_all() -> None:
    budget = IntakeBudget(100, tenant_bytes=25)
    with budget.share("greedy", 20), budget.share("other", 25):
        with pytest.raises(RefusalError) as refused, budget.share("greedy", 6):
            pytest.fail("more than its share was taken")
        with budget.share("greedy", 5):
            pass
    assert refused.value.reason is Reason.OVERLOADED
    with budget.share("greedy", 25):
        pass


def test_share__is_given_back_after_an_exception() -> None:
    budget = IntakeBudget(100, tenant_bytes=10)
    for _ in range(3):
        with pytest.raises(RuntimeError), budget.share("tenant", 10):
            raise RuntimeError
    with budget.share("tenant", 10):
        pass

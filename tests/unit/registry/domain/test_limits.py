from __future__ import annotations

from dataclasses import asdict, fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.domain.limits import OPERATOR_CEILING, OPERATOR_DEFAULTS, ExecutionLimits, LimitWishes, clamp

_amount = st.integers(min_value=1, max_value=10**12)
_limits = st.builds(ExecutionLimits, **{field.name: _amount for field in fields(ExecutionLimits)})
_wishes = st.builds(LimitWishes, **{field.name: st.none() | _amount for field in fields(LimitWishes)})


@given(defaults=_limits, ceiling=_limits, grant=_wishes, wishes=_wishes)
def test_clamp__never_exceeds_ceiling_or_wish(
    defaults: ExecutionLimits, ceiling: ExecutionLimits, grant: LimitWishes, wishes: LimitWishes
) -> None:
    result = asdict(clamp(defaults=defaults, ceiling=ceiling, grant=grant, wishes=wishes))
    for name, value in result.items():
        assert 1 <= value <= getattr(ceiling, name)
        wished = getattr(wishes, name)
        assert wished is None or value <= wished


@given(defaults=_limits, ceiling=_limits, grant=_wishes, wishes=_wishes)
def test_clamp__a_wish_only_ever_lowers(
    defaults: ExecutionLimits, ceiling: ExecutionLimits, grant: LimitWishes, wishes: LimitWishes
) -> None:
    without = asdict(clamp(defaults=defaults, ceiling=ceiling, grant=grant, wishes=LimitWishes()))
    with_wishes = asdict(clamp(defaults=defaults, ceiling=ceiling, grant=grant, wishes=wishes))
    assert all(with_wishes[name] <= without[name] for name in without)


@pytest.mark.parametrize(
    ("grant", "wish", "expected"),
    [
        (None, None, 5_000),
        (None, 4_999, 4_999),
        (None, 5_001, 5_000),
        (20_000, None, 20_000),
        (20_000, 30_000, 20_000),
        (60_000, None, 30_000),
        (60_000, 60_000, 30_000),
        (100, None, 100),
    ],
)
def test_clamp__wall_time(grant: int | None, wish: int | None, expected: int) -> None:
    result = clamp(
        defaults=OPERATOR_DEFAULTS,
        ceiling=OPERATOR_CEILING,
        grant=LimitWishes(wall_time_ms=grant),
        wishes=LimitWishes(wall_time_ms=wish),
    )
    assert result.wall_time_ms == expected


def test_wishes_and_limits_name_the_same_fields() -> None:
    assert [field.name for field in fields(ExecutionLimits)] == [field.name for field in fields(LimitWishes)]

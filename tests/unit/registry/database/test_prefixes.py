"""A prefix as a range of keys: exactly what begins with it, whatever characters it has."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from registry.repositories.storage import _end_of

CHARACTERS = st.sampled_from(["\x01", "a", "b", "%", "_", "\\", "\ud7ff", "\ue000", "\uffff", "\U0010ffff"]) | st.characters(
    codec="utf-8", exclude_characters="\0"
)
TEXT = st.text(CHARACTERS, max_size=4)


@given(prefix=TEXT, key=st.text(CHARACTERS, min_size=1, max_size=6), begins=st.booleans())
@example(prefix="\ud7ff", key="\ue000", begins=False)
@example(prefix="a\U0010ffff", key="b", begins=False)
@example(prefix="\U0010ffff", key="\U0010ffff" * 250, begins=True)
def test_range__holds_exactly_what_begins_with_the_prefix(prefix: str, key: str, begins: bool) -> None:
    key = (prefix + key)[:256] if begins else key
    # In the order of bytes, which is that of the database's collation "C".
    low, high, found = (text.encode() for text in (prefix, _end_of(prefix), key))
    assert (low <= found < high) == key.startswith(prefix)

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apps.consumer.browsing.cursors import read_offsets, write_offsets


@given(st.dictionaries(st.integers(0, 999_999_999), st.integers(0, 10**18 - 1)))
def test_places_are_read_as_they_were_written(offsets: dict[int, int]) -> None:
    assert read_offsets(write_offsets(offsets)) == offsets


PLACES = st.lists(st.tuples(st.integers(0, 10**10), st.integers(0, 10**19)), min_size=1, max_size=5)


@given(st.text() | PLACES.map(lambda places: "_".join(f"{partition}-{offset}" for partition, offset in places)))
def test_any_text_names_places_or_is_refused(text: str) -> None:
    try:
        offsets = read_offsets(text)
    except ValueError:
        return
    assert read_offsets(write_offsets(offsets)) == offsets


@pytest.mark.parametrize(
    "text", ["0", "0-", "-1-0", "0-1_", "_0-1", "0-1_0-2", "0-1,1-2", "0-x", "0-1\n", "1-" + "9" * 19, "\u0661-1"]
)
def test_what_is_no_cursor_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a cursor"):
        read_offsets(text)

import pytest
from hypothesis import given
from hypothesis import strategies as st

from threadmill.errors import InvalidRequest
from threadmill.schemas.queries import RESULT_CONTENT, FilesPage, Page, include


def test_a_page_has_the_original_defaults() -> None:
    assert Page.parse({}, "msg") == Page(limit=20, order="desc", after=None, before=None)
    assert Page.parse({"limit": "", "order": "", "after": "", "x": "y"}, "msg") == Page()
    assert FilesPage.parse({}) == FilesPage(limit=10_000, order="desc")


def test_a_page_is_what_was_asked_for() -> None:
    query = {"limit": "100", "order": "asc", "after": "msg_a", "before": "msg_b"}
    assert Page.parse(query, "msg") == Page(100, "asc", "msg_a", "msg_b")
    files = FilesPage.parse({"after": "file-a", "purpose": "vision", "before": "x"})
    assert files == FilesPage(after="file-a", purpose="vision")


@pytest.mark.parametrize(
    ("query", "code", "text"),
    [
        (
            {"limit": "101"},
            "integer_above_max_value",
            "Invalid 'limit': integer above maximum value. Expected a value <= 100, but got 101 "
            "instead.",
        ),
        (
            {"limit": "0"},
            "integer_below_min_value",
            "Invalid 'limit': integer below minimum value. Expected a value >= 1, but got 0 "
            "instead.",
        ),
        (
            {"limit": "9" * 5000},
            "integer_above_max_value",
            "Invalid 'limit': integer above maximum value. Expected a value <= 100, but got "
            + "9" * 64
            + "... instead.",
        ),
        (
            {"limit": "ten"},
            "invalid_type",
            "Invalid type for 'limit': expected an integer, but got a string instead.",
        ),
        (
            {"limit": "١"},
            "invalid_type",
            "Invalid type for 'limit': expected an integer, but got a string instead.",
        ),
        (
            {"order": "up"},
            "invalid_value",
            "Invalid value: 'up'. Supported values are: 'asc' and 'desc'.",
        ),
        (
            {"after": "run_a"},
            "invalid_value",
            "Invalid 'after': 'run_a'. Expected an ID that begins with 'msg'.",
        ),
    ],
)
def test_a_fault_is_told_in_the_original_words(query: dict[str, str], code: str, text: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        Page.parse(query, "msg")
    error = caught.value
    assert (error.message, error.param, error.code) == (text, next(iter(query)), code)


def test_include_is_read_under_both_names() -> None:
    assert include([]) == frozenset()
    for name in ("include", "include[]"):
        assert include([(name, RESULT_CONTENT), (name, RESULT_CONTENT)]) == {RESULT_CONTENT}


def test_include_knows_one_value() -> None:
    with pytest.raises(InvalidRequest) as caught:
        include([("include[]", RESULT_CONTENT), ("include[]", "x")])
    assert caught.value.message == f"Invalid value: 'x'. Value must be '{RESULT_CONTENT}'."
    assert caught.value.param == "include[1]"


@given(
    st.dictionaries(
        st.sampled_from(["limit", "order", "after", "before", "purpose"]),
        st.text(alphabet=st.characters()) | st.integers().map(str) | st.just("msg_\0"),
    )
)
def test_no_query_ends_in_anything_but_a_page_or_a_refusal(query: dict[str, str]) -> None:
    for page in (Page, FilesPage):
        try:
            page.parse(query, "msg")
        except InvalidRequest as error:
            error.message.encode()

"""Text of others as HTML: what is kept of it, and that nothing else is."""

from html.parser import HTMLParser
from typing import Any

import pytest
from markupsafe import Markup

from dashboard.hostile import HOSTILE
from threadmill.dashboard import markdown

Json = dict[str, Any]


class Tags(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs


def render(text: str, *annotations: Json) -> str:
    return str(
        markdown.render(text, list(annotations), lambda at: Markup(f'<a class="m">{at}</a>'))
    )


def citation(text: str, marker: str, *, at: int | None = None) -> Json:
    start = text.index(marker) if at is None else at
    return {
        "type": "file_citation",
        "text": marker,
        "start_index": start,
        "end_index": start + len(marker),
        "file_citation": {"file_id": "file-a"},
    }


def path(text: str, link: str, file_id: str = "file-abc") -> Json:
    start = text.index(link)
    return {
        "type": "file_path",
        "text": link,
        "start_index": start,
        "end_index": start + len(link),
        "file_path": {"file_id": file_id},
    }


def test_what_models_write_is_rendered() -> None:
    html = render("# Head\n\n**bold** `code` ~~gone~~\n\n| a |\n|---|\n| b |\n\n1. one\n\n> said")
    tags = Tags(html).tags
    for tag in ("h1", "strong", "code", "s", "table", "th", "td", "ol", "li", "blockquote"):
        assert tag in tags


def test_links_lead_to_the_web_and_tell_nobody_where_from() -> None:
    html = render("[a](https://example.com/b?c=d) <mailto:a@example.com>")
    assert Tags(html).attributes == [
        ("href", "https://example.com/b?c=d"),
        ("rel", "noopener noreferrer nofollow"),
        ("href", "mailto:a@example.com"),
        ("rel", "noopener noreferrer nofollow"),
    ]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_text(text: str) -> None:
    for html in (render(text), render(f"- *a*\n- {text}")):
        found = Tags(html)
        assert not {"script", "img", "svg", "iframe", "form", "style", "meta", "base"} & {
            *found.tags
        }
        assert {name for name, _ in found.attributes} <= {"href", "rel"}
        assert not [value for name, value in found.attributes if name == "href"]


def test_citations_become_marks() -> None:
    text = "So it is【4:0†a.pdf】, and so【4:1†b.pdf】."
    html = render(text, citation(text, "【4:0†a.pdf】"), citation(text, "【4:1†b.pdf】"))
    assert html == '<p>So it is<a class="m">0</a>, and so<a class="m">1</a>.</p>\n'


@pytest.mark.parametrize(
    "text",
    [
        "[a](https://example.com/【4:0†a】)",
        '[a](https://example.com/ "【4:0†a】")',
        "<https://example.com/【4:0†a】>",
        "```【4:0†a】\ncode\n```",
    ],
)
def test_a_mark_is_never_put_into_an_attribute(text: str) -> None:
    found = Tags(render(text, citation(text, "【4:0†a】")))
    assert all("class" not in (value or "") for name, value in found.attributes if name == "href")
    assert all("\ue000" not in (value or "") for _, value in found.attributes)


def test_nobody_can_write_a_mark() -> None:
    text = "\ue0000\ue001 【4:0†a】 \ue0001\ue001"
    html = render(text, citation(text, "【4:0†a】"))
    assert html.count('class="m"') == 1
    assert "\ue000" not in html


def test_links_of_code_lead_to_the_file() -> None:
    text = "See [plot](sandbox:/mnt/data/plot.png), or sandbox:/mnt/data/a]b.csv"
    html = render(
        text,
        path(text, "sandbox:/mnt/data/plot.png"),
        path(text, "sandbox:/mnt/data/a]b.csv", "file-csv"),
    )
    hrefs = [value for name, value in Tags(html).attributes if name == "href"]
    assert hrefs == ["/ui/files/file-abc", "/ui/files/file-csv"]
    assert ">plot<" in html
    assert ">a_b.csv<" in html


@pytest.mark.parametrize("target", ["file0123456789abcdef:file-abc", "file:file-abc", "/ui/x"])
def test_nobody_can_write_such_a_link(target: str) -> None:
    assert not [name for name, _ in Tags(render(f"[a]({target})")).attributes if name == "href"]


def test_annotations_that_do_not_fit_the_text_are_passed_over() -> None:
    text = "short"
    marks = [citation(text, "x" * 50, at=2), citation(text, "or", at=2), citation(text, "r", at=3)]
    assert render(text, *marks) == '<p>sh<a class="m">1</a>t</p>\n'


def table(columns: int, rows: int, before: str = "") -> str:
    lines = ["|a" * columns, "|-" * columns, *["a"] * rows]
    return "".join(f"{before}{line}\n" for line in lines)


@pytest.mark.parametrize("before", ["", "> ", "- > "])
def test_a_table_that_would_be_huge_is_shown_as_it_is(before: str) -> None:
    html = render(table(300, 1_000, before))
    assert html.startswith('<pre tabindex="0">')
    assert "<td>" not in html


def test_a_long_table_is_one() -> None:
    assert render(table(10, 400)).count("<td>") == 4_000


def test_long_text_is_shown_as_it_is() -> None:
    html = render("<b>" + "*a* " * 10_000)
    assert html.startswith('<pre tabindex="0">&lt;b&gt;*a* ')

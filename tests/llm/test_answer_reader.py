import json
from typing import Any

import pytest

from threadmill.llm.stream import AnswerReader, Chunk, ToolCallDelta, UpstreamError, Usage


def event(delta: Any = None, finish_reason: str | None = None, **fields: Any) -> bytes:
    choices = [{"index": 0, "delta": delta, "finish_reason": finish_reason}]
    return b"data: " + json.dumps({"choices": choices, **fields}).encode() + b"\n\n"


def calls(*fragments: dict[str, Any]) -> bytes:
    return event({"tool_calls": list(fragments)})


def fragment(
    index: int | None = None,
    call_id: str | None = None,
    name: str | None = None,
    arguments: Any = None,
) -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    return {"index": index, "id": call_id, "type": "function", "function": function}


DONE = b"data: [DONE]\n\n"
STOP = event({}, "stop")


def read(*pieces: bytes) -> list[Chunk]:
    reader = AnswerReader()
    chunks = [chunk for piece in pieces for chunk in reader.feed(piece)]
    return chunks + reader.end()


def text_of(chunks: list[Chunk]) -> str:
    return "".join(chunk.text for chunk in chunks)


def calls_of(chunks: list[Chunk]) -> list[tuple[str, str]]:
    """Name and arguments of each call, after the promises about ids, names and indices held."""
    whole: list[list[str]] = []
    ids: set[str] = set()
    for delta in (delta for chunk in chunks for delta in chunk.tool_calls):
        if delta.index == len(whole):
            assert delta.id
            assert delta.name
            ids.add(delta.id)
            whole.append([delta.name, ""])
        else:
            assert delta.id is None
            assert delta.name is None
        whole[delta.index][1] += delta.arguments
    assert len(ids) == len(whole)
    return [(name, arguments) for name, arguments in whole]


def test_text_arrives_chunk_by_chunk_and_the_last_chunk_tells_the_end() -> None:
    usage = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
    chunks = read(
        event({"role": "assistant", "content": ""}),
        event({"content": "Hel"}),
        event({"content": "lo"}),
        STOP,
        b"data: " + json.dumps({"choices": [], "usage": usage}).encode() + b"\n\n",
        DONE,
    )
    assert chunks == [
        Chunk("Hel"),
        Chunk("lo"),
        Chunk(finish_reason="stop", usage=Usage(5, 2, 7)),
    ]


@pytest.mark.parametrize("newline", [b"\n", b"\r\n"])
def test_a_stream_may_be_split_at_every_byte(newline: bytes) -> None:
    body = b": hello\n\n" + event({"content": "Zoë 🎉"})
    body += (
        'id: 7\nevent: message\ndata:{"choices":[\ndata: {"delta":{"content":"né"}}]}\n\n'.encode()
    )
    body = (body + STOP + DONE).replace(b"\n", newline)
    whole = read(body)
    assert text_of(whole) == "Zoë 🎉né"
    for cut in range(len(body)):
        assert read(body[:cut], body[cut:]) == whole
    assert read(*(body[at : at + 1] for at in range(len(body)))) == whole


def test_events_without_empty_lines_between_are_read() -> None:
    body = (event({"content": "a"}) + event({"content": "b"}) + STOP).replace(b"\n\n", b"\n")
    assert text_of(read(body)) == "ab"


def test_a_last_line_without_newline_is_read() -> None:
    assert text_of(read(event({"content": "a"}, "stop").rstrip())) == "a"


def test_what_follows_done_is_not_looked_at() -> None:
    assert text_of(read(event({"content": "a"}), DONE, event({"content": "b"}))) == "a"


def test_an_end_without_finish_reason_is_a_dropped_connection() -> None:
    with pytest.raises(UpstreamError, match="dropped"):
        read(event({"content": "a"}))
    with pytest.raises(UpstreamError, match="dropped"):
        read(event({"content": "a"}), b'data: {"choi')
    with pytest.raises(UpstreamError, match="dropped"):
        read()


def test_done_without_finish_reason_is_an_end() -> None:
    assert read(event({"content": "a"}), DONE)[-1].finish_reason == "stop"


@pytest.mark.parametrize(
    ("told", "understood"),
    [
        ("stop", "stop"),
        ("eos", "stop"),
        ("STOP", "stop"),
        ("length", "length"),
        ("max_tokens", "length"),
        ("content_filter", "content_filter"),
    ],
)
def test_finish_reasons_are_brought_to_four(told: str, understood: str) -> None:
    chunks = read(event({"content": "a"}), event({}, told), event({}, None), DONE)
    assert [chunk.finish_reason for chunk in chunks] == [None, understood]


@pytest.mark.parametrize("told", ["tool_calls", "function_call", "stop"])
def test_an_answer_with_calls_ends_as_such_whatever_the_server_says(told: str) -> None:
    chunks = read(calls(fragment(0, "a", "f", "{}")), event({}, told), DONE)
    assert chunks[-1].finish_reason == "tool_calls"


def test_calls_announced_but_never_made_are_a_stop() -> None:
    assert read(event({"content": "a"}), event({}, "tool_calls"))[-1].finish_reason == "stop"


def test_a_plain_json_body_is_an_answer() -> None:
    message = {
        "content": "Hello",
        "tool_calls": [{"id": "a", "function": {"name": "f", "arguments": "{}"}}],
    }
    body = json.dumps(
        {
            "choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}],
            "usage": {"prompt_tokens": 1, "completion_tokens": 2},
        },
        indent=2,
    ).encode()
    for chunks in (read(body), read(b"\n", *(body[at : at + 1] for at in range(len(body))))):
        assert text_of(chunks) == "Hello"
        assert calls_of(chunks) == [("f", "{}")]
        assert chunks[-1] == Chunk(finish_reason="tool_calls", usage=Usage(1, 2, 3))


def test_a_whole_message_in_the_stream_counts_unless_it_repeats_what_was_said() -> None:
    whole = {"choices": [{"message": {"content": "Hello"}, "finish_reason": "stop"}]}
    line = b"data: " + json.dumps(whole).encode() + b"\n\n"
    assert text_of(read(line)) == "Hello"
    assert text_of(read(event({"content": "Hello"}), line)) == "Hello"


def test_content_as_a_list_of_parts() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}, {"type": "other"}]
    assert text_of(read(event({"content": parts}), STOP)) == "ab"


def test_reasoning_is_not_text_and_refusals_are_apart() -> None:
    chunks = read(
        event({"role": "assistant", "reasoning_content": "hmm", "content": None}),
        event({"refusal": "No."}),
        STOP,
    )
    assert chunks[:-1] == [Chunk(refusal="No.")]


def test_of_several_choices_only_the_first_is_read() -> None:
    both = {"choices": [{"index": 1, "delta": {"content": "b"}}, {"delta": {"content": "a"}}]}
    other = {"choices": [{"index": 1, "delta": {}, "finish_reason": "length"}]}
    lines = (b"data: " + json.dumps(one).encode() + b"\n\n" for one in (both, other))
    chunks = read(*lines, STOP)
    assert text_of(chunks) == "a"
    assert chunks[-1].finish_reason == "stop"


@pytest.mark.parametrize(
    "odd",
    [
        b"data: {}\n\n",
        b'data: {"choices": null}\n\n',
        b'data: {"choices": []}\n\n',
        b'data: {"choices": [null, 3]}\n\n',
        b'data: {"choices": [{"delta": null}]}\n\n',
        b'data: {"choices": [{"delta": {"content": 7, "tool_calls": "x"}}]}\n\n',
        b'data: {"choices": [{"delta": {"tool_calls": [null, {"function": null}]}}]}\n\n',
        b"data: null\n\ndata:\n\ndata: 5\n\n",
        b"retry: 100\n\n:\n\n\n\n",
    ],
)
def test_events_that_say_nothing_are_skipped(odd: bytes) -> None:
    assert text_of(read(odd, event({"content": "a"}), odd, STOP)) == "a"


def test_running_usage_counts_once_and_last() -> None:
    usage = {"prompt_tokens": 9, "completion_tokens": 1, "total_tokens": 10}
    more = {
        **usage,
        "completion_tokens": 2,
        "total_tokens": 11,
        "prompt_tokens_details": {"cached_tokens": 8},
        "completion_tokens_details": {"reasoning_tokens": 1},
    }
    chunks = read(event({"content": "a"}, usage=usage), event({"content": "b"}, "stop", usage=more))
    assert [chunk.usage for chunk in chunks] == [None, None, Usage(9, 2, 11, 8, 1)]


def test_text_that_postgres_cannot_store_is_replaced() -> None:
    chunks = read(
        b'data: {"choices":[{"delta":{"content":"a\\u0000b\\ud83d"}}]}\n\n',
        b'data: {"choices":[{"delta":{"content":"\\ud83d\\ude00\xff"}}]}\n\n',
        STOP,
    )
    assert text_of(chunks) == "a\ufffdb\ufffd😀\ufffd"


def test_a_line_and_an_event_have_a_limit() -> None:
    megabyte = b"a" * 1024**2
    with pytest.raises(UpstreamError, match="a line of more than 8388608 bytes"):
        read(b"data: ", *[megabyte] * 9)
    with pytest.raises(UpstreamError, match="an event of over 8388608 bytes"):
        read(*[b"data: " + megabyte + b"\n"] * 9)


@pytest.mark.parametrize(
    ("line", "message", "status"),
    [
        (b'data: {"error": {"message": "no memory", "code": 500}}', "no memory", 500),
        (b'data: {"error": {"message": "slow down", "type": "rate_limit_error"}}', "slow", 429),
        (b'data: {"error": "overloaded"}', "overloaded", None),
        (b'data: {"object": "error", "message": "too long", "code": 400}', "too long", 400),
        (b'event: error\ndata: {"message": "broken"}', "broken", None),
        (b'error: {"code": 503, "message": "loading"}', "loading", 503),
        (b'{"error": {"message": "bare"}}', "bare", None),
        (b'data: {"choices": [{"finish_reason": "error", "error": {"message": "x"}}]}', "x", None),
    ],
)
def test_errors_inside_a_stream_are_raised(line: bytes, message: str, status: int | None) -> None:
    for before in (b"", event({"content": "a"})):
        with pytest.raises(UpstreamError, match=message) as raised:
            read(before + line + b"\n\n")
        assert raised.value.status == status


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"<html>Bad gateway</html>", "not an event stream: <html>Bad"),
        (b'{"message": "no such deployment"}', "no such deployment"),
        (b'{"choices": [], "detail": "nope"}', "nope"),
        (b'[{"error": {"message": "in a list"}}]', "in a list"),
        (b"data: oops\n\n", "not JSON: oops"),
    ],
)
def test_bodies_that_are_no_answer_say_what_they_are(body: bytes, message: str) -> None:
    with pytest.raises(UpstreamError, match=message):
        read(body)


def test_a_call_has_id_and_name_once_and_keeps_its_fragments() -> None:
    chunks = read(
        calls(fragment(0, "call_a", "weather", "")),
        calls(fragment(0, None, None, '{"city":')),
        calls(fragment(0, None, None, '"Paris"}')),
        STOP,
    )
    assert [chunk.tool_calls for chunk in chunks[:-1]] == [
        [ToolCallDelta(0, "call_a", "weather", "")],
        [ToolCallDelta(0, None, None, '{"city":')],
        [ToolCallDelta(0, None, None, '"Paris"}')],
    ]


BOTH = [("f", '{"a":1}'), ("g", '{"b":2}')]
TWICE = [("f", '{"a":1}'), ("f", '{"b":2}')]


@pytest.mark.parametrize(
    ("fragments", "expected"),
    [
        pytest.param(
            [
                (0, "a", "f", '{"a"'),
                (1, "b", "g", '{"b"'),
                (0, None, None, ":1}"),
                (1, "", "", ":2}"),
            ],
            BOTH,
            id="taking turns",
        ),
        pytest.param(
            [
                (0, "a", "f", '{"a"'),
                (0, "a", "f", ":1}"),
                (1, "b", "g", '{"b"'),
                (1, "b", "g", ":2}"),
            ],
            BOTH,
            id="id and name repeated",
        ),
        pytest.param(
            [(0, None, "f", '{"a"'), (0, "", None, ":1}"), (1, "", "g", '{"b":2}')],
            BOTH,
            id="no ids",
        ),
        pytest.param(
            [(0, "x", "f", '{"a":1}'), (1, "x", "g", '{"b":2}')], BOTH, id="one id for all"
        ),
        pytest.param(
            [(0, "a", "f", '{"a":1}'), (0, "b", "g", '{"b":2}')], BOTH, id="always index 0"
        ),
        pytest.param(
            [(0, "a", "f", '{"a":1}'), (0, "b", "f", '{"b":2}')], TWICE, id="index 0, same name"
        ),
        pytest.param(
            [(0, "", "f", '{"a":1}'), (0, "", "f", '{"b":2}')], TWICE, id="index 0, no ids"
        ),
        pytest.param(
            [(None, "a", "f", '{"a":1}'), (None, "b", "f", '{"b":2}')], TWICE, id="no index"
        ),
        pytest.param(
            [(None, None, "f", '{"a":1}'), (None, None, "f", '{"b":2}')],
            TWICE,
            id="no index, no ids",
        ),
        pytest.param(
            [
                (None, "a", "f", '{"a"'),
                (None, "b", "g", '{"b"'),
                (None, "a", None, ":1}"),
                (None, "b", None, ":2}"),
            ],
            BOTH,
            id="no index, ids repeated",
        ),
        pytest.param(
            [(0, "a", "f", '{"a"'), (0, "other", None, ":1}"), (5, "b", "g", '{"b":2}')],
            BOTH,
            id="a new id for each fragment, indices with gaps",
        ),
        pytest.param(
            [(0, "a", None, '{"a"'), (1, "b", "g", '{"b":2}'), (0, None, "f", ":1}")],
            [("g", '{"b":2}'), ("f", '{"a":1}')],
            id="a name that comes late",
        ),
        pytest.param(
            [(0, "a", "f", {"a": 1}), (1, "b", "g", {"b": 2})], BOTH, id="arguments as objects"
        ),
        pytest.param([(0, "a", "f", None)], [("f", "")], id="arguments null"),
    ],
)
def test_calls_are_put_together(
    fragments: list[tuple[Any, ...]], expected: list[tuple[str, str]]
) -> None:
    parts = [fragment(*one) for one in fragments]
    assert calls_of(read(*(calls(one) for one in parts), STOP)) == expected
    assert calls_of(read(calls(*parts), STOP)) == expected


def test_missing_ids_are_made_up() -> None:
    chunks = read(calls(fragment(0, "", "f", "{}"), fragment(1, None, "g", "{}")), STOP)
    made = [delta.id for delta in chunks[0].tool_calls]
    assert all(one and one.startswith("call_") for one in made)


def test_a_call_without_any_name_is_an_error() -> None:
    with pytest.raises(UpstreamError, match="without naming"):
        read(calls(fragment(0, "a", None, "{}")), STOP)


def test_the_old_function_call_is_a_tool_call() -> None:
    chunks = read(
        event({"function_call": {"name": "f", "arguments": '{"a"'}}),
        event({"function_call": {"arguments": ":1}"}}),
        event({}, "function_call"),
    )
    assert calls_of(chunks) == [("f", '{"a":1}')]

"""Requests as people repeat them in a shell. Keys are never in them."""

import shlex

from threadmill.store.rows import Thread, Turn

_KEY = '-H "Authorization: Bearer $OPENAI_API_KEY"'
_JSON = '-H "Content-Type: application/json"'


def of_turn(turn: Turn, body: bytes) -> str | None:
    """What the model was sent, to the endpoint that it was sent to last; None if it never was."""
    if not (base_url := turn.record["upstream_base_url"]):
        return None
    url = shlex.quote(f"{base_url.rstrip('/')}/chat/completions")
    # Not as an argument: those may not be long. JSON on one line, so its end cannot be in it.
    return (
        f"curl -N {url} \\\n  {_KEY} \\\n  {_JSON} \\\n  --data-binary @- <<'END_OF_JSON'\n"
        f"{body.decode()}\nEND_OF_JSON\n"
    )


def of_thread(thread: Thread, server: str) -> str:
    url = shlex.quote(f"{server.rstrip('/')}/v1/threads/{thread.id}")
    return f'curl {url} \\\n  {_KEY} \\\n  -H "OpenAI-Beta: assistants=v2"\n'

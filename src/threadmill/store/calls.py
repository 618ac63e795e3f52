"""Calls of models outside of any run, in the usage of their project."""

import time

from threadmill.store import query
from threadmill.store.database import Connection


async def count(
    connection: Connection,
    project_id: str,
    model: str,
    *,
    prompt_tokens: int,
    completion_tokens: int,
    cached_tokens: int,
    reasoning_tokens: int,
) -> None:
    await query.execute(
        connection,
        "INSERT INTO usage_daily AS daily (project_id, day, assistant_id, model, runs,"
        " prompt_tokens, completion_tokens, cached_tokens, reasoning_tokens)"
        " VALUES (%(project_id)s, (to_timestamp(%(now)s) AT TIME ZONE 'UTC')::date, '', %(model)s,"
        " 0, %(prompt)s, %(completion)s, %(cached)s, %(reasoning)s)"
        " ON CONFLICT (project_id, day, assistant_id, model) DO UPDATE SET"
        " prompt_tokens = daily.prompt_tokens + excluded.prompt_tokens,"
        " completion_tokens = daily.completion_tokens + excluded.completion_tokens,"
        " cached_tokens = daily.cached_tokens + excluded.cached_tokens,"
        " reasoning_tokens = daily.reasoning_tokens + excluded.reasoning_tokens",
        {
            "project_id": project_id,
            "model": model,
            "now": int(time.time()),
            "prompt": prompt_tokens,
            "completion": completion_tokens,
            "cached": cached_tokens,
            "reasoning": reasoning_tokens,
        },
    )

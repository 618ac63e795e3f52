"""The promise we make: the official SDK, unchanged, over a socket.

The newest Python SDK here; its older generations and those of Node in `make sdk-matrix`.
"""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import SecretStr

from conftest import Serve
from sdk.matrix import conversation, replies
from threadmill.demo.scripted_model import ScriptedModel

KEY = "sk-of-the-tests"


@pytest.mark.parametrize("flow", conversation.FLOWS, ids=lambda flow: flow.__name__)
async def test_newest_sdk(flow: Callable[[Any], Any], serve: Serve, model: ScriptedModel) -> None:
    model.answer = replies.answer
    async with serve(api_keys=[SecretStr(KEY)]) as server:
        await asyncio.to_thread(conversation.play, flow, f"{server.address}/v1", KEY)

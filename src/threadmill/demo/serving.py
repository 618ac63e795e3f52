"""`threadmill demo --serve`: a server that is full already, for whoever wants to look around.

Only the model is a stand-in, and says so. Everything lies in a temporary folder, and goes with it.
"""

import asyncio
import tempfile
from collections.abc import Callable
from pathlib import Path

from pydantic import SecretStr

from threadmill.app import served, until_the_end
from threadmill.demo.company import CONVERSATIONS, EXCHANGES
from threadmill.demo.filling import Filling
from threadmill.demo.stand_in import LARGE, StandIn
from threadmill.demo.transcript import PREFIX, one_interrupt, sandbox_fault
from threadmill.settings import Settings

Say = Callable[[str], None]

PORT = 8000

WHERE_IT_IS = """\
The dashboard:  {address}/ui/
  sign in with  {key}
The API:        {address}/v1   (base_url; the same key)

The model is a scripted stand-in: it answers by rule and is no language model. All else is real.
A month of conversations is being put in ...\
"""
IT_IS_FULL = """\
It is all there: {conversations} conversations, and one that goes on.
Ctrl-C ends it, and nothing is left behind.\
"""
NO_CODE = "No code can be run here ({reason}), so the chart is a picture that was there before."


async def serve(say: Say, port: int) -> str | None:
    """Until a signal comes, or a part of the process dies: then say which."""
    with one_interrupt() as no_more, tempfile.TemporaryDirectory(prefix=PREFIX) as folder:
        async with StandIn(EXCHANGES) as model, served(_settings(Path(folder), model, port)) as it:
            reason = await sandbox_fault(it)
            model.runs_code = reason is None
            filling = Filling(it, model, has_sandbox=reason is None)
            say(WHERE_IT_IS.format(address=it.address, key=await filling.make_key("This demo")))
            if reason is not None:
                say(NO_CODE.format(reason=reason))
            async with filling.clients():
                await filling.fill()
                say(IT_IS_FULL.format(conversations=len(CONVERSATIONS)))
                live = asyncio.create_task(filling.keep_one_going())
                try:
                    return await until_the_end(it.worker)
                finally:
                    no_more()
                    live.cancel()
                    # It may have ended before: whoever looks around may delete what it uses.
                    await asyncio.gather(live, return_exceptions=True)


def _settings(folder: Path, model: StandIn, port: int) -> Settings:
    # Made like this, Settings asks neither the environment nor threadmill.toml: the demo is the
    # same on every machine.
    return Settings.model_construct(
        data_dir=folder,
        port=port,
        model_base_url=model.base_url,
        model_api_key=SecretStr("scripted"),  # or it would be looked for in OPENAI_API_KEY
        model_max_retry_wait_s=0.01,  # it refuses on purpose; `clock` tells of longer waits
        embedding_model=LARGE,
        tokenizer_download_timeout_s=0,  # the demo asks nobody for anything
        run_expires_after_s=24 * 3600,  # what waits for an answer is still there after lunch
        drain_timeout_s=0,
        sandbox_warm_sessions=0,
    )

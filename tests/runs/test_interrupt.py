"""An interrupt strikes where an execution waits, and nowhere else."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from threadmill.runs.interrupt import Interrupt, Interrupted, Reason


async def test_a_reason_from_before_strikes_at_the_beginning() -> None:
    interrupt = Interrupt()
    interrupt.fire(Reason.CANCEL)
    with pytest.raises(Interrupted) as raised, interrupt.may_strike():
        pytest.fail("the block was entered")
    assert raised.value.reason is Reason.CANCEL


async def test_it_strikes_a_block_that_waits() -> None:
    interrupt = Interrupt()
    cleaned = False

    async def work() -> None:
        nonlocal cleaned
        with interrupt.may_strike():
            try:
                await asyncio.Event().wait()
            finally:
                cleaned = True

    assert await _struck(work, interrupt) is Reason.EXPIRE
    assert cleaned


async def test_what_comes_after_a_strike_can_wait_in_peace() -> None:
    """The outcome is still to be written."""
    interrupt = Interrupt()
    written = False

    async def work() -> None:
        nonlocal written
        try:
            with interrupt.may_strike():
                await asyncio.Event().wait()
        except Interrupted:
            await asyncio.sleep(0)
            async with asyncio.timeout(30):  # counts cancellations too
                await asyncio.sleep(0.001)
            written = True
            task = asyncio.current_task()
            assert task is not None
            assert task.cancelling() == 0
            raise

    assert await _struck(work, interrupt) is Reason.EXPIRE
    assert written


async def test_it_does_not_strike_outside_of_its_blocks() -> None:
    interrupt = Interrupt()
    reached = asyncio.Event()
    go_on = asyncio.Event()

    async def work() -> str:
        reached.set()
        await go_on.wait()  # a write, say
        return "written"

    task = asyncio.create_task(work())
    await reached.wait()
    interrupt.fire(Reason.CANCEL)
    await asyncio.sleep(0)
    go_on.set()
    assert await task == "written"


async def test_the_first_reason_stays() -> None:
    interrupt = Interrupt()
    interrupt.fire(Reason.EXPIRE)
    interrupt.fire(Reason.CANCEL)
    assert interrupt.reason is Reason.EXPIRE


async def test_it_strikes_in_the_moment_in_which_the_wait_is_over() -> None:
    """The event has come and the task is about to run again: the interrupt still counts."""
    interrupt = Interrupt()
    came = asyncio.Event()
    waits = asyncio.Event()

    async def work() -> None:
        with interrupt.may_strike():
            waits.set()
            await came.wait()
        pytest.fail("it went on")

    task = asyncio.create_task(work())
    await waits.wait()
    came.set()
    interrupt.fire(Reason.CANCEL)
    with pytest.raises(Interrupted):
        await task
    assert task.cancelling() == 0


async def test_a_block_that_never_waited_is_struck_at_its_end() -> None:
    interrupt = Interrupt()

    async def work() -> None:
        with interrupt.may_strike():
            interrupt.fire(Reason.CANCEL)

    with pytest.raises(Interrupted):
        await asyncio.create_task(work())


async def test_who_is_cancelled_from_outside_stays_cancelled() -> None:
    interrupt = Interrupt()
    waits = asyncio.Event()

    async def work() -> None:
        with interrupt.may_strike():
            waits.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await waits.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()


@pytest.mark.parametrize("outer_first", [True, False])
async def test_a_cancellation_from_outside_wins_over_an_interrupt(outer_first: bool) -> None:
    interrupt = Interrupt()
    waits = asyncio.Event()

    async def work() -> None:
        with interrupt.may_strike():
            waits.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await waits.wait()
    if outer_first:
        task.cancel()
        interrupt.fire(Reason.CANCEL)
    else:
        interrupt.fire(Reason.CANCEL)
        task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_an_error_of_the_block_is_not_hidden() -> None:
    interrupt = Interrupt()
    with pytest.raises(ValueError, match="mine"), interrupt.may_strike():
        raise ValueError("mine")


async def test_a_timeout_within_the_block_is_told_from_an_interrupt() -> None:
    interrupt = Interrupt()

    async def work() -> str:
        with interrupt.may_strike():
            try:
                async with asyncio.timeout(0.001):
                    await asyncio.Event().wait()
            except TimeoutError:
                return "timed out"
        return "?"

    assert await asyncio.create_task(work()) == "timed out"

    async def work_longer() -> None:
        with interrupt.may_strike():
            async with asyncio.timeout(60):
                await asyncio.Event().wait()

    assert await _struck(work_longer, interrupt) is Reason.EXPIRE


async def _struck(work: Callable[[], Awaitable[None]], interrupt: Interrupt) -> Reason:
    task = asyncio.ensure_future(work())
    await asyncio.sleep(0)
    interrupt.fire(Reason.EXPIRE)
    with pytest.raises(Interrupted) as raised:
        await task
    return raised.value.reason

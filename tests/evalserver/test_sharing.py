"""Equal requests at once: one piece of work, given up when nobody waits for it."""

from __future__ import annotations

import asyncio

import pytest

from evalserver.sharing import Shared


class Work:
    """Counts how often it was begun and given up."""

    def __init__(self) -> None:
        self.begun = self.given_up = 0
        self.may_end = asyncio.Event()

    async def __call__(self) -> int:
        self.begun += 1
        number = self.begun
        try:
            await self.may_end.wait()
        except asyncio.CancelledError:
            self.given_up += 1
            raise
        return number


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_equal_requests_are_worked_at_once() -> None:
    async def scenario() -> None:
        shared, work, other = Shared[int](), Work(), Work()
        asking = [asyncio.create_task(shared.run("a", work)) for _ in range(5)]
        elsewhere = asyncio.create_task(shared.run("b", other))
        await settle()
        work.may_end.set()
        other.may_end.set()
        assert await asyncio.gather(*asking) == [1] * 5
        assert await elsewhere == 1
        assert (work.begun, other.begun) == (1, 1)
        assert await shared.run("a", work) == 2  # what is done is not kept: that is the cache's

    asyncio.run(scenario())


def test_work_goes_on_until_the_last_has_left() -> None:
    async def scenario() -> None:
        shared, work = Shared[int](), Work()
        asking = [asyncio.create_task(shared.run("a", work)) for _ in range(3)]
        await settle()
        for task in asking[:2]:
            task.cancel()
        await settle()
        assert work.given_up == 0
        asking[2].cancel()
        await settle()
        assert work.given_up == 1
        again = asyncio.create_task(shared.run("a", work))
        await settle()
        work.may_end.set()
        assert await again == 2

    asyncio.run(scenario())


def test_a_failure_reaches_all_who_wait() -> None:
    async def fails() -> int:
        await asyncio.sleep(0)
        raise ValueError("no")

    async def scenario() -> None:
        shared = Shared[int]()
        results = await asyncio.gather(
            *(shared.run("a", fails) for _ in range(3)), return_exceptions=True
        )
        assert [str(result) for result in results] == ["no"] * 3
        with pytest.raises(ValueError, match="no"):
            await shared.run("a", fails)

    asyncio.run(scenario())

"""The same request from several clients at once is worked at once, for all of them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

Result = TypeVar("Result")


class Shared(Generic[Result]):
    """Work under way, by what is asked for; it is given up when the last who waits for it has left."""

    def __init__(self) -> None:
        self._under_way: dict[str, tuple[asyncio.Task[Result], int]] = {}

    async def run(self, key: str, begin: Callable[[], Awaitable[Result]]) -> Result:
        """Return what `begin` makes, or what another call with this key is making."""
        task, waiting = self._under_way.get(key, (None, 0))
        if task is None:
            task = asyncio.ensure_future(_as_task(begin))
        self._under_way[key] = (task, waiting + 1)
        try:
            return await asyncio.shield(task)
        finally:
            task, waiting = self._under_way[key]
            if waiting == 1:
                del self._under_way[key]
                task.cancel()  # Without effect where it is done.
            else:
                self._under_way[key] = (task, waiting - 1)


async def _as_task(begin: Callable[[], Awaitable[Result]]) -> Result:
    return await begin()

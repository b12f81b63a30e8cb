"""Turns, so that one who asks for much is in nobody else's way."""

import asyncio
from collections.abc import Callable
from weakref import WeakValueDictionary


class Turns:
    """`at_once` have their turn at a time, and of each user one: who waits has at most one turn of each other
    user before him, however many those have asked for."""

    def __init__(self, at_once: int) -> None:
        self._all = asyncio.Semaphore(at_once)
        # By uid, while one has its turn or waits for it. Of each user only the first waits among all.
        self._own: WeakValueDictionary[int, asyncio.Lock] = WeakValueDictionary()

    async def take(self, uid: int) -> Callable[[], None]:
        """What is returned ends it, and has to be called."""
        own = self._own.setdefault(uid, asyncio.Lock())
        await own.acquire()
        try:
            await self._all.acquire()
        except asyncio.CancelledError:
            own.release()
            raise

        def end() -> None:
            self._all.release()
            own.release()

        return end

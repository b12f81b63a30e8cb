"""So many at a time, but for those that hang: they wait for something else than the others' end."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager

# Seconds in the kernel after which a step counts as stuck, while it is still waited for.
LONG = 3.0


class Places:
    """`async with places.take()`; one who takes longer than a step should gives his place to the next."""

    def __init__(self, number: int) -> None:
        self._free = asyncio.Semaphore(number)

    @asynccontextmanager
    async def take(self) -> AsyncIterator[None]:
        """In the order of asking."""
        await self._free.acquire()
        with ExitStack() as place:
            place.callback(self._free.release)
            timer = asyncio.get_running_loop().call_later(LONG, place.close)
            place.callback(timer.cancel)
            yield

"""Places of those that hang are others'; of all the rest there are no more than so many."""

import asyncio

import pytest
from virtual_time import now, run_at_once

from vfio_flavourd.kernel.places import LONG, Places


async def use(places: Places, seconds: float, begun: list[float]) -> None:
    async with places.take():
        begun.append(now())
        await asyncio.sleep(seconds)


def test_one_who_hangs_gives_his_place_to_the_next_and_once_only() -> None:
    async def run() -> None:
        places = Places(1)
        begun: list[float] = []
        await asyncio.gather(*(use(places, seconds, begun) for seconds in (LONG + 2, 1, 2.5, 1, 1)))
        # The first one's end, while the third has the place, is no place more.
        assert begun == pytest.approx([0, LONG, LONG + 1, LONG + 3.5, LONG + 4.5])

    run_at_once(run())


def test_one_who_is_called_off_or_fails_gives_his_place_back_at_once() -> None:
    async def fail(places: Places) -> None:
        async with places.take():
            raise OSError("refused")

    async def run() -> None:
        places = Places(1)
        begun: list[float] = []
        task = asyncio.create_task(use(places, 1, begun))
        await asyncio.sleep(0.5)
        task.cancel()
        with pytest.raises(OSError, match="refused"):
            await fail(places)
        await asyncio.gather(*(use(places, LONG - 1, begun) for _ in range(3)))
        assert begun == pytest.approx([0, 0.5, 0.5 + LONG - 1, 0.5 + 2 * (LONG - 1)])

    run_at_once(run())

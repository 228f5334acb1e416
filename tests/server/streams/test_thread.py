import asyncio
import subprocess
import sys
import threading
from functools import partial

import pytest

from server.streams.thread import WorkThread
from tests.server.streams.parts import store_fails

pytestmark = pytest.mark.anyio

ENDS = """
import asyncio, threading
from server.streams.thread import WorkThread

async def main():
    begun = threading.Event()
    thread = WorkThread("stuck")
    task = asyncio.create_task(thread.run(lambda: (begun.set(), threading.Event().wait())))
    await asyncio.sleep(0)
    begun.wait()
    task.cancel()

asyncio.run(main())
"""


async def test_work_is_done_in_order_and_its_errors_come_back() -> None:
    thread, done = WorkThread("work"), list[int]()
    await asyncio.gather(*(thread.run(partial(done.append, n)) for n in range(5)))
    assert done == [*range(5)]
    with pytest.raises(ZeroDivisionError):
        await thread.run(lambda: 1 // 0)
    assert await thread.run(threading.get_ident) != threading.get_ident()
    thread.close()
    with store_fails("closed"):
        await thread.run(lambda: None)


async def test_what_is_cancelled_before_its_turn_is_left_out() -> None:
    thread, done, gate = WorkThread("work"), list[int](), threading.Event()
    first = asyncio.create_task(thread.run(gate.wait))
    second = asyncio.create_task(thread.run(lambda: done.append(2)))
    await asyncio.sleep(0)
    second.cancel()
    await asyncio.wait({second})
    gate.set()
    await first
    await thread.run(lambda: done.append(3))
    assert done == [3]
    thread.close()


def test_it_does_not_hold_up_the_end_of_the_process() -> None:
    subprocess.run([sys.executable, "-c", ENDS], check=True, timeout=30)

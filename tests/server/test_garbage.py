"""The collector's setting belongs to a whole process, so it is looked at in one."""

from __future__ import annotations

import subprocess
import sys

from server.garbage import ROUNDS, YOUNG

PROGRAM = """
import gc
from server.garbage import settle
settle()
print(gc.get_threshold(), gc.get_freeze_count() > 0, gc.isenabled())
"""


def test_a_server_is_seldom_stopped_by_the_collector() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == f"{(YOUNG, ROUNDS, ROUNDS)} True True"

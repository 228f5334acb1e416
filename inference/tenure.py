"""What the supervisor and those around it know of one engine process."""

from __future__ import annotations

import asyncio
from typing import Protocol

from inference.llamacpp.messages import Embedded, Refused, Reply, Report
from inference.status import ModelInfo
from inference.watchdog import Progress


class Listener(Protocol):
    """Who uses the engine process. Called on the event loop; must neither wait nor raise."""

    def on_ready(self, info: ModelInfo) -> None:
        """A process is ready: from now on `Supervisor.send` works."""

    def on_message(self, message: Report | Embedded | Reply | Refused) -> None:
        """It said something."""

    def on_down(self) -> None:
        """It said its last, and another will be started. Once at most for each `on_ready`."""

    def on_ended(self, *, killed: bool) -> None:
        """After `on_down`: it is gone, and whether it was `killed` or ended by itself."""

    def on_over(self, *, closed: bool) -> None:
        """No process will follow: it was `closed`, or has failed for good. Comes once, last."""

    @property
    def owes_steps(self) -> bool:
        """Whether the process has work that only steps can do."""


class Tenure:
    """What is known of one process: written while it lives, read when it is over."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.silence: asyncio.Timeout | None = None
        self.refusal: str | None = None
        self.watching: asyncio.Task[None] | None = None
        self.ready_at: float | None = None
        self.seconds_ready = 0.0
        self.ending = ""

"""What befalls the scripted engine and its sequences, when its script says so."""

from __future__ import annotations

import asyncio
from typing import assert_never

from inference.errors import DecodeFailed, EngineDied
from inference.events import Restarted
from inference.lifecycle import Lifecycle
from inference.scripted.lanes import Lanes, Run
from inference.scripted.script import Die, Fail, Fault, Hang, RefuseTemplate, Restart, Rule
from inference.status import EngineState


class Faults:
    """Strikes with the faults of rules, and has the engine come back after its deaths.

    Mutable: `replays`, sequences that went on after a restart, each time; `_met`, how often
    each rule's fault was given out; `_revival`, the timer of the engine's return. Owner:
    the engine, on its event loop.
    """

    def __init__(self, life: Lifecycle, lanes: Lanes) -> None:
        self.replays = 0
        self._life = life
        self._lanes = lanes
        self._met: dict[Rule, int] = {}
        self._revival: asyncio.TimerHandle | None = None

    def next_of(self, rule: Rule) -> Fault | None:
        """The fault that the rule's next request has to meet, counted against `fault_times`."""
        met = self._met.get(rule, 0)
        if rule.fault is None or (rule.fault_times is not None and met >= rule.fault_times):
            return None
        self._met[rule] = met + 1
        return rule.fault

    async def strike(self, run: Run) -> None:
        """Do to this sequence what its fault says is due by now, if anything is.

        Raises what then ends it.
        """
        fault = run.fault
        if fault is None or isinstance(fault, RefuseTemplate) or run.written < fault.after_tokens:
            return
        run.check()
        if self._life.state is EngineState.RESTARTING:
            return  # it strikes once the engine is back
        match fault:
            case Restart():
                run.fault = None
                self._end_engine(fault.restart_seconds, "")
            case Die():
                self._end_engine(fault.restart_seconds, fault.restart_error)
                self._lanes.end_all(EngineDied("The engine ended while this request was running."))
                run.check()
            case Fail():
                raise DecodeFailed("The engine could not decode this request.")
            case Hang():
                while True:
                    await run.pause(None)
                    run.check()
            case _:
                assert_never(fault)

    async def taken_up(self, run: Run) -> Restarted:
        """Wait until the engine is back; what it then says to this sequence."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        while self._life.state is EngineState.RESTARTING:
            await self._life.changed()
        run.check()
        run.restarts = self._life.restarts
        self.replays += 1
        return Restarted(replayed_tokens=run.written, paused_seconds=loop.time() - began)

    def revive(self) -> None:
        """Have the engine be back now, after a death that it survives."""
        self.close()
        self._life.move(EngineState.READY)

    def close(self) -> None:
        """Bring the engine back no more."""
        if self._revival is not None:
            self._revival.cancel()
            self._revival = None

    def _end_engine(self, restart_seconds: float, restart_error: str) -> None:
        """End the engine; it is back, or has failed for good, after so long."""
        self._life.move(EngineState.RESTARTING, "The engine died, as its script says.")
        loop = asyncio.get_running_loop()
        to = EngineState.FAILED if restart_error else EngineState.READY
        self._revival = loop.call_later(restart_seconds, self._life.move, to, restart_error)

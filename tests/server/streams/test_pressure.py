"""What holds a producer back, against the same said in one line."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from inference.events import Delta
from server.streams.events import Entry, Sequenced
from server.streams.pressure import Pressure
from server.streams.storing import LogLimits, Storing
from server.streams.window import Window

LIMITS = LogLimits(high_entries=6, low_entries=2, kept_entries=1000)
EVENT = Sequenced(index=0, event=Delta(text="x", tokens=(1,)))
WHICH = st.integers(0, 9)


class Place:
    """What of a reader counts here."""

    def __init__(self, position: int) -> None:
        self.position = position


class AnyOrder(RuleBasedStateMachine):
    """A producer and readers that come, read and go in any order; nothing is stored."""

    def __init__(self) -> None:
        super().__init__()
        self.window = Window()
        self.pressure = Pressure(LIMITS, self.window)
        self.attached: list[Any] = []
        self.gone: list[Any] = []
        self.furthest = 0

    @rule()
    def append(self) -> None:
        if not self.pressure.full(Storing.OFF, stored=0):
            self.window.push(Entry(number=self.window.end, event=EVENT), 1)

    @rule(place=st.integers(0, 100))
    def attach(self, place: int) -> None:
        reader: Any = Place(min(place, self.window.end))
        self.attached.append(reader)
        self.pressure.attach(reader)
        self.furthest = max(self.furthest, reader.position)

    @rule(which=WHICH)
    def read(self, which: int) -> None:
        readers = [*self.attached, *self.gone]
        if readers and readers[which % len(readers)].position < self.window.end:
            reader = readers[which % len(readers)]
            reader.position += 1
            self.pressure.moved(reader)
            self.furthest = max(self.furthest, reader.position)

    @rule(which=WHICH)
    def detach(self, which: int) -> None:
        if self.attached:
            reader = self.attached.pop(which % len(self.attached))
            self.pressure.detach(reader)
            self.pressure.detach(reader)
            self.gone.append(reader)

    @invariant()
    def the_furthest_reader_decides(self) -> None:
        assert self.pressure.readers == len(self.attached)
        places = [reader.position for reader in self.attached] or [self.furthest]
        ahead, held = self.window.end - max(places), self.pressure.holding
        assert self.pressure.full(Storing.OFF, stored=0) == (ahead > (2 if held else 5))


TestAnyOrder = AnyOrder.TestCase

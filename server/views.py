"""What a reader is shown of a log: its entries, as one format has them.

A view is fed a log's entries in order, from the first. It does not know whether the
response is live or was stored long ago: a resumed stream is the whole of it with the
beginning left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from msgspec import Struct

from inference.events import Accepted, Finished, Queued, Usage
from server.streams.events import Entry, Sequenced
from server.streams.readers import Reader
from server.wire.common import Projection, Summary
from server.wire.endings import error_of
from server.wire.native import native
from server.wire.shapes import AnyShape


class View(Protocol):
    """One format. It belongs to one reader and keeps what the next entry depends on."""

    @property
    def opened(self) -> bool:
        """Whether the request was taken: what fails before is an answer of its own."""

    def show(self, entry: Entry) -> Sequence[Struct]:
        """What the next entry adds, at most one event.

        Raises `ApiError` for an end that this format shows as an error.
        """


class OpenAiView:
    """Chunks of one of OpenAI's streaming formats.

    `kept` says whether the response is stored, for those whose stream breaks off.
    Mutable: how many sequences are accepted, and the usages of those that finished.
    """

    def __init__(self, projection: Projection, *, sequences: int, kept: Callable[[], bool]) -> None:
        self._projection = projection
        self._missing = sequences
        self._all_missing = sequences
        self._kept = kept
        self._usages: dict[int, Usage] = {}

    @classmethod
    def of(cls, shape: AnyShape, *, kept: Callable[[], bool]) -> OpenAiView:
        """The chunks of a response of that shape."""
        return cls(shape.projection(), sequences=shape.sequences, kept=kept)

    @property
    def opened(self) -> bool:
        """As `View.opened`: when the engine has accepted all sequences, or will not soon."""
        return self._missing <= 0

    def show(self, entry: Entry) -> Sequence[Struct]:
        """As `View.show`."""
        match entry.event:
            case Sequenced(index=index, event=event):
                match event:
                    case Accepted():
                        self._missing -= 1
                    case Queued() if self._missing == self._all_missing:
                        self._missing = 0  # it waits for its model, which may take long
                    case Finished(usage=usage):
                        self._usages[index] = usage
                return self._projection.show(index, event)
            case terminal:
                error = error_of(terminal, kept=self._kept())
                if error is not None:
                    raise error
                return self._projection.end(_in_order(self._usages))


class NativeView:
    """The entries as they are."""

    opened = True

    def __init__(self, *, kept: Callable[[], bool]) -> None:
        self._kept = kept

    def show(self, entry: Entry) -> Sequence[Struct]:
        """As `View.show`; it never raises, for an end is an event here."""
        return (native(entry, kept=self._kept()),)


async def summarized(reader: Reader, summary: Summary, *, kept: bool) -> Struct:
    """Read to the end and build the whole response. Raises `ApiError` for any bad end."""
    usages: dict[int, Usage] = {}
    with reader:
        while (entry := await reader.next()) is not None:
            match entry.event:
                case Sequenced(index=index, event=event):
                    summary.add(index, event)
                    if isinstance(event, Finished):
                        usages[index] = event.usage
                case terminal:
                    error = error_of(terminal, kept=kept)
                    if error is not None:
                        raise error
    return summary.body(_in_order(usages))


def _in_order(usages: dict[int, Usage]) -> list[Usage]:
    return [usages[index] for index in sorted(usages)]

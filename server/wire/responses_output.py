"""The items of a response's output, and the events that tell how they grow: pure.

    item added (part added  delta*  text done  part done) item done      a message, reasoning
    item added  arguments delta*  arguments done  item done              a call

One item grows at a time; the next one closes it, and so does the end.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from inference.events import ToolCallDelta
from server.wire.chat_events import TokenBody
from server.wire.responses_body import (
    FunctionCallItem,
    ItemStatus,
    OutputItem,
    OutputMessage,
    OutputText,
    ReasoningItem,
    ReasoningText,
    item_id_of,
)
from server.wire.responses_events import (
    ArgumentsDelta,
    ArgumentsDone,
    ItemAdded,
    ItemDone,
    PartAdded,
    PartDone,
    ReasoningDelta,
    ReasoningDone,
    ResponseEvent,
    TextDelta,
    TextDone,
)

Take = Callable[[], int]
"""Gives the number of the next event."""


@dataclass(slots=True, kw_only=True)
class Growing(ABC):
    """An item, its place in the output, and what it has of text so far."""

    id: str
    index: int
    take: Take
    status: ItemStatus = "in_progress"
    texts: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """All of it."""
        return "".join(self.texts)

    @abstractmethod
    def item(self) -> OutputItem:
        """The item as it is now."""

    @abstractmethod
    def body(self, status: ItemStatus) -> Iterator[ResponseEvent]:
        """What comes between the text and the end of the item."""

    def closed(self, status: ItemStatus) -> Iterator[ResponseEvent]:
        """Its last events."""
        self.status = status
        yield from self.body(status)
        yield ItemDone(sequence_number=self.take(), output_index=self.index, item=self.item())


@dataclass(slots=True, kw_only=True)
class Message(Growing):
    """What the model says."""

    logprobs: list[TokenBody] = field(default_factory=list)

    def item(self) -> OutputMessage:
        """As `Growing.item`."""
        return OutputMessage(id=self.id, status=self.status, content=(self._part(),))

    def opened(self) -> Iterator[ResponseEvent]:
        """Its first events."""
        empty = OutputMessage(id=self.id, status="in_progress", content=())
        yield ItemAdded(sequence_number=self.take(), output_index=self.index, item=empty)
        yield PartAdded(
            sequence_number=self.take(),
            item_id=self.id,
            output_index=self.index,
            part=OutputText(text=""),
        )

    def add(self, text: str, logprobs: tuple[TokenBody, ...]) -> Iterator[ResponseEvent]:
        """More text."""
        self.texts.append(text)
        self.logprobs += logprobs
        yield TextDelta(
            sequence_number=self.take(),
            item_id=self.id,
            output_index=self.index,
            delta=text,
            logprobs=logprobs,
        )

    def body(self, status: ItemStatus) -> Iterator[ResponseEvent]:
        """As `Growing.body`."""
        part = self._part()
        yield TextDone(
            sequence_number=self.take(),
            item_id=self.id,
            output_index=self.index,
            text=part.text,
            logprobs=part.logprobs,
        )
        yield PartDone(
            sequence_number=self.take(), item_id=self.id, output_index=self.index, part=part
        )

    def _part(self) -> OutputText:
        return OutputText(text=self.text, logprobs=tuple(self.logprobs))


@dataclass(slots=True, kw_only=True)
class Reasoning(Growing):
    """What the model thinks before it speaks."""

    def item(self) -> ReasoningItem:
        """As `Growing.item`."""
        content = (ReasoningText(text=self.text),)
        return ReasoningItem(id=self.id, status=self.status, content=content)

    def opened(self) -> Iterator[ResponseEvent]:
        """Its first events."""
        empty = ReasoningItem(id=self.id, status="in_progress", content=())
        yield ItemAdded(sequence_number=self.take(), output_index=self.index, item=empty)
        yield PartAdded(
            sequence_number=self.take(),
            item_id=self.id,
            output_index=self.index,
            part=ReasoningText(text=""),
        )

    def add(self, text: str) -> Iterator[ResponseEvent]:
        """More of it."""
        self.texts.append(text)
        yield ReasoningDelta(
            sequence_number=self.take(), item_id=self.id, output_index=self.index, delta=text
        )

    def body(self, status: ItemStatus) -> Iterator[ResponseEvent]:
        """As `Growing.body`."""
        text = self.text
        yield ReasoningDone(
            sequence_number=self.take(), item_id=self.id, output_index=self.index, text=text
        )
        yield PartDone(
            sequence_number=self.take(),
            item_id=self.id,
            output_index=self.index,
            part=ReasoningText(text=text),
        )


@dataclass(slots=True, kw_only=True)
class Call(Growing):
    """A call of a function; its text are the arguments. `number` is the engine's."""

    number: int
    call_id: str
    name: str

    def item(self) -> FunctionCallItem:
        """As `Growing.item`."""
        return FunctionCallItem(
            id=self.id,
            status=self.status,
            call_id=self.call_id,
            name=self.name,
            arguments=self.text,
        )

    def opened(self) -> Iterator[ResponseEvent]:
        """Its first event."""
        yield ItemAdded(sequence_number=self.take(), output_index=self.index, item=self.item())

    def add(self, text: str) -> Iterator[ResponseEvent]:
        """More of the arguments."""
        self.texts.append(text)
        yield ArgumentsDelta(
            sequence_number=self.take(), item_id=self.id, output_index=self.index, delta=text
        )

    def body(self, status: ItemStatus) -> Iterator[ResponseEvent]:
        """As `Growing.body`; arguments that were cut are not done."""
        if status == "completed":
            yield ArgumentsDone(
                sequence_number=self.take(),
                item_id=self.id,
                output_index=self.index,
                name=self.name,
                arguments=self.text,
            )


class Output:
    """All items of one response. Mutable: they are, owned by the response's projection."""

    def __init__(self, response_id: str, take: Take) -> None:
        self._hex = item_id_of(response_id).partition("_")[2]
        self._take = take
        self._items: list[Message | Reasoning | Call] = []
        self._unsaid: tuple[TokenBody, ...] = ()

    @property
    def begun(self) -> bool:
        """Whether there are any items."""
        return bool(self._items)

    def items(self) -> tuple[OutputItem, ...]:
        """The items as they are now."""
        return tuple(item.item() for item in self._items)

    def think(self, text: str) -> Iterator[ResponseEvent]:
        """More reasoning."""
        item = self._growing
        if not isinstance(item, Reasoning):
            yield from self.close("completed")
            item = Reasoning(id=self._new_id("rs"), index=len(self._items), take=self._take)
            self._items.append(item)
            yield from item.opened()
        yield from item.add(text)

    def say(self, text: str, logprobs: tuple[TokenBody, ...]) -> Iterator[ResponseEvent]:
        """More text. Log probabilities of tokens without text wait for it."""
        item = self._growing
        if not isinstance(item, Message):
            if not text:
                self._unsaid += logprobs
                return
            yield from self.open_message()
            item = self._growing
            assert isinstance(item, Message)
        logprobs, self._unsaid = self._unsaid + logprobs, ()
        yield from item.add(text, logprobs)

    def open_message(self) -> Iterator[ResponseEvent]:
        """Begin a message."""
        yield from self.close("completed")
        item = Message(id=self._new_id("msg"), index=len(self._items), take=self._take)
        self._items.append(item)
        yield from item.opened()

    def call(self, piece: ToolCallDelta) -> Iterator[ResponseEvent]:
        """More of a call, or the first piece of one."""
        item = self._growing
        if not isinstance(item, Call) or item.number != piece.index:
            yield from self.close("completed")
            item = Call(
                id=self._new_id("fc"),
                index=len(self._items),
                take=self._take,
                number=piece.index,
                call_id=piece.id or "",
                name=piece.name or "",
            )
            self._items.append(item)
            self._unsaid = ()
            yield from item.opened()
        if piece.arguments:
            yield from item.add(piece.arguments)

    def close(self, status: ItemStatus) -> Iterator[ResponseEvent]:
        """End the item that grows, if one does."""
        item = self._growing
        if item is not None:
            yield from item.closed(status)

    @property
    def _growing(self) -> Message | Reasoning | Call | None:
        if self._items and self._items[-1].status == "in_progress":
            return self._items[-1]
        return None

    def _new_id(self, prefix: str) -> str:
        """An id that the same log always gives; those of the input are `msg_..._0` and on."""
        if prefix == "msg" and not any(isinstance(item, Message) for item in self._items):
            return f"msg_{self._hex}"
        return f"{prefix}_{self._hex}_out{len(self._items)}"

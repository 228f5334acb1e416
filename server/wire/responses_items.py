"""What `GET /v1/responses/{id}/input_items` gives: the input, item by item."""

from __future__ import annotations

from typing import TypeAlias

from msgspec import UNSET, Struct, UnsetType

from server.errors import invalid
from server.wire.responses_body import InputItem, ResponseDetails, Typed, item_id_of
from server.wire.responses_query import ItemsQuery


class PartBody(Struct, frozen=True, kw_only=True):
    """A text of an item; what the model said has `annotations`."""

    type: str
    text: str
    annotations: tuple[()] | UnsetType = UNSET


class ItemBody(Typed, frozen=True, kw_only=True, tag="message"):
    """One message of the input."""

    id: str
    status: str = "completed"
    role: str
    content: tuple[PartBody, ...]


class ReasoningBody(Typed, frozen=True, kw_only=True, tag="reasoning"):
    """What the model thought."""

    id: str
    status: str = "completed"
    summary: tuple[()] = ()
    content: tuple[PartBody, ...]


class CallBody(Typed, frozen=True, kw_only=True, tag="function_call"):
    """A call that the model made."""

    id: str
    status: str = "completed"
    call_id: str
    name: str
    arguments: str


class ResultBody(Typed, frozen=True, kw_only=True, tag="function_call_output"):
    """The result of a call."""

    id: str
    status: str = "completed"
    call_id: str
    output: str


AnyItem: TypeAlias = ItemBody | ReasoningBody | CallBody | ResultBody


class ItemsBody(Struct, frozen=True, kw_only=True):
    """One page of the items."""

    object: str = "list"
    data: tuple[AnyItem, ...]
    first_id: str | None
    last_id: str | None
    has_more: bool


def page_of(response_id: str, details: ResponseDetails, query: ItemsQuery) -> ItemsBody:
    """The page that the query asks for. Raises `ApiError` 400 for an `after` there is not."""
    items = [
        _item(f"{item_id_of(response_id)}_{number}", item)
        for number, item in enumerate(details.input)
    ]
    if query.order == "desc":
        items.reverse()
    if query.after is not None:
        ids = [item.id for item in items]
        if query.after not in ids:
            raise invalid("`after` must be the id of an item of this input.", "after")
        items = items[ids.index(query.after) + 1 :]
    data = tuple(items[: query.limit])
    return ItemsBody(
        data=data,
        first_id=data[0].id if data else None,
        last_id=data[-1].id if data else None,
        has_more=len(items) > len(data),
    )


def _item(item_id: str, item: InputItem) -> AnyItem:
    if item.call is not None:
        call = item.call
        return CallBody(id=item_id, call_id=call.id, name=call.name, arguments=call.arguments)
    if item.call_id is not None:
        return ResultBody(id=item_id, call_id=item.call_id, output="".join(item.texts))
    if item.reasoning:
        thoughts = tuple(PartBody(type="reasoning_text", text=text) for text in item.texts)
        return ReasoningBody(id=item_id, content=thoughts)
    if item.role == "assistant":
        parts = [PartBody(type="output_text", text=text, annotations=()) for text in item.texts]
    else:
        parts = [PartBody(type="input_text", text=text) for text in item.texts]
    return ItemBody(id=item_id, role=item.role, content=tuple(parts))

"""What `GET /v1/responses/{id}/input_items` gives: the input, item by item."""

from __future__ import annotations

from msgspec import UNSET, Struct, UnsetType

from server.errors import invalid
from server.wire.responses_body import InputItem, ResponseDetails, item_id_of
from server.wire.responses_query import ItemsQuery


class PartBody(Struct, frozen=True, kw_only=True):
    """A text of an item; the model's own have `annotations`."""

    type: str
    text: str
    annotations: tuple[()] | UnsetType = UNSET


class ItemBody(Struct, frozen=True, kw_only=True):
    """One message of the input."""

    id: str
    type: str = "message"
    status: str = "completed"
    role: str
    content: tuple[PartBody, ...]


class ItemsBody(Struct, frozen=True, kw_only=True):
    """One page of them."""

    object: str = "list"
    data: tuple[ItemBody, ...]
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


def _item(item_id: str, item: InputItem) -> ItemBody:
    if item.role == "assistant":
        parts = [PartBody(type="output_text", text=text, annotations=()) for text in item.texts]
    else:
        parts = [PartBody(type="input_text", text=text) for text in item.texts]
    return ItemBody(id=item_id, role=item.role, content=tuple(parts))

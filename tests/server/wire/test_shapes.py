"""How responses are stored, for showing them again."""

from __future__ import annotations

import pytest

from server.errors import ApiError
from server.wire import responses_body, shapes


@pytest.mark.parametrize("stored", [b"", b"\xc1", b"\x80", b"\x81\xa4type\xa5other"])
def test_what_another_release_stored_is_named_so(stored: bytes) -> None:
    for decode in (shapes.decode, responses_body.decode):
        with pytest.raises(ApiError) as caught:
            decode(stored)
        assert (caught.value.status, caught.value.code) == (410, "response_unreadable")

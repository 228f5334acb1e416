"""The schemas that constrained answers are measured and tested with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

CASES_FILE = Path(__file__).with_name("structured_schemas.json")


class Case(Struct, frozen=True, kw_only=True):
    """A question, and the JSON schema of its answer."""

    name: str
    prompt: str
    schema: dict[str, Any]


def cases() -> list[Case]:
    """All of them: nested, recursive, bounded, tagged, with awkward keys."""
    return msgspec.json.decode(CASES_FILE.read_bytes(), type=list[Case])

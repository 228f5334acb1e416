"""A vocabulary without a model: every byte is a token, and there is one end token."""

from __future__ import annotations

import json
from typing import Any

from inference.llamacpp.constraints.messages import Vocabulary
from inference.requests import JsonSchema

END = 256
SIZE = 257
VOCABULARY = Vocabulary(
    pieces=(*(bytes((byte,)) for byte in range(END)), b"\xff<end>"), end_tokens=(END,)
)


def schema(document: Any) -> JsonSchema:
    return JsonSchema(schema=json.dumps(document))

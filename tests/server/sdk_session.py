"""What a program does with the OpenAI SDK, told as JSON: `python sdk_session.py BASE_URL`.

Imports nothing but the SDK, so that it runs in the environment of any version of it.
The server's key is "first"; it holds one request at a time, and "for ever" never ends.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import openai


def refusal(ask: Callable[[], object]) -> str:
    """The class and the code of the error that `ask` raises."""
    try:
        ask()
    except openai.APIStatusError as error:
        return f"{type(error).__name__} {error.status_code} {error.code}"
    return "no error"


def session(base_url: str) -> dict[str, Any]:
    """Ask for everything once."""
    client = openai.OpenAI(base_url=base_url, api_key="first", max_retries=0, timeout=30.0)
    chat = client.chat.completions.create
    weather: Any = [{"role": "user", "content": "weather"}]
    for_ever: Any = [{"role": "user", "content": "for ever"}]
    told: dict[str, Any] = {"version": int(openai.__version__.split(".")[0])}
    told["chat"] = chat(model="default", messages=weather).choices[0].message.content
    with chat(model="default", messages=weather, stream=True) as stream:
        told["streamed"] = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    told["completion"] = (
        client.completions.create(model="default", prompt="weather").choices[0].text
    )
    told["400"] = refusal(lambda: chat(model="default", messages=weather, temperature=9.0))
    stranger = client.with_options(api_key="nobody")
    told["401"] = refusal(lambda: stranger.models.list())
    told["404"] = refusal(lambda: chat(model="gpt-9", messages=weather))
    with chat(model="default", messages=for_ever, stream=True) as stream:
        next(iter(stream))
        told["429"] = refusal(lambda: chat(model="default", messages=weather))
    return told


if __name__ == "__main__":
    print(json.dumps(session(sys.argv[1])))

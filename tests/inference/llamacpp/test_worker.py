"""The engine process as a process: how it ends."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from inference.llamacpp.messages import HEADER, Submit
from inference.requests import GenerationRequest, TextPrompt
from tests.inference.llamacpp.realworker import worker

pytestmark = pytest.mark.model

PATIENCE_SECONDS = 30.0


def test_it_ends_with_its_server_even_with_reports_unread(default_model_path: Path) -> None:
    with worker(default_model_path) as (process, sock, end):
        end.send(
            Submit(
                request=GenerationRequest(
                    id="a", prompt=TextPrompt(text="Go on."), max_tokens=400, ignore_eos=True
                )
            )
        )
        sock.recv(1, socket.MSG_PEEK)
        sock.close()
        assert process.wait(PATIENCE_SECONDS) == 0


def test_a_message_it_cannot_read_ends_it(default_model_path: Path) -> None:
    with worker(default_model_path) as (process, sock, _):
        sock.sendall(HEADER.pack(3) + b"abc")
        assert process.wait(PATIENCE_SECONDS) != 0

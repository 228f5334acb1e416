"""What accepted sockets take over, and room for them."""

from __future__ import annotations

import resource
import socket

import pytest

from server.settings import Settings
from server.sockets import SPARE_FILES, allow_files, prepare


def test_accepted_sockets_take_the_options_over() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        prepare(listener, Settings(send_buffer_bytes=8192, peer_seconds=6.0))
        with socket.create_connection(listener.getsockname()), listener.accept()[0] as accepted:
            # Linux doubles what was asked for, to have room for its own records.
            assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == 2 * 8192
            assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            told = [
                accepted.getsockopt(socket.IPPROTO_TCP, option)
                for option in (
                    socket.TCP_KEEPIDLE,
                    socket.TCP_KEEPINTVL,
                    socket.TCP_KEEPCNT,
                    socket.TCP_USER_TIMEOUT,
                )
            ]
            assert told == [3, 1, 3, 6000]


def test_zero_leaves_the_send_buffer_to_the_system() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        before = listener.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        prepare(listener, Settings(send_buffer_bytes=0))
        assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == before


UNLIMITED = resource.RLIM_INFINITY


@pytest.mark.parametrize(
    ("limits", "room", "raised"),
    [
        ((1024, 500_000), 4000, 4000 + SPARE_FILES),
        ((1024, UNLIMITED), 4000, 4000 + SPARE_FILES),
        ((1024, 2048), 2048 - SPARE_FILES, 2048),
        ((500_000, 500_000), 4000, None),
        ((UNLIMITED, UNLIMITED), 4000, None),
    ],
)
def test_the_limit_of_open_files_is_raised_as_far_as_it_goes(
    limits: tuple[int, int], room: int, raised: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits)
    monkeypatch.setattr(resource, "setrlimit", lambda _, to: told.append(to))
    assert allow_files(4000) == room
    assert told == ([] if raised is None else [(raised, limits[1])])

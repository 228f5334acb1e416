"""What the listening socket hands on to every connection, and how many files may be open."""

from __future__ import annotations

import resource
import socket

from server.settings import Settings

PROBES = 3
"""Keepalive probes in the second half of `peer_seconds`, after silence in the first."""

SPARE_FILES = 256
"""Descriptors for everything that is no connection: logs, database, the engine process."""


def prepare(listener: socket.socket, settings: Settings) -> None:
    """Set the options that each accepted socket takes over from its listener (Linux).

    A small send buffer makes a stalled reader felt: what lies in the kernel, the server
    cannot take back. A peer that has vanished without a word is found out within about
    `peer_seconds`: keepalive probes ask an idle one, and `TCP_USER_TIMEOUT` limits how
    long sent data may go unacknowledged or a window stay closed (tcp(7)).
    """
    if settings.send_buffer_bytes:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, settings.send_buffer_bytes)
    half = settings.peer_seconds / 2
    for option, value in (
        (socket.TCP_KEEPIDLE, max(1, round(half))),
        (socket.TCP_KEEPINTVL, max(1, round(half / PROBES))),
        (socket.TCP_KEEPCNT, PROBES),
        (socket.TCP_USER_TIMEOUT, round(settings.peer_seconds * 1000)),
    ):
        listener.setsockopt(socket.IPPROTO_TCP, option, value)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


def allow_files(connections: int) -> int:
    """Raise this process's limit of open files for so many connections.

    Returns how many connections the limit then has room for: fewer where the hard limit
    does not let us.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return connections if soft == resource.RLIM_INFINITY else min(connections, soft - SPARE_FILES)

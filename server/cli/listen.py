"""The listening socket: bound early, so that a wrong address fails before anything else."""

from __future__ import annotations

import errno
import ipaddress
import socket
from dataclasses import dataclass

from server.cli.errors import CommandError
from server.settings import Settings
from server.sockets import prepare


@dataclass(frozen=True, slots=True, kw_only=True)
class Listener:
    """A bound socket. It does not listen yet: until the server does, clients are refused."""

    socket: socket.socket
    loopback: bool

    @property
    def url(self) -> str:
        """Where a client on this machine finds the server."""
        host, port = self.socket.getsockname()[:2]
        address = ipaddress.ip_address(host.partition("%")[0])
        if address.is_unspecified:
            host = "127.0.0.1" if address.version == 4 else "::1"
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def bind(settings: Settings, *, keyed: bool) -> Listener:
    """Bind to the host and port of the settings.

    Unless it is `keyed` only loopback addresses are allowed, or the settings insist. Raises
    `CommandError` for that, for a name that has no address, and for a port that is taken.
    """
    family, address = _resolve(settings.host, settings.port)
    loopback = ipaddress.ip_address(address[0].partition("%")[0]).is_loopback
    if not (loopback or keyed or settings.allow_unauthenticated):
        raise CommandError(
            f"--host {settings.host}: anyone who reaches this address could use the model; "
            "make a key with `headrace keys create NAME`, "
            "add --api-key-file FILE, or --allow-unauthenticated to insist"
        )
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        prepare(bound, settings)
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise refused(error, settings) from None
    return Listener(socket=bound, loopback=loopback)


def _resolve(host: str, port: int) -> tuple[socket.AddressFamily, tuple[str, int]]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError):
        raise CommandError(f"--host {host}: this name has no address here") from None
    # "localhost" may be both: tools differ in which they try, IPv4 is what all can do.
    found.sort(key=lambda entry: entry[0] != socket.AF_INET)
    family, _, _, _, address = found[0]
    return family, address  # type: ignore[return-value]


def refused(error: OSError, settings: Settings) -> CommandError:
    """Why the system does not let us listen there, and what to do about it."""
    where = f"port {settings.port} on {settings.host}"
    match error.errno:
        case errno.EADDRINUSE:
            return CommandError(f"{where} is in use; choose another with --port")
        case errno.EACCES:
            return CommandError(f"{where} is reserved for root; choose one above 1023 with --port")
        case errno.EADDRNOTAVAIL:
            return CommandError(f"--host {settings.host}: this machine does not have that address")
        case _:
            return CommandError(f"{where}: {error.strerror or error}")

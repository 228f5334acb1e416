import errno
import os
import socket
from pathlib import Path

import pytest

from server.cli.errors import CommandError
from server.cli.listen import bind, refused
from server.settings import Settings


def test_any_free_port_on_loopback() -> None:
    listener = bind(Settings(port=0), keyed=False)
    with listener.socket as bound:
        assert listener.loopback
        assert listener.url == f"http://127.0.0.1:{bound.getsockname()[1]}"


def test_localhost_is_ipv4_where_it_can_be() -> None:
    listener = bind(Settings(host="localhost", port=0), keyed=False)
    with listener.socket:
        assert listener.loopback
        assert "127.0.0.1" in listener.url


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6 here")
def test_ipv6_addresses_have_brackets_in_the_url() -> None:
    try:
        listener = bind(Settings(host="::1", port=0), keyed=False)
    except CommandError:
        pytest.skip("no IPv6 loopback here")
    with listener.socket as bound:
        assert listener.url == f"http://[::1]:{bound.getsockname()[1]}"


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_beyond_loopback_needs_keys_or_insistence(host: str) -> None:
    with pytest.raises(CommandError, match="--api-key-file FILE, or --allow-unauthenticated"):
        bind(Settings(host=host, port=0), keyed=False)


def test_with_keys_all_addresses_are_allowed() -> None:
    for settings in (
        Settings(host="0.0.0.0", port=0, api_key_file=Path("keys")),
        Settings(host="0.0.0.0", port=0, allow_unauthenticated=True),
    ):
        listener = bind(settings, keyed=settings.api_key_file is not None)
        with listener.socket:
            assert not listener.loopback
            assert listener.url.startswith("http://127.0.0.1:")


def test_a_taken_port_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(CommandError, match=f"port {port} on 127.0.0.1 is in use; .*--port"):
            bind(Settings(port=port), keyed=False)


@pytest.mark.parametrize("host", ["no such host", "a" * 300, "x\x00y", "."])
def test_a_name_without_an_address_is_named(host: str) -> None:
    with pytest.raises(CommandError, match=r"--host .* has no address here"):
        bind(Settings(host=host, port=0), keyed=False)


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(CommandError, match="this machine does not have that address"):
        bind(Settings(host="192.0.2.1", port=0, allow_unauthenticated=True), keyed=False)


@pytest.mark.parametrize(
    ("number", "words"), [(errno.EACCES, "reserved for root"), (errno.ENOBUFS, "No buffer space")]
)
def test_other_refusals_say_why(number: int, words: str) -> None:
    error = OSError(number, os.strerror(number))
    assert words in str(refused(error, Settings(port=80)))

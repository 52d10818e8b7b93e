"""What a listener decides: whom it takes on, when it leaves clients in the backlog, and which error of bind(2) is which."""

from __future__ import annotations

import errno
import os
import socket

import pytest
from lab import Lab

from portfwd.errors import Lacking, PortfwdError, PortInUse
from portfwd.relay import bind
from portfwd.relay.bind import NoSuchFamily
from portfwd.relay.listener import BACK_OFF_S, Listener
from portfwd.relay.poller import Poller
from tests.portfwd.stage import descriptors_left
from tests.portfwd.talk import HOST, PORT


class Taker:
    def __init__(self) -> None:
        self.taken: list[socket.socket] = []
        self.said: list[str] = []

    def take_on(self, client: socket.socket, address: tuple[str, int], listener: Listener) -> None:
        self.taken.append(client)

    def lacking(self, why: str) -> None:
        self.said.append(why)


def short_of_descriptors() -> tuple[list[int], list[str]]:
    """How many of three clients are taken on: while no descriptor is left, before BACK_OFF_S and after it; what was said."""
    poller, taker = Poller(), Taker()
    listener = Listener(bind.bind_tcp(HOST, PORT), HOST, PORT)
    listener.listen(poller, taker)
    clients = [socket.create_connection((HOST, PORT)) for _ in range(3)]
    found = []
    with descriptors_left(1):
        for _ in range(3):  # it is not reported again and again
            poller.select(0)
        found.append(len(taker.taken))
    poller.select(0)
    listener.resume(poller)
    found.append(len(taker.taken))
    poller.now += BACK_OFF_S
    listener.resume(poller)
    poller.select(0)
    found.append(len(taker.taken))
    listener.close()
    for sock in (*clients, *taker.taken):
        sock.close()
    poller.close()
    return found, taker.said


def test_clients_wait_in_the_backlog_while_no_descriptor_is_left(machine: Lab) -> None:
    assert machine["host"].python(short_of_descriptors) == ([1, 1, 3], [os.strerror(errno.EMFILE)])


@pytest.mark.parametrize(
    ("ip", "port", "number", "kind", "words"),
    [
        ("127.0.0.1", 80, errno.EACCES, Lacking, "ip_unprivileged_port_start"),
        ("127.0.0.1", 8080, errno.EMFILE, Lacking, "LimitNOFILE"),
        ("::", 8080, errno.EAFNOSUPPORT, NoSuchFamily, "no IPv6"),
        ("::", 8080, errno.EADDRNOTAVAIL, NoSuchFamily, "no IPv6"),
        ("192.0.2.77", 8080, errno.EADDRNOTAVAIL, PortfwdError, "no interface of this host has that address"),
        ("127.0.0.1", 8080, errno.EADDRINUSE, PortInUse, "port 8080/tcp on 127.0.0.1 is in use by "),
        ("2001:db8::1", 8080, errno.ENODEV, PortfwdError, r"port 8080/tcp on \[2001:db8::1\]: No such device"),
    ],
)
def test_an_error_of_bind_says_where_and_what_to_do(
    machine: Lab, ip: str, port: int, number: int, kind: type[PortfwdError], words: str
) -> None:
    error = machine["host"].python(lambda: bind._failure("tcp", ip, port, OSError(number, os.strerror(number))))
    assert type(error) is kind
    with pytest.raises(kind, match=words):
        raise error

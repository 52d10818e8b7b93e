"""Which sockets of the host are in the way of which mappings, and the filter that the kernel is given."""

from __future__ import annotations

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni_py.addr import parse_ip
from cni_py.kernel.sock_diag import Listener, bytecode, joined
from cni_py.ports.host_listeners import Held, conflicts, in_the_way
from cni_py.ports.mapping import Mapping, is_for_nat

ANY4, ANY6, MINE4, MINE6 = "0.0.0.0", "::", "198.51.100.1", "2001:db8::1"


def listener(ip: str, port: int = 8080, protocol: str = "tcp", *, v6only: bool = False) -> Listener:
    return Listener(
        protocol, socket.inet_pton(socket.AF_INET6 if ":" in ip else socket.AF_INET, ip), port, 0, port, v6only=v6only
    )


def mapping(ip: str, first: int = 8080, last: int = 0, protocol: str = "tcp") -> Mapping:
    packed = parse_ip(ip)
    return Mapping(protocol, packed if any(packed) else None, first, bytes(len(packed)), first, last)


@pytest.mark.parametrize(
    ("held", "wanted", "expected"),
    [
        (ANY4, ANY4, True),
        (ANY4, MINE4, True),
        (MINE4, ANY4, True),
        (MINE4, MINE4, True),
        (MINE4, "127.0.0.1", False),
        ("127.0.0.1", ANY4, True),
        (ANY4, ANY6, False),
        (ANY6, ANY4, True),
        (ANY6, MINE4, True),
        (ANY6, MINE6, True),
        ("::1", ANY4, False),
        ("::1", ANY6, True),
        ("::1", MINE6, False),
        ("::ffff:198.51.100.1", ANY4, True),
        ("::ffff:198.51.100.1", ANY6, False),
        ("::ffff:198.51.100.1", "127.0.0.1", False),
        ("::ffff:0.0.0.0", MINE4, True),
    ],
)
def test_addresses_conflict_as_with_bind(held: str, wanted: str, expected: bool) -> None:
    assert conflicts(mapping(wanted), listener(held)) is expected


def test_a_socket_for_ipv6_only_leaves_ipv4_alone() -> None:
    assert not conflicts(mapping(ANY4), listener(ANY6, v6only=True))
    assert conflicts(mapping(ANY6), listener(ANY6, v6only=True))


def test_each_socket_is_told_once_with_the_mapping_it_is_in_the_way_of() -> None:
    wanted = [
        mapping(ANY4, 80),
        mapping(ANY4, 8000, 8100),
        mapping(ANY6, 8000, 8100),
        mapping(ANY4, 80, protocol="udp"),
    ]
    here = [
        listener(ANY6, 8050),
        listener(ANY4, 80),
        listener(ANY4, 80, "udp"),
        listener(ANY4, 8101),
        listener(MINE4, 79),
    ]
    found = [(wanted.index(one), held.port, held.protocol) for one, held in in_the_way(wanted, here)]
    assert found == [(1, 8050, "tcp"), (0, 80, "tcp"), (3, 80, "udp")]
    held = Held(wanted[2], listener(ANY6, 8050), "nginx (pid 812)")
    assert str(held) == "port 8050/tcp on [::] is in use by nginx (pid 812)"


@pytest.mark.parametrize(
    ("ip", "expected"), [("::1", False), ("fe80::1", False), ("febf::1", False), ("fec0::1", True)]
)
def test_what_nat_passes_over_loses_nothing(ip: str, expected: bool) -> None:
    assert is_for_nat(parse_ip(ip)) is expected
    assert is_for_nat(parse_ip("127.0.0.1"))
    assert not is_for_nat(parse_ip("224.0.0.251"))
    assert not is_for_nat(parse_ip("ff02::fb"))


def passes(program: bytes, port: int) -> bool:
    """The kernel's machine (inet_diag_bc_run), for the operations that are used."""
    place, left = 0, len(program)
    while left > 0:
        code, yes, no = program[place], program[place + 1], int.from_bytes(program[place + 2 : place + 4], "little")
        number = int.from_bytes(program[place + 6 : place + 8], "little")
        well = {1: False, 2: port >= number, 3: port <= number}[code]
        step = yes if well else no
        assert step % 4 == 0
        assert 4 <= step <= left + 4
        place, left = place + step, left - step
    return left == 0


PORTS = st.integers(1, 65535)


@given(st.lists(st.tuples(PORTS, PORTS).map(lambda pair: (min(pair), max(pair))), min_size=1, max_size=20), PORTS)
def test_the_filter_lets_the_wanted_ports_pass_and_no_others(runs: list[tuple[int, int]], other: int) -> None:
    program = bytecode(joined(runs))
    for port in {other, *(edge for run in runs for end in run for edge in (end - 1, end, end + 1))}:
        assert passes(program, port) is any(first <= port <= last for first, last in runs)


def test_runs_are_joined() -> None:
    assert joined([(80, 80), (8001, 8002), (81, 81), (8000, 8000), (1, 100)]) == [(1, 100), (8000, 8002)]

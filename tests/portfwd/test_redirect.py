"""Redirect rules with real connections: each reaches the one listening socket, which learns where it was meant to go."""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread

import pytest
from lab import Lab
from runtime import Network, Plugins, mapping

from cni_py.kernel import libnftables
from portfwd import redirect
from portfwd.errors import Lacking, PortfwdError, PortInUse
from portfwd.listeners import original_destination
from portfwd.mapping import ANY
from portfwd.redirect import Redirect, Redirects, parse

FIRST, LAST, LISTENER = 20000, 29999, 7000
WAIT_S = 3.0
HOST4, HOST6, OTHER4 = "198.51.100.1", "2001:db8:1::1", "198.51.100.2"
Puts = list[tuple[int, tuple[int, int], tuple[str, ...]]]  # family, ports, addresses
EVERYTHING: Puts = [(4, (FIRST, LAST), ANY[:1]), (6, (FIRST, LAST), ANY[1:])]


# What runs inside the lab


def serve(stop: Path) -> None:
    """Answer every connection with where it was meant to go, until `stop` exists."""
    listeners = []
    for family, address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
        listener = socket.socket(family)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind((address, LISTENER))
        listener.listen(16)
        listeners.append(listener)
    stop.with_suffix(".ready").touch()
    while not stop.exists():
        for listener in select.select(listeners, [], [], 0.1)[0]:
            client, peer = listener.accept()
            with client:
                client.sendall(repr((original_destination(client), peer[0])).encode())
    for listener in listeners:
        listener.close()


def ask(address: str, port: int) -> tuple[tuple[str, int], str]:
    """What serve() answers: the original destination, and us as it saw us."""
    host, _, scope = address.partition("%")
    where = (host, port, 0, socket.if_nametoindex(scope)) if scope else (host, port)
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as client:
        client.settimeout(WAIT_S)
        client.connect(where)
        text = client.recv(1000).decode()
    wanted, peer = eval(text)
    return wanted, peer


def answers(address: str, port: int) -> bool:
    try:
        ask(address, port)
    except ConnectionRefusedError:
        return False
    return True


def put_all(puts: Puts, port: int = LISTENER) -> None:
    redirects = Redirects()
    for family, ports, addresses in puts:
        redirects.put(family, ports, port, addresses=addresses)


def clear() -> None:
    Redirects().remove_table()


def nft(command: str) -> str:
    return subprocess.run(["nft", *command.split()], check=True, capture_output=True, text=True).stdout


def lines(command: str) -> list[str]:
    """Sorted: the order of elements is the kernel's."""
    return sorted(
        line.removeprefix("elements = {").strip(" ,}\t")
        for line in nft(command).replace("elements = {", "\n").splitlines()
    )


def tables() -> str:
    return nft("list tables")


# Fixtures


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """The lab with the listening socket on its host, and a second address there."""
    stop = tmp_path_factory.mktemp("redirect") / "stop"
    with Lab.from_yaml("lan.yaml") as lab:
        lab["host"].run(["ip", "address", "add", f"{OTHER4}/24", "dev", "lan0"], check=True)
        lab.serve("c1", 80)
        server = Thread(target=lambda: lab["host"].python(serve, stop, timeout_s=300.0))
        server.start()
        try:
            while not stop.with_suffix(".ready").exists():
                time.sleep(0.02)
            link_local(lab)  # from then on IPv6 works
            yield lab
        finally:
            stop.touch()
            server.join()


@pytest.fixture
def put(machine: Lab) -> Iterator[Callable[[Puts], None]]:
    """put(puts) on the host, until the end of the test."""
    yield lambda puts: machine["host"].python(put_all, puts)
    machine["host"].python(clear)


def link_local(lab: Lab) -> str:
    """The host's on the LAN, when neither it nor the client's is tentative any more."""
    found = []
    for name, interface in (("client", "eth0"), ("host", "lan0")):
        command = ["ip", "-6", "-o", "address", "show", "dev", interface, "scope", "link", "-tentative"]
        end = time.monotonic() + WAIT_S
        while "fe80" not in (text := lab[name].run(command).stdout):
            assert time.monotonic() < end, f"{name} has no link-local address"
            time.sleep(0.05)
        found.append(text.split("inet6 ")[1].split("/")[0])
    return found[-1]


# Where connections arrive


@pytest.mark.parametrize(
    ("who", "address"),
    [
        ("host", "127.0.0.1"),
        ("host", "127.0.0.9"),
        ("host", "::1"),
        ("host", HOST4),
        ("host", OTHER4),
        ("host", HOST6),
        ("client", HOST4),
        ("client", OTHER4),
        ("client", HOST6),
    ],
)
def test_one_socket_serves_a_range_on_every_address(
    machine: Lab, put: Callable[[Puts], None], who: str, address: str
) -> None:
    put(EVERYTHING)
    for port in (FIRST, 25000, LAST):
        wanted, peer = machine[who].python(ask, address, port)
        assert wanted == (address, port)
        if who == "client":
            assert peer in ("198.51.100.7", "2001:db8:1::7")
    for port in (FIRST - 1, LAST + 1):
        assert not machine[who].python(answers, address, port)


def test_link_local_addresses_are_served_from_here_and_from_the_lan(machine: Lab, put: Callable[[Puts], None]) -> None:
    put(EVERYTHING)
    address = link_local(machine)
    for who, interface in (("host", "lan0"), ("client", "eth0")):
        wanted, _ = machine[who].python(ask, f"{address}%{interface}", 25000)
        assert wanted == (address, 25000)


@pytest.mark.parametrize(
    ("published", "served", "refused"),
    [
        ("127.0.0.1", [("host", "127.0.0.1")], [("host", "127.0.0.9"), ("host", HOST4), ("client", HOST4)]),
        ("::1", [("host", "::1")], [("host", HOST6), ("client", HOST6)]),
        (HOST4, [("host", HOST4), ("client", HOST4)], [("host", "127.0.0.1"), ("client", OTHER4)]),
        (HOST6, [("host", HOST6), ("client", HOST6)], [("host", "::1")]),
    ],
)
def test_a_mapping_of_one_address_is_not_served_for_others(
    machine: Lab,
    put: Callable[[Puts], None],
    published: str,
    served: list[tuple[str, str]],
    refused: list[tuple[str, str]],
) -> None:
    family = 6 if ":" in published else 4
    put([(family, (FIRST, LAST), (published,))])
    for who, address in served:
        assert machine[who].python(ask, address, 25000)[0] == (address, 25000)
    for who, address in refused:
        assert not machine[who].python(answers, address, 25000), (who, address)


def test_the_loopback_is_not_open_to_the_lan_even_with_route_localnet(
    machine: Lab, put: Callable[[Puts], None]
) -> None:
    from scapy.layers.inet import IP, TCP
    from scapy.layers.l2 import Ether

    put([(4, (FIRST, LAST), ANY[:1])])
    mac = machine["host"].run(["cat", "/sys/class/net/lan0/address"], check=True).stdout.strip()
    setting = "net.ipv4.conf.lan0.route_localnet"
    machine["host"].run(["sysctl", "-w", f"{setting}=1"], check=True)
    with machine.capture("client", "eth0", lambda packet: bool(packet.haslayer(TCP))) as wire:
        for dst, sport in (("127.0.0.1", 1111), (HOST4, 2222)):
            frame = Ether(dst=mac) / IP(src="198.51.100.7", dst=dst) / TCP(sport=sport, dport=25000, flags="S")
            machine.send("client", "eth0", frame)
        time.sleep(1.3)  # a lost answer is sent again after a second
    machine["host"].run(["sysctl", "-w", f"{setting}=0"], check=True)
    accepted = [packet[TCP].dport for packet in wire.packets() if packet[TCP].flags == "SA"]
    assert set(accepted) == {2222}  # the second shows that the first would have been seen


@pytest.mark.ours_alone
def test_what_portmap_publishes_is_not_taken_from_it_and_the_rest_is_served(
    machine: Lab, plugins: Plugins, put: Callable[[Puts], None]
) -> None:
    network = Network(machine, plugins)
    network.attach("c1", mapping(25000, 80))
    put(EVERYTHING)
    for who, address in (("client", HOST4), ("client", HOST6), ("host", HOST4), ("host", "127.0.0.1")):
        assert machine.fetch(who, address, 25000).name == "c1"
    assert machine["host"].python(ask, "::1", 25000)[0] == ("::1", 25000)
    address = link_local(machine)
    assert machine["client"].python(ask, f"{address}%eth0", 25000)[0] == (address, 25000)
    network.detach("c1")
    assert machine["client"].python(ask, HOST4, 25000)[0] == (HOST4, 25000)


# The table


def life() -> list[str]:
    """What the table looks like over a life; called inside the lab."""
    redirects, seen = Redirects(), []
    where = {"addresses": ("0.0.0.0",)}
    redirects.put(4, (FIRST, LAST), LISTENER, **where)
    seen.append(nft("list table inet portfwd"))
    redirects.put(4, (FIRST, LAST), LISTENER, **where)  # again
    redirects.put(4, (80, 80), LISTENER, addresses=("127.0.0.1", "127.0.0.9"))
    seen.append(nft("list table inet portfwd"))
    redirects.take(4, (80, 80), LISTENER, addresses=("127.0.0.1", "127.0.0.9"))
    seen.append(nft("list table inet portfwd"))
    redirects.take(4, (80, 80), LISTENER, addresses=("127.0.0.1",))  # again
    redirects.take(4, (FIRST, LAST), LISTENER, **where)
    seen.append(tables())
    redirects.take(4, (FIRST, LAST), LISTENER, **where)
    redirects.restore()
    redirects.remove_table()
    return seen


def test_ten_thousand_ports_are_one_element_and_the_table_goes_with_the_last(machine: Lab) -> None:
    alone, more, again, none = machine["host"].python(life)
    assert alone.count(f": {LISTENER}") == 1
    assert more.count(f": {LISTENER}") == 3
    assert again == alone
    assert "portfwd" not in none


def overlap() -> list[str]:
    redirects, said = Redirects(), []
    redirects.put(4, (1000, 2000), LISTENER, addresses=("127.0.0.1",))
    before = nft("list table inet portfwd")
    for ports, address in (((2000, 2001), "127.0.0.1"), ((1, 65535), "0.0.0.0"), ((1500, 1500), "127.0.0.1")):
        try:
            redirects.put(4, ports, LISTENER, addresses=("192.0.2.1", address))
        except PortInUse as error:
            said.append(str(error))
    redirects.put(4, (1000, 2000), LISTENER, addresses=("127.0.0.2",))
    redirects.put(4, (2001, 2001), LISTENER, addresses=("127.0.0.1",))
    redirects.put(6, (1000, 2000), LISTENER, addresses=("::",))
    redirects.take(6, (1000, 2000), LISTENER, addresses=("::",))
    redirects.take(4, (2001, 2001), LISTENER, addresses=("127.0.0.1",))
    redirects.take(4, (1000, 2000), LISTENER, addresses=("127.0.0.2",))
    assert nft("list table inet portfwd") == before
    redirects.remove_table()
    return said


def test_overlapping_ports_are_refused_with_both_sides_named(machine: Lab) -> None:
    said = machine["host"].python(overlap)
    assert len(said) == 3
    assert said[0] == (
        "port 2000-2001/tcp on 127.0.0.1 cannot be redirected: port 1000-2000/tcp on 127.0.0.1 is redirected to 7000 already"
    )


def succession() -> list[set[Redirect]]:
    """The elements after each step of a successor's start."""
    put_all([*EVERYTHING, (4, (80, 80), ("127.0.0.1",))])
    successor, seen = Redirects(), []
    successor.put(4, (FIRST, LAST), LISTENER, addresses=("0.0.0.0",))
    seen.append(redirect.listing()[1])
    successor.put(4, (80, 80), LISTENER + 1, addresses=("127.0.0.1",))
    seen.append(redirect.listing()[1])
    put_all(EVERYTHING[1:])
    successor.restore()
    seen.append(redirect.listing()[1])
    successor.remove_table()
    put_all(EVERYTHING)
    Redirects().restore()
    assert "portfwd" not in tables()
    return seen


def test_a_successor_keeps_what_is_there_until_it_conflicts_or_is_restored(machine: Lab) -> None:
    kept, conflict, restored = machine["host"].python(succession)
    assert len(kept) == 3
    mine = {Redirect(4, b"", FIRST, LAST, LISTENER), Redirect(4, b"\x7f\0\0\1", 80, 80, LISTENER + 1)}
    assert conflict == mine
    assert restored == mine


def mend() -> list[str]:
    """Kinds of damage that are not noticed or not mended."""
    redirects, failed = Redirects(), []
    redirects.put(4, (FIRST, LAST), LISTENER, addresses=("0.0.0.0",))
    redirects.put(6, (1, 65535), LISTENER, addresses=("fe80::1", "::1"))
    whole = lines("list table inet portfwd")
    foreign = "add map inet portfwd any4 { type mark : mark; }"
    for damage in (
        ["flush ruleset"],
        ["delete table inet portfwd"],
        ["flush map inet portfwd specific6"],
        ["flush chain inet portfwd own_output"],
        ["delete element inet portfwd any4 { 20000-29999 }"],
        ["delete table inet portfwd", "add table inet portfwd", foreign],  # another version's
    ):
        for command in damage:
            nft(command)
        if redirects.is_whole():
            failed.append(f"unnoticed: {damage}")
        redirects.restore()
        if not redirects.is_whole() or lines("list table inet portfwd") != whole:
            failed.append(f"not mended: {damage}")
    nft("flush ruleset")
    redirects.put(4, (80, 80), LISTENER, addresses=("127.0.0.1",))  # brings the rest back, too
    if not redirects.is_whole():
        failed.append("put after a flush")
    nft("flush ruleset")
    redirects.take(4, (80, 80), LISTENER, addresses=("127.0.0.1",))
    if not redirects.is_whole():
        failed.append("take after a flush")
    redirects.remove_table()
    return failed


def test_whatever_was_damaged_is_noticed_and_mended(machine: Lab) -> None:
    assert machine["host"].python(mend) == []


# What cannot be


@pytest.mark.parametrize(
    ("family", "ports", "port", "address"),
    [
        (4, (1, 2), 7, "127.0.0.1; drop"),
        (4, (1, 2), 7, "::1"),
        (6, (1, 2), 7, "127.0.0.1"),
        (6, (1, 2), 7, "fe80::1%lan0"),
        (4, (1, 2), 7, ""),
        (4, (0, 2), 7, "127.0.0.1"),
        (4, (3, 2), 7, "127.0.0.1"),
        (4, (1, 65536), 7, "127.0.0.1"),
        (4, (1, 2), 0, "127.0.0.1"),
        (5, (1, 2), 7, "127.0.0.1"),
    ],
)
def test_only_ports_and_addresses_get_into_rules(family: int, ports: tuple[int, int], port: int, address: str) -> None:
    with pytest.raises(PortfwdError):
        parse(family, ports, port, (address,))


def put_as_nobody() -> str:
    os.setgid(65534)
    os.setuid(65534)
    try:
        put_all(EVERYTHING)
    except Lacking as error:
        return str(error)
    return ""


def test_without_the_capability_it_says_what_lacks(machine: Lab) -> None:
    assert "CAP_NET_ADMIN" in machine["host"].python(put_as_nobody)


def test_without_the_python_module_it_says_what_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libnftables, "FOLDERS", ("/nonexistent",))
    monkeypatch.delitem(sys.modules, "nftables", raising=False)
    redirects = Redirects()
    with pytest.raises(Lacking, match="python3-nftables"):
        redirects.put(4, (1, 2), LISTENER, addresses=("127.0.0.1",))
    redirects.remove_table()
    assert redirects.is_whole()

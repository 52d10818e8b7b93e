"""The client's states, with a made-up clock and servers that scapy speaks for."""

from __future__ import annotations

import itertools

import pytest
from scapy.layers.dhcp import BOOTP, DHCP

from cni_py.addr import ip_text, parse_ip
from cni_py.dhcp import message
from cni_py.dhcp.answer import result_of
from cni_py.dhcp.machine import NEVER, Identity, Limits, Machine, Sending, State
from cni_py.errors import CniError

MAC, SERVER_MAC = bytes.fromhex("020000000001"), bytes.fromhex("0200000000fe")
SERVER, OTHER, ADDRESS = "192.0.2.1", "192.0.2.2", "192.0.2.50"
MASK = ("subnet_mask", "255.255.255.0")


class Trial:
    """A machine, and what it has sent."""

    def __init__(self, **identity: object) -> None:
        numbers = itertools.count(1)
        known = {"mac": MAC, "client": b"\0c1", "requested": (3, 1), **identity}
        self.machine = Machine(Identity(**known), Limits(), lambda: next(numbers) % 7 / 7)  # type: ignore[arg-type]
        self.now = 1000.0
        self.sent: list[Sending] = []

    def take(self, sendings: list[Sending]) -> list[Sending]:
        self.sent += sendings
        return sendings

    def state(self) -> State:
        return self.machine.state

    def start(self) -> None:
        self.take(self.machine.start(self.now))

    def wait(self) -> list[Sending]:
        """Until its deadline."""
        self.now = max(self.now, self.machine.deadline)
        return self.take(self.machine.tick(self.now))

    def last(self) -> BOOTP:
        return BOOTP(self.sent[-1].payload)

    def options(self) -> dict[str, object]:
        return dict(option for option in self.last()[DHCP].options if isinstance(option, tuple))

    def hear(self, kind: str, *options: object, server: str = SERVER, address: str = ADDRESS, **fields: object) -> None:
        """An answer to the message that was sent last."""
        known = {"op": 2, "xid": self.last().xid, "yiaddr": address, "chaddr": MAC, **fields}
        given = [("message-type", kind), *([("server_id", server)] if server else []), MASK, *options, "end"]
        found = message.parse(bytes(BOOTP(**known) / DHCP(options=given)))
        assert found is not None
        self.take(self.machine.receive(found, SERVER_MAC, self.now))

    def bind(self, *options: object) -> None:
        self.start()
        self.hear("offer")
        self.hear("ack", ("lease_time", 800), *options)
        assert self.machine.state is State.BOUND


def test_a_lease_is_asked_for_as_the_rfc_has_it() -> None:
    trial = Trial(provided={12: b"web"})
    trial.start()
    assert trial.options()["message-type"] == message.DISCOVER
    trial.hear("offer")
    options = trial.options()
    assert (options["message-type"], options["requested_addr"], options["server_id"]) == (message.ASK, ADDRESS, SERVER)
    assert (options["client_id"], options["hostname"], options["param_req_list"]) == (b"\0c1", b"web", [3, 1])
    assert trial.last().ciaddr == "0.0.0.0"
    trial.hear("ack", ("lease_time", 800))
    lease = trial.machine.lease
    assert lease is not None
    assert (ip_text(lease.address), ip_text(lease.server), lease.server_mac) == (ADDRESS, SERVER, SERVER_MAC)
    assert (lease.renewal, lease.rebinding, lease.expiry) == (1400.0, 1680.0, 1800.0)
    assert trial.machine.deadline == 1400.0
    assert {sending.mac for sending in trial.sent} == {b""}


@pytest.mark.parametrize(
    "change",
    [
        {"xid": 5},
        {"chaddr": bytes(6)},
        {"server": ""},
        {"address": "0.0.0.0"},
        {"address": "127.0.0.1"},
        {"address": "255.255.255.255"},
        {"address": "224.0.0.1"},
    ],
    ids=str,
)
def test_an_offer_that_cannot_be_is_passed_over(change: dict[str, object]) -> None:
    trial = Trial()
    trial.start()
    trial.hear("offer", **change)  # type: ignore[arg-type]
    assert trial.state() is State.SELECTING
    assert len(trial.sent) == 1


@pytest.mark.parametrize(
    "change", [{"server": OTHER}, {"address": "192.0.2.51"}, {"xid": 5}, {"chaddr": bytes(6)}], ids=str
)
@pytest.mark.parametrize("kind", ["ack", "nak"])
def test_only_the_server_that_was_asked_decides(kind: str, change: dict[str, object]) -> None:
    if kind == "nak" and "address" in change:
        return  # a refusal has no address
    trial = Trial()
    trial.start()
    trial.hear("offer")
    trial.hear(kind, **change)  # type: ignore[arg-type]
    assert (trial.state(), len(trial.sent)) == (State.REQUESTING, 2)


def test_a_search_becomes_slower_and_ends() -> None:
    trial = Trial()
    trial.start()
    times = [trial.now]
    while trial.wait():
        times.append(trial.now)
    waits = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert waits[0] < 1
    assert max(waits) <= 62 * 1.25
    assert (trial.state(), trial.machine.failure) == (State.ENDED, "no more tries")
    assert trial.now == 1000.0 + 208.0
    assert len(times) < 20
    assert trial.machine.tick(trial.now + 1) == []


def test_a_server_that_offers_and_does_not_acknowledge_is_given_up() -> None:
    trial = Trial()
    trial.start()
    first = trial.last().xid
    trial.hear("offer")
    while trial.state() is State.REQUESTING:
        trial.wait()
    assert trial.now >= 1010.0
    assert (trial.state(), trial.options()["message-type"]) == (State.SELECTING, message.DISCOVER)
    assert trial.last().xid != first


def test_a_refusal_is_not_asked_about_at_once() -> None:
    trial = Trial()
    trial.start()
    for _ in range(3):
        trial.hear("offer")
        trial.hear("nak", address="0.0.0.0")
        assert trial.state() is State.SELECTING
        assert trial.machine.deadline - trial.now >= 3
        trial.wait()


def test_it_is_renewed_by_its_server_then_by_any() -> None:
    trial = Trial()
    trial.bind()
    trial.wait()
    asked = trial.sent[-1]
    assert trial.state() is State.RENEWING
    assert (ip_text(asked.source), ip_text(asked.destination), asked.mac) == (ADDRESS, SERVER, SERVER_MAC)
    assert trial.last().ciaddr == ADDRESS
    assert not {"requested_addr", "server_id"} & trial.options().keys()
    trial.hear("ack", ("lease_time", 800), server=OTHER)
    assert trial.state() is State.RENEWING
    times = [trial.now]
    while trial.state() is State.RENEWING:
        trial.wait()
        times.append(trial.now)
    assert min(later - earlier for earlier, later in itertools.pairwise(times[:-1])) >= 60
    assert (trial.state(), times[-1]) == (State.REBINDING, 1680.0)
    assert (ip_text(trial.sent[-1].destination), trial.sent[-1].mac) == ("255.255.255.255", b"")
    trial.hear("ack", ("lease_time", 100), server=OTHER)
    lease = trial.machine.lease
    assert lease is not None
    assert (trial.state(), ip_text(lease.server), lease.expiry) == (State.BOUND, OTHER, 1780.0)


def test_it_ends_when_nobody_renews_it() -> None:
    trial = Trial()
    trial.bind()
    while trial.state() is not State.ENDED:
        trial.wait()
    assert (trial.now, trial.machine.failure) == (1800.0, "the lease has expired")
    assert trial.machine.release() == []


@pytest.mark.parametrize("offered", [ADDRESS, "192.0.2.51"])
def test_who_is_refused_a_renewal_asks_for_the_same_address(offered: str) -> None:
    """A server that has lost its memory gives it again. Another address would be of no use to the container."""
    trial = Trial()
    trial.bind()
    trial.wait()
    trial.hear("nak", server=OTHER, address="0.0.0.0")
    assert trial.state() is State.RENEWING
    trial.hear("nak", address="0.0.0.0")
    assert (trial.options()["message-type"], trial.options()["requested_addr"]) == (message.DISCOVER, ADDRESS)
    trial.hear("offer", address=offered, server=OTHER)
    if offered == ADDRESS:
        trial.hear("ack", ("lease_time", 800), server=OTHER)
        assert trial.state() is State.BOUND
        return
    while trial.state() is not State.ENDED:
        trial.wait()
    assert trial.machine.failure == "the server does not give the address again"
    assert trial.now <= 1400.0 + 10


def test_refusals_without_end_end() -> None:
    trial = Trial()
    trial.bind()
    trial.wait()
    while trial.state() is not State.ENDED:
        trial.hear("nak" if trial.state() is not State.SELECTING else "offer", address=ADDRESS)
        if trial.state() is State.SELECTING:
            trial.wait()
    assert trial.now <= 1400.0 + 10


def test_a_release_names_who_gives_what_back() -> None:
    trial = Trial(provided={message.CLIENT: b"mine"})
    trial.bind()
    (sending,) = trial.take(trial.machine.release())
    options = trial.options()
    assert (options["message-type"], options["server_id"], options["client_id"]) == (message.RELEASE, SERVER, b"mine")
    assert (trial.last().ciaddr, ip_text(sending.destination), sending.mac) == (ADDRESS, SERVER, SERVER_MAC)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([("lease_time", 0xFFFFFFFF)], (NEVER, NEVER, NEVER)),
        ([], (1800.0, 3060.0, 3600.0)),
        ([("lease_time", 100), ("renewal_time", 10), ("rebinding_time", 20)], (10.0, 20.0, 100.0)),
        ([("lease_time", 100), ("renewal_time", 90), ("rebinding_time", 20)], (20.0, 20.0, 100.0)),
        ([("lease_time", 100), ("renewal_time", 500), ("rebinding_time", 500)], (50.0, 85.0, 100.0)),
        ([("lease_time", 0)], (1.0, 1.0, 1.0)),
    ],
)
def test_times_that_cannot_be_are_not_believed(options: list[object], expected: tuple[float, ...]) -> None:
    trial = Trial()
    trial.start()
    trial.hear("offer")
    trial.hear("ack", *options)
    lease = trial.machine.lease
    assert lease is not None
    assert tuple(time - 1000.0 for time in (lease.renewal, lease.rebinding, lease.expiry)) == expected


def test_broadcasts_are_asked_for_until_there_is_an_address() -> None:
    trial = Trial(broadcast=True)
    trial.bind()
    assert [BOOTP(sending.payload).flags.value for sending in trial.sent] == [0x8000, 0x8000]
    trial.wait()
    assert trial.last().flags.value == 0


# What the plugin is told


def routes(**options: object) -> list[tuple[str, str]]:
    trial = Trial()
    codes = {"router": 3, "static": 33, "classless": 121}
    trial.bind(*((codes[name], value) for name, value in options.items()))
    lease = trial.machine.lease
    assert lease is not None
    return [(str(route.dst), ip_text(route.gw or bytes(4))) for route in result_of(lease).routes]


def test_routes_are_those_of_the_options() -> None:
    router, static = parse_ip(SERVER), parse_ip("10.0.0.0") + parse_ip(OTHER) + b"\xe0\0\0\1" + parse_ip(OTHER) + b"xx"
    classless = bytes((25,)) + parse_ip("198.51.100.128") + parse_ip(OTHER) + bytes((0,)) + parse_ip(SERVER)
    default = [("0.0.0.0/0", SERVER)]
    assert routes(router=router) == default
    assert routes(router=router + b"x") == []
    assert routes(router=router, static=static) == [("10.0.0.0/8", OTHER), *default]
    assert routes(router=router, static=static, classless=classless) == [("198.51.100.128/25", OTHER), *default]
    for damaged in (classless[:-1], b"\x21" + bytes(9), b"\x08"):
        assert routes(router=router, classless=damaged) == default


@pytest.mark.parametrize("mask", [b"", b"\xff\xff\xff", b"\xff\x00\xff\x00"])
def test_a_lease_without_a_mask_is_none(mask: bytes) -> None:
    trial = Trial()
    trial.bind()
    lease = trial.machine.lease
    assert lease is not None
    object.__setattr__(lease, "options", {1: mask} if mask else {})
    with pytest.raises(CniError, match="ask"):
        result_of(lease)

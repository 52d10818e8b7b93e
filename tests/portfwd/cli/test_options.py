"""What the command line of publish and run means, and how ports are settled."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator

import pytest

from portfwd import spec
from portfwd.cli import options
from portfwd.cli.options import Wish
from portfwd.errors import Lacking, PortfwdError, PortInUse, Usage
from portfwd.mapping import Mapping, Place


def wish(*arguments: str) -> Wish:
    parser = argparse.ArgumentParser()
    options.add_to(parser)
    return options.read(parser.parse_args(arguments))


TO = ("--to", "192.0.2.2")


def test_specs_come_with_and_without_an_option() -> None:
    assert [str(one) for one in wish("8080:80", "81:81", "-p", "53:53/udp", *TO).publishes] == [
        "8080:80/tcp",
        "81:81/tcp",
        "53:53/udp",
    ]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (TO, [("192.0.2.2", Place())]),
        (("--to", "192.0.2.2", "--to", "[::1]:8"), [("192.0.2.2", Place()), ("::1", Place())]),
        (("--netns", "web"), [("127.0.0.1", Place(path="/run/netns/web"))]),
        (("--netns", "/proc/1/ns/net"), [("127.0.0.1", Place(path="/proc/1/ns/net"))]),
        (("--pid", "7", "--to", "::1"), [("::1", Place(pid=7))]),
        (("--container", "3f4e"), [("127.0.0.1", Place(container="3f4e"))]),
    ],
)
def test_targets_are_addresses_here_or_in_a_namespace(
    arguments: tuple[str, ...], expected: list[tuple[str, Place]]
) -> None:
    found = wish("80:80", *arguments).template.destinations
    assert [(one.address, one.place) for one in found] == expected


REFUSED = [
    (TO, "nothing to publish"),
    (("80:80",), "the target is missing"),
    (("80:80", "--to", "web"), "not an IP address"),
    (("80:80", *TO, "--allow", "everybody"), "not a network"),
    (("53:53/udp", *TO, "--proxy-protocol", "1"), "knows TCP only"),
    (("80:80", *TO, "--name", "a b"), "cannot be the name"),
    (("80:80", "81:81", "--to", "192.0.2.2:8"), "needs a single SPEC"),
    (("80:80", *TO, "--connect-timeout", "0"), "connect_timeout_s"),
    (("1-10:1-10", "--to", "192.0.2.2:65530"), "do not fit"),
]


@pytest.mark.parametrize(("arguments", "sentence"), REFUSED)
def test_what_cannot_be_meant_is_refused_before_anything_is_done(arguments: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(Usage, match=sentence):
        wish(*arguments)


def test_several_mappings_share_a_name_and_are_numbered() -> None:
    assert list(wish("80:80", *TO, "--name", "web").names()) == ["web"]
    assert list(wish("80:80", "81:81", *TO, "--name", "web").names()) == ["web-1", "web-2"]
    unnamed = list(wish("80:80", "81:81", *TO).names())
    assert len(set(unnamed)) == 2
    assert all(len(name) == 9 and name.startswith("m") for name in unnamed)


class Host:
    """What a service does, with some ports taken that nobody knows of."""

    def __init__(self, *taken: int) -> None:
        self.taken = set(taken)
        self.published: list[Mapping] = []
        self.asked: list[list[int]] = []

    def offer(self, mappings: list[Mapping]) -> None:
        self.asked.append([mapping.first for mapping in mappings])
        for mapping in mappings:
            if self.taken.intersection(mapping.ports):
                raise PortInUse(f"port {mapping.first} is in use by nginx (pid 812)")
        self.published += mappings

    def withdraw(self, mappings: list[Mapping]) -> None:
        self.published = [one for one in self.published if one not in mappings]


@pytest.fixture
def nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("portfwd.relay.holders.taken", lambda protocol, host_ips: set())
    monkeypatch.setattr("portfwd.cli.options._read", lambda path: "40000 40009")


pytestmark = pytest.mark.usefixtures("nothing_known")


def test_exact_ports_are_asked_for_at_once_and_before_a_pool() -> None:
    host = Host()
    done = options.settle(wish("8000-8002:80", "8000:81", "8001:82", *TO), host.offer, host.withdraw)
    assert host.asked[0] == [8000, 8001]
    assert [mapping.first for mapping in done[:2]] == [8000, 8001]


def test_of_a_pool_each_port_is_tried() -> None:
    host = Host(8000, 8001)
    (mapping,) = options.settle(wish("8000-8005:80", *TO), host.offer, host.withdraw)
    assert mapping.first == 8002
    assert mapping.targets[0].port == 80


def test_random_ports_are_tried_until_one_is_free() -> None:
    host = Host(*(set(range(40000, 40010)) - {40004}))
    (mapping,) = options.settle(wish("80", *TO), host.offer, host.withdraw)
    assert mapping.first == 40004
    assert len(host.asked) <= spec.RANDOM_TRIES


def test_without_a_free_port_what_was_published_is_taken_back() -> None:
    host = Host(*range(8000, 8003))
    with pytest.raises(PortInUse, match=r"8000-8002:80/tcp: found no free port between 8000 and 8002: .*nginx"):
        options.settle(wish("80:80", "8000-8002:80", *TO), host.offer, host.withdraw)
    assert host.asked[0] == [80]
    assert host.published == []


def test_another_failure_is_not_tried_again() -> None:
    def offer(mappings: list[Mapping]) -> None:
        raise Lacking("no descriptor is left")

    with pytest.raises(Lacking):
        options.settle(wish("80", *TO), offer, lambda mappings: None)


def replaced(arguments: tuple[str, ...], *live: Mapping) -> list[Mapping]:
    return options.replacements(wish(*arguments, "--to", "192.0.2.9"), live)


@pytest.fixture
def old() -> Mapping:
    (found,) = options.settle(wish("8080:80", *TO, "--name", "web"), lambda _: None, lambda _: None)
    return found


@pytest.mark.parametrize(
    "arguments",
    [("8080:81",), ("8080:81", "--name", "web"), ("81", "--name", "web"), ("8000-8090:81", "--name", "web")],
)
def test_a_live_mapping_is_led_elsewhere(arguments: tuple[str, ...], old: Mapping) -> None:
    (new,) = replaced(arguments, old)
    assert (new.id, new.first, str(new.targets[0])) == ("web", 8080, "192.0.2.9:81")


def test_where_nothing_is_live_it_is_published(old: Mapping) -> None:
    (new,) = replaced(("8081:80", "--name", "api"), old)
    assert (new.id, new.first) == ("api", 8081)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("8081:80", "--name", "web"), "has other ports"),
        (("127.0.0.1:8080:80", "--name", "web"), "has other ports"),
        (("8080:80/udp", "--name", "web"), "has other ports"),
        (("80",), "needs --name"),
        (("80", "--name", "api"), "no mapping api"),
    ],
)
def test_other_ports_are_not_a_replacement(arguments: tuple[str, ...], sentence: str, old: Mapping) -> None:
    with pytest.raises(PortfwdError, match=sentence):
        replaced(arguments, old)


def test_what_portmap_or_docker_published_is_theirs(old: Mapping) -> None:
    with pytest.raises(Usage, match=r"web cannot be replaced: it belongs to net/c1/eth0"):
        replaced(("8080:80",), dataclasses.replace(old, owner="attachment 00ff", label="net/c1/eth0"))


def notes(*arguments: str) -> Iterator[str]:
    yield from options.source_notes(wish("80:80", *arguments).template)


def test_it_is_said_what_the_target_takes_for_the_client() -> None:
    assert list(notes("--to", "127.0.0.1")) == [
        "127.0.0.1 sees every client as 127.0.0.1, this host; --proxy-protocol would send it the client's address, "
        "if it understands that"
    ]
    assert list(notes("--pid", "7", "--proxy-protocol", "2")) == [
        "127.0.0.1 in pid 7 sees every client as 127.0.0.1; a PROXY protocol header (version 2) has the client's address"
    ]
    (inside,) = notes("--netns", "web", "--to", "192.0.2.2")
    assert inside.startswith(
        "192.0.2.2 in /run/netns/web sees every client as an address of its own namespace; --proxy-"
    )


class Terminal:
    """Where people look on."""

    def __init__(self) -> None:
        self.text = ""

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> None:
        self.text += text

    def flush(self) -> None:
        pass


def test_long_work_tells_people_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal, clock = Terminal(), iter((0.0, 0.4, 1.1, 1.5, 2.2))
    monkeypatch.setattr("portfwd.cli.options.sys.stderr", terminal)
    monkeypatch.setattr("portfwd.cli.options.time.monotonic", lambda: next(clock))
    with options.progress("ports found", 4) as tell:
        for done in range(1, 5):
            tell(done)
    assert terminal.text == "\r2 of 4 ports found\r4 of 4 ports found\n"

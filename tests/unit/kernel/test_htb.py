"""cni_py.kernel.htb: what it makes is what tc(8) makes, and what it reads is what tc(8) made."""

import re
import socket

import pytest

from cni_py.addr import parse_address
from cni_py.kernel import htb, tc
from tests.unit.kernel.test_tc import do, index, pair

NETWORKS = ["10.9.0.0/16", "192.0.2.7/23", "0.0.0.0/0", "2001:db8:abcd:1234:e000::/68", "::/0", "2001:db8::1/128"]


def by_tc(exempt: bool, source: bool) -> None:
    """The same on the interface two: 8 Mbit/s with bursts of 100,000 bytes."""
    flow, default = ("1:1", 30) if exempt else ("1:30", 1)
    do(f"tc qdisc add dev two root handle 1: htb default {default}")
    do(
        "tc class add dev two parent 1: classid 1:30 htb rate 8mbit burst 100000 ceil 16mbit cburst 200000 quantum 100000"
    )
    do("tc class add dev two parent 1: classid 1:1 htb rate 800gbit burst 1 cburst 1 quantum 200000")
    end = "src" if source else "dst"
    for text in NETWORKS:
        ip, protocol, priority = ("ip6", "ipv6", 15) if ":" in text else ("ip", "ip", 16)
        match = f"u32 match {ip} {end} {text}" if not text.endswith("/0") else "u32 match u32 0 0"
        do(f"tc filter add dev two parent 1: protocol {protocol} prio {priority} {match} flowid {flow}")


def shown(name: str) -> tuple[str, str, str]:
    """Qdisc, classes and filters in tc's words; the burst of the class without a limit, which tc gives one, aside."""
    classes = [re.sub(r"(?<=800Gbit) burst .*", "", line) for line in do(f"tc class show dev {name}").splitlines()]
    qdisc = re.sub(r"direct_packets_stat \d+", "", do(f"tc qdisc show dev {name} root").replace(name, ""))
    return qdisc, "\n".join(sorted(classes)), do(f"tc filter show dev {name} parent 1:")


@pytest.mark.netns
@pytest.mark.parametrize(("exempt", "source"), [(True, True), (False, False)])
def test_two_classes_and_their_filters_are_what_tc_makes(exempt: bool, source: bool) -> None:
    side = pair()
    networks = [parse_address(text) for text in NETWORKS]
    bucket = tc.TokenBucket(1_000_000, 100_000)
    for name in ("one", "two"):
        assert htb.default_class(side, index(side, name)) is None
    htb.add(side, index(side, "one"), bucket, networks, exempt=exempt, source=source)
    by_tc(exempt, source)
    assert shown("one") == shown("two")
    for at in (index(side, "one"), index(side, "two")):
        assert tc.root_kind(side, at) == "htb"
        assert htb.default_class(side, at) == (htb.LIMITED if exempt else htb.UNLIMITED)
        rates = {minor: rate for minor, (rate, _) in htb.classes(side, at).items()}
        assert rates == {htb.LIMITED: 1_000_000, htb.UNLIMITED: htb.UNLIMITED_RATE}
        assert htb.filters(side, at) == set(htb.wanted_filters(networks, exempt=exempt, source=source))
        assert tc.tbf(side, at) is None
        assert htb.delete(side, at)
        assert not htb.delete(side, at)
    assert not htb.is_lacking(side)


@pytest.mark.netns
def test_an_interface_without_a_queue_sends_nevertheless() -> None:
    side = pair()
    # Else the kernel may send a fourth packet, its MLD report, at a moment of its own within some seconds.
    do("sysctl -q -w net.ipv6.conf.one.disable_ipv6=1")
    do("ip link set one txqueuelen 0")
    do("ip address add 192.0.2.1/24 dev one")
    htb.add(
        side,
        index(side, "one"),
        tc.TokenBucket(1_000_000, 100_000),
        [parse_address("10.0.0.0/8")],
        exempt=True,
        source=False,
    )
    do("ip neighbour add 192.0.2.2 dev one lladdr 02:00:00:00:00:09")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for _ in range(3):
            sender.sendto(bytes(100), ("192.0.2.2", 9))
    assert "Sent 426 bytes 3 pkt (dropped 0" in do("tc -s qdisc show dev one root")

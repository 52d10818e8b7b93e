"""cni_py.kernel.tc: what it makes is what tc(8) makes, and what it reads is what tc(8) made."""

import errno
import re
import subprocess

import pytest

from cni_py.addr import parse_mac
from cni_py.kernel import linksettings, tc
from cni_py.kernel.rtnl import Rtnl

MAC = parse_mac("02:00:00:00:00:07")
BURST = re.compile(r"(?<= burst )(\d+)(?=b )")

# rate and burst in bytes; how tc(8) is told the same
BUCKETS = [
    (125_000, 100_000, "rate 1mbit burst 100000b latency 25ms"),
    (1, 1, "rate 8bit burst 1b limit 1"),
    (416_666, 333_333, "rate 3333328bit burst 333333b latency 25ms"),
    (1_250_000_000, 1_000_000, "rate 10gbit burst 1000000b latency 25ms"),
    (5_000_000_000, 1_000_000_000, "rate 40gbit burst 1000000000b latency 25ms"),
]


def do(command: str) -> str:
    return subprocess.run(command.split(), check=True, capture_output=True, text=True, timeout=10).stdout


def pair(name: str = "one", peer: str = "two") -> Rtnl:
    """A veth pair, both ends up."""
    side = Rtnl()
    side.add_veth(name, peer)
    for end in (name, peer):
        side.set_link(end, up=True)
    return side


def index(side: Rtnl, name: str) -> int:
    link = side.link(name)
    assert link is not None
    return link.index


def shown(side: Rtnl, name: str) -> tc.ShownBucket:
    found = tc.tbf(side, index(side, name))
    assert found is not None
    return found


@pytest.mark.netns
@pytest.mark.parametrize(("rate", "burst", "words"), BUCKETS)
def test_a_token_bucket_is_what_tc_makes(rate: int, burst: int, words: str) -> None:
    side = pair()
    bucket = tc.TokenBucket(rate, burst)
    tc.add_tbf(side, index(side, "one"), bucket)
    do(f"tc qdisc add dev two root handle 1: tbf {words}")
    ours, theirs = (
        BURST.split(do(f"tc qdisc show dev {name} root").replace(f"dev {name}", "")) for name in ("one", "two")
    )
    assert (ours[0], ours[2]) == (theirs[0], theirs[2])
    assert int(ours[1]) == pytest.approx(int(theirs[1]), rel=0.002)  # tc rounds up to 16 ticks, a microsecond
    for name in ("one", "two"):
        assert shown(side, name).is_like(bucket), (name, vars_of(shown(side, name)), bucket.limit, bucket.ticks)


def vars_of(bucket: tc.ShownBucket) -> list[int]:
    return [bucket.rate, bucket.limit, bucket.ticks]


@pytest.mark.netns
def test_a_burst_longer_than_the_ticks_is_kept_whole() -> None:
    """By the kernel, although what it shows are the lower 32 bits: so many bytes pass at once."""
    side = pair()
    bucket = tc.TokenBucket(1000, 2_000_000)
    assert bucket.ticks > tc.U32_MAX
    tc.add_tbf(side, index(side, "one"), bucket)
    assert shown(side, "one").is_like(bucket)
    do("ip address add 192.0.2.1/24 dev one")
    do("ip neighbour add 192.0.2.2 lladdr 02:00:00:00:00:02 dev one")
    send(700, 2000 - 42)
    assert "dropped 0" in do("tc -s qdisc show dev one root")
    passed = re.search(r"Sent (\d+) bytes", do("tc -s qdisc show dev one root"))
    assert passed is not None
    assert int(passed.group(1)) > 1_000_000  # 274,877 bytes are what 32 bits of ticks last for


def send(count: int, size: int) -> None:
    import socket

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.setsockopt(socket.SOL_SOCKET, 32, 1 << 23)  # SO_SNDBUFFORCE
        for _ in range(count):
            sender.sendto(bytes(size), ("192.0.2.2", 9))


@pytest.mark.netns
def test_other_limits_are_not_alike() -> None:
    side = pair()
    tc.add_tbf(side, index(side, "one"), tc.TokenBucket(125_000, 100_000))
    for rate, burst in ((125_001, 100_000), (125_000, 100_100), (125_000, 99_900), (250_000, 200_000)):
        assert not shown(side, "one").is_like(tc.TokenBucket(rate, burst))


@pytest.mark.netns
def test_only_our_own_root_is_deleted() -> None:
    side = pair()
    at = index(side, "one")
    assert tc.tbf(side, at) is None
    assert not tc.delete_tbf(side, at)
    for words in ("handle 5: tbf rate 1mbit burst 100000b latency 25ms", "handle 1: pfifo"):
        do(f"tc qdisc replace dev one root {words}")
        assert tc.tbf(side, at) is None
        assert not tc.delete_tbf(side, at)
        with pytest.raises(FileExistsError):
            tc.add_tbf(side, at, tc.TokenBucket(125_000, 100_000))
        do("tc qdisc delete dev one root")
    tc.add_tbf(side, at, tc.TokenBucket(125_000, 100_000))
    assert tc.delete_tbf(side, at)
    assert not tc.delete_tbf(side, at)
    assert "noqueue" in do("tc qdisc show dev one")


@pytest.mark.netns
def test_a_redirect_is_what_tc_makes() -> None:
    side = pair()
    tc.add_ifb(side, "ours", MAC, 1400)
    tc.add_ifb(side, "theirs", MAC, 1400)
    at = index(side, "one")
    tc.add_ingress(side, at)
    tc.add_redirect(side, at, index(side, "ours"))
    do("tc qdisc add dev two handle ffff: ingress")
    match = "u32 match u32 0 0 classid 1:1 action mirred egress redirect dev theirs"
    do(f"tc filter add dev two parent ffff: prio 1 protocol all {match}")
    ours, theirs = (do(f"tc filter show dev {name} parent ffff:") for name in ("one", "two"))
    assert re.sub(r"index \d+", "index", ours).replace("ours", "theirs") == re.sub(r"index \d+", "index", theirs)
    assert tc.redirects(side, at) == [index(side, "ours")]
    assert tc.redirects(side, index(side, "two")) == [index(side, "theirs")]
    side.delete_link("theirs")
    assert tc.redirects(side, index(side, "two")) in ([0], [])
    assert tc.has_ingress(side, at)
    assert tc.delete_ingress(side, at)
    assert not tc.has_ingress(side, at)
    assert not tc.delete_ingress(side, at)
    assert tc.redirects(side, at) == []


@pytest.mark.netns
def test_clsact_is_no_ingress() -> None:
    side = pair()
    at = index(side, "one")
    do("tc qdisc add dev one clsact")
    assert not tc.has_ingress(side, at)
    assert not tc.delete_ingress(side, at)
    with pytest.raises(OSError, match=r"Exclusivity flag|File exists|busy"):
        tc.add_ingress(side, at)


@pytest.mark.netns
def test_an_ifb_has_the_mac_and_the_mtu_and_no_queue() -> None:
    side = Rtnl()
    tc.add_ifb(side, "ifb7", MAC, 1400)
    link = side.link("ifb7")
    assert link is not None
    assert (link.kind, link.mac, link.mtu, link.up) == ("ifb", MAC, 1400, False)
    assert "qlen" not in do("ip link show ifb7")
    with pytest.raises(FileExistsError):
        tc.add_ifb(side, "ifb7", MAC, 1400)


@pytest.mark.netns
def test_asking_what_the_kernel_lacks_changes_nothing() -> None:
    side = Rtnl()
    before = do("ip -details link show"), do("tc qdisc show")
    assert tc.lacking(side) == ""
    assert (do("ip -details link show"), do("tc qdisc show")) == before


class Without(Rtnl):
    """A kernel that answers one kind of request with one error."""

    def __init__(self, name: bytes, number: int) -> None:
        self.name, self.number = name, number

    def request(self, kind: int, flags: int, body: bytes) -> list[tuple[int, bytes]]:
        raise OSError(self.number if self.name in body else errno.EINVAL, "refused")


@pytest.mark.parametrize(
    ("name", "number", "lacks"),
    [(b"tbf\0", errno.ENOENT, "tbf"), (b"ifb\0", errno.EOPNOTSUPP, "ifb"), (b"none\0", errno.ENOENT, "")],
)
def test_what_a_kernel_lacks_is_known_by_its_answer(name: bytes, number: int, lacks: str) -> None:
    assert tc.lacking(Without(name, number)).partition(" ")[0] == lacks


# cni_py.kernel.linksettings


@pytest.mark.netns
def test_settings_are_read_and_written_as_ip_shows_them() -> None:
    side = pair()
    before = linksettings.read(side, "one")
    assert before is not None
    assert {**before, "mac": ""} == {
        "mac": "",
        "promisc": "false",
        "mtu": "1500",
        "allmulti": "false",
        "txQLen": "1000",
    }
    wanted = {"mac": "02:00:00:00:00:09", "promisc": "true", "mtu": "1300", "allmulti": "true", "txQLen": "0"}
    for setting, value in wanted.items():
        linksettings.write(side, "one", setting, value)
    assert linksettings.read(side, "one") == wanted
    text = do("ip link show one")
    assert all(word in text for word in ("02:00:00:00:00:09", "PROMISC", "ALLMULTI", "mtu 1300"))
    for setting, value in before.items():
        linksettings.write(side, "one", setting, value)
    assert linksettings.read(side, "one") == before


@pytest.mark.netns
def test_what_is_no_setting_is_refused() -> None:
    side = pair()
    assert linksettings.read(side, "none") is None
    with pytest.raises(OSError, match="No such device"):
        linksettings.write(side, "none", "mtu", "1300")
    refused = (("mac", "x"), ("mtu", "x"), ("mtu", "-1"), ("txQLen", str(1 << 32)), ("mtu", "3"), ("colour", "7"))
    for setting, value in refused:
        with pytest.raises(OSError, match=r"cannot be|Invalid argument"):
            linksettings.write(side, "one", setting, value)

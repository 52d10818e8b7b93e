"""The executable bandwidth: the limits that are there after ADD, what they do to packets, and that DEL leaves nothing."""

from __future__ import annotations

import errno
import hashlib
import json
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from lab import Lab
from runtime import ALL, REFUSALS, Plugins
from snapshot import difference

from tests.conftest import GO, OURS
from tests.plugins.bridge_network import ours_alone
from tests.plugins.conftest import START
from tests.plugins.veth_attachment import Conf, VethAttachment
from tests.portfwd.talk import until

INGRESS = {"ingressRate": 1_000_000, "ingressBurst": 800_000}
EGRESS = {"egressRate": 2_000_000, "egressBurst": 1_600_000}
BOTH = {**INGRESS, **EGRESS}
CONTAINERD = {"IngressRate": 1_000_000, "IngressBurst": 4294967295, "EgressRate": 0, "EgressBurst": 0}
WITHOUT = """
from cni_py.kernel import netlink
request = netlink.Socket.request
def refuse(self, kind, flags, body):
    if {kind!r} in body and flags & netlink.NLM_F_CREATE:
        raise OSError({number}, "Unknown kind")
    return request(self, kind, flags, body)
netlink.Socket.request = refuse
"""


@pytest.fixture
def net(shared_lab: Lab, plugins: Plugins) -> Iterator[VethAttachment]:
    attachment = VethAttachment(shared_lab, plugins, "bandwidth")
    attachment.well("ADD", attachment.conf("1.0.0", **INGRESS))  # makes the folders that stay
    attachment.well("DEL", attachment.conf("1.0.0", **INGRESS))
    if plugins.whose == GO:  # leaves it to the plugin that deletes the veth
        attachment.host(f"tc qdisc delete dev {attachment.host_veth} root")
    yield attachment
    attachment.close()
    left = ifbs(attachment)
    for name in left:
        attachment.host(f"ip link delete {name}")
    assert not left


def buckets(net: VethAttachment, dev: str) -> list[str]:
    """The queueing disciplines of an interface of the host, as tc(8) prints them."""
    lines = net.host(f"tc qdisc show dev {dev}").splitlines()
    return [
        line.partition(" refcnt")[0] + line[line.index(" rate") :].rstrip() if " rate" in line else line.strip()
        for line in lines
    ]


def filters(net: VethAttachment, dev: str) -> str:
    return net.host(f"tc filter show dev {dev} parent ffff:")


def ifbs(net: VethAttachment) -> list[str]:
    links = json.loads(net.host("ip -json link show type ifb"))
    return sorted(link["ifname"] for link in links if link)


def shared_name(net: VethAttachment) -> str:
    return "bwp" + hashlib.sha512(f"{net.network}{net.id}".encode()).hexdigest()[:12]


def state(net: VethAttachment) -> dict[str, object]:
    return {
        **net.state(),
        "qdiscs": net.host("tc qdisc show"),
        "filters": [filters(net, name) for name in net.host_veths],
    }


def del_and_compare(net: VethAttachment, conf: Mapping[str, object], before: dict[str, object]) -> None:
    for _ in range(2):
        net.well("DEL", conf)
        if net.plugins.whose == OURS:  # Go leaves the veth's own to the plugin that deletes the veth
            assert not difference(before, state(net))
        assert not ifbs(net)


@pytest.mark.parametrize("version", ALL[2:])
def test_without_rates_the_result_is_passed_on(net: VethAttachment, version: str) -> None:
    if version not in net.plugins.versions:
        pytest.skip(f"these plugins do not know {version}")
    before = state(net)
    conf = net.conf(version)
    result = net.well("ADD", conf).json
    assert {"dns": {}, **result} == {"dns": {}, **conf["prevResult"]}
    net.well("DEL", conf)
    assert not difference(before, state(net))


@pytest.mark.unchained
def test_versions_before_interfaces_are_refused(net: VethAttachment) -> None:
    known = json.loads(net.run("VERSION", {}).stdout)["supportedVersions"]
    assert known == list(net.plugins.versions[2:])
    assert net.run("ADD", net.conf("0.2.0", **INGRESS)).code == 1


@pytest.mark.parametrize("version", ["0.3.1", "0.4.0", "1.0.0"])
def test_both_directions_are_limited(net: VethAttachment, version: str) -> None:
    before = state(net)
    conf = net.conf(version, **BOTH)
    result = net.well("ADD", conf).json
    name = shared_name(net)
    ifb = json.loads(net.host(f"ip -json -details link show dev {name}"))[0]
    assert result["interfaces"][:-1] == conf["prevResult"]["interfaces"]
    assert result["interfaces"][-1] == {"name": name, "mac": ifb["address"]}
    assert (ifb["linkinfo"]["info_kind"], ifb["mtu"], ifb.get("txqlen", 0), "UP" in ifb["flags"]) == (
        "ifb",
        1500,
        0,
        True,
    )
    assert buckets(net, net.host_veth) == [
        "qdisc tbf 1: root rate 1Mbit burst 100000b lat 25ms",
        "qdisc ingress ffff: parent ffff:fff1 ----------------",
    ]
    assert buckets(net, name) == ["qdisc tbf 1: root rate 2Mbit burst 200000b lat 25ms"]
    assert f"mirred (Egress Redirect to device {name}) stolen" in filters(net, net.host_veth)
    if version >= "0.4.0":
        net.well("CHECK", {**conf, "prevResult": result})
    del_and_compare(net, {**conf, "prevResult": result}, before)


@pytest.mark.parametrize("rates", [INGRESS, EGRESS])
def test_one_direction_may_be_limited_alone(net: VethAttachment, rates: Conf) -> None:
    before = state(net)
    conf = net.conf("1.0.0", **rates)
    result = net.well("ADD", conf).json
    assert len(buckets(net, net.host_veth)) == (1 if rates is INGRESS else 2)
    assert ifbs(net) == ([] if rates is INGRESS else [shared_name(net)])
    net.well("CHECK", {**conf, "prevResult": result})
    del_and_compare(net, {**conf, "prevResult": result}, before)


@pytest.mark.parametrize(
    "runtime", [BOTH, {key[0].upper() + key[1:]: value for key, value in BOTH.items()}], ids=["lower case", "capitals"]
)
def test_the_runtime_may_say_the_rates(net: VethAttachment, runtime: Conf) -> None:
    conf = net.conf("1.0.0", capabilities={"bandwidth": True}, runtimeConfig={"bandwidth": runtime})
    conf["prevResult"] = net.well("ADD", conf).json
    assert len(buckets(net, net.host_veth)) == 2
    net.well("CHECK", conf)
    net.well("DEL", conf)


def test_the_plugins_own_rates_go_over_the_runtimes(net: VethAttachment) -> None:
    net.well("ADD", net.conf("1.0.0", **INGRESS, runtimeConfig={"bandwidth": EGRESS}))
    assert not ifbs(net)
    assert buckets(net, net.host_veth) == ["qdisc tbf 1: root rate 1Mbit burst 100000b lat 25ms"]


def test_the_burst_that_kubernetes_sends_is_accepted(net: VethAttachment) -> None:
    """4 Gbit, which at 1 Mbit/s take longer than the kernel's 32 bits of ticks can say: what tc shows is the rest."""
    conf = net.conf("1.0.0", runtimeConfig={"bandwidth": CONTAINERD})
    result = net.well("ADD", conf).json
    assert result["interfaces"] == conf["prevResult"]["interfaces"]
    assert buckets(net, net.host_veth) == ["qdisc tbf 1: root rate 1Mbit burst 21474835b lat 4.12e+03s"]
    net.well("CHECK", {**conf, "prevResult": result})
    net.well("DEL", {**conf, "prevResult": result})


@pytest.mark.parametrize("rate", [8_000, 3_333_333, 10_000_000_000, ours_alone(40_000_000_000)])
def test_rates_from_slow_to_fast_pass_the_check(net: VethAttachment, rate: int) -> None:
    rates = {"ingressRate": rate, "ingressBurst": rate * 2 // 3, "egressRate": rate, "egressBurst": rate // 3}
    conf = net.conf("1.0.0", **rates)
    conf["prevResult"] = net.well("ADD", conf).json
    net.well("CHECK", conf)
    net.well("DEL", conf)


# What it does to packets


def blast(address: str, count: int, size: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 22)
        for _ in range(count):
            try:
                sender.sendto(bytes(size), (address, 9))
            except OSError as error:
                if error.errno not in (errno.ENOBUFS, errno.ECONNREFUSED):
                    raise


@pytest.mark.parametrize("direction", ["ingress", "egress"])
def test_packets_beyond_the_limit_are_dropped(net: VethAttachment, direction: str) -> None:
    """20,000 bytes at once and 10,000 a second, of 300,000 that are sent at once."""
    net.host(f"ip address add 192.0.2.1/24 dev {net.host_veth}")
    net.inside("ip address add 192.0.2.2/24 dev eth0")
    conf = net.conf("1.0.0", **{f"{direction}Rate": 80_000, f"{direction}Burst": 160_000})
    net.well("ADD", conf)
    node, target, dev = (
        ("host", "192.0.2.2", net.host_veth) if direction == "ingress" else (net.id, "192.0.2.1", shared_name(net))
    )
    net.lab[node].python(blast, target, 300, 972)  # of 1,014 with headers

    def counted(what: str) -> int:
        return int(json.loads(net.host(f"tc -s -json qdisc show dev {dev}"))[0][what])

    assert until(lambda: counted("drops") > 100)
    assert until(lambda: counted("bytes") > 10_000)
    assert counted("bytes") < 150_000
    net.well("DEL", conf)


# Networks that are limited, or are not

SIDES = {  # two pairs of addresses, host and container, of the same networks
    4: (("192.0.2.1/24", "192.0.2.2/24"), ("203.0.113.1/24", "203.0.113.2/24")),
    6: (("2001:db8:2::1/64", "2001:db8:2::2/64"), ("2001:db8:3::1/64", "2001:db8:3::2/64")),
}
UNSHAPED, SHAPED = ({key: ["192.0.2.77/24", "2001:db8:2::/64"]} for key in ("unshapedSubnets", "shapedSubnets"))


def sent_by_class(net: VethAttachment, dev: str) -> dict[str, int]:
    """Bytes that left by each class of an interface; the JSON of iproute2 6.1 is none."""
    lines = net.host(f"tc -s class show dev {dev}").splitlines()
    names = [line.split()[2] for line in lines if line.startswith("class ")]
    return dict(zip(names, [int(line.split()[1]) for line in lines if line.split()[:1] == ["Sent"]], strict=True))


def more(net: VethAttachment, dev: str, earlier: Mapping[str, int]) -> dict[str, int]:
    """Bytes since then."""
    return {name: sent - earlier[name] for name, sent in sent_by_class(net, dev).items()}


def send_from(source: str, target: str) -> None:
    """10,000 bytes."""
    family = socket.AF_INET6 if ":" in target else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sender:
        sender.bind((source, 0))
        for _ in range(10):
            try:
                sender.sendto(bytes(1000), (target, 9))
            except ConnectionRefusedError:
                continue


@pytest.mark.ours_alone
@pytest.mark.parametrize("keys", [UNSHAPED, SHAPED], ids=["unshaped", "shaped"])
def test_only_some_networks_are_limited(net: VethAttachment, keys: Conf) -> None:
    net.lab[net.id].run(["sysctl", "-q", "-w", "net.ipv6.conf.all.accept_dad=0"], check=True)
    for family, pairs in SIDES.items():
        nodad = " nodad" * (family == 6)
        for mine, theirs in pairs:
            net.host(f"ip address add {mine} dev {net.host_veth}{nodad}")
            net.inside(f"ip address add {theirs} dev eth0{nodad}")
    before = state(net)
    conf = net.conf("1.0.0", capabilities={"bandwidth": True}, runtimeConfig={"bandwidth": BOTH}, **keys)
    conf["prevResult"] = net.well("ADD", conf).json  # the runtime knows rates alone
    for pairs in SIDES.values():
        for number, pair in enumerate(pairs):
            ends = [end.partition("/")[0] for end in pair]
            for node, dev, (source, target) in (
                ("host", net.host_veth, ends),
                (net.id, shared_name(net), ends[::-1]),
            ):
                earlier = sent_by_class(net, dev)
                net.lab[node].python(send_from, source, target)
                limited = (number == 0) == (keys is SHAPED)
                taken, other = ("1:30", "1:1") if limited else ("1:1", "1:30")
                assert until(lambda: more(net, dev, earlier)[taken] > 10_000), more(net, dev, earlier)  # noqa: B023  now
                assert more(net, dev, earlier)[other] < 5_000
    net.well("CHECK", conf)
    del_and_compare(net, conf, before)


DAMAGES = {  # of an interface
    "tc filter delete dev {dev} parent 1: protocol ip prio 16": "filters",
    "tc filter add dev {dev} parent 1: protocol ip prio 16 u32 match ip dst 10.0.0.0/8 flowid 1:1": "filters",
    "tc class change dev {dev} parent 1: classid 1:30 htb rate 9mbit": "rates",
    "tc class change dev {dev} parent 1: classid 1:30 htb rate 1mbit burst 5000": "burst",
    "tc class add dev {dev} parent 1: classid 1:7 htb rate 1mbit": "rates",
    "tc qdisc delete dev {dev} root": "Failed to find qdisc",
}


@pytest.mark.ours_alone
def test_check_sees_damage_to_classes_and_filters(net: VethAttachment) -> None:
    before = state(net)
    same = {"ingressRate": 1_000_000, "ingressBurst": 800_000, "egressRate": 1_000_000, "egressBurst": 800_000}
    conf = net.conf("1.0.0", **same, **UNSHAPED)
    for number, (damage, told) in enumerate(DAMAGES.items()):
        dev = (net.host_veth, shared_name(net))[number % 2]
        ours = {**conf, "prevResult": net.well("ADD", conf).json}
        net.well("CHECK", ours)
        net.host(damage.format(dev=dev))
        outcome = net.run("CHECK", ours)
        assert (outcome.code, told in outcome.json["msg"]) == (999, True), (damage, outcome)
        del_and_compare(net, ours, before)


BAD_NETWORKS: dict[str, Conf] = {
    'bad subnet "hello" provided': {"unshapedSubnets": ["192.0.2.0/24", "hello"]},
    'bad subnet "192.0.2.1" provided': {"shapedSubnets": ["192.0.2.1"]},
    "cannot be both specified": {**UNSHAPED, **SHAPED},
}


@pytest.mark.ours_alone
@pytest.mark.parametrize("told", BAD_NETWORKS)
def test_what_is_no_network_is_refused_before_anything_is_done(net: VethAttachment, told: str) -> None:
    before = state(net)
    outcome = net.run("ADD", net.conf("1.0.0", **BOTH, **BAD_NETWORKS[told]))
    assert (outcome.code, told in outcome.json["msg"]) == (7, True), outcome
    assert not difference(before, state(net))
    empty = net.conf("1.0.0", **INGRESS, unshapedSubnets=[], shapedSubnets=[])
    net.well("ADD", empty)
    assert buckets(net, net.host_veth) == ["qdisc tbf 1: root rate 1Mbit burst 100000b lat 25ms"]
    net.well("DEL", empty)


# Two interfaces of one container


@pytest.mark.ours_alone
@pytest.mark.parametrize("first_gone", ["eth0", "eth1"])
def test_two_interfaces_of_one_container_have_limits_of_their_own(net: VethAttachment, first_gone: str) -> None:
    net.add_veth("eth1", "02:00:00:00:00:13")
    confs = {name: net.conf("1.1.0", **BOTH, prevResult=net.result("1.1.0", name)) for name in ("eth0", "eth1")}
    before = state(net)
    for ifname, conf in confs.items():
        conf["prevResult"] = net.well("ADD", conf, ifname=ifname).json
    names = [conf["prevResult"]["interfaces"][-1]["name"] for conf in confs.values()]
    assert sorted(names) == ifbs(net)
    assert names[0] == shared_name(net)
    for ifname, conf in confs.items():
        net.well("CHECK", conf, ifname=ifname)
    other = "eth1" if first_gone == "eth0" else "eth0"
    net.well("DEL", confs[first_gone], ifname=first_gone)
    net.well("CHECK", confs[other], ifname=other)
    net.well("DEL", confs[other], ifname=other)
    assert not difference(before, state(net))


@pytest.mark.ours_alone
def test_del_of_an_unlimited_interface_leaves_the_go_plugins_of_another(net: VethAttachment, theirs: Plugins) -> None:
    net.add_veth("eth1", "02:00:00:00:00:13")
    limited = net.conf("1.0.0", **BOTH)
    limited["prevResult"] = net.run("ADD", limited, plugins=theirs).json
    unlimited = net.conf("1.0.0", prevResult=net.result(ifname="eth1"))
    net.well("ADD", unlimited, ifname="eth1")
    net.well("DEL", unlimited, ifname="eth1")
    assert ifbs(net) == [shared_name(net)]
    net.well("DEL", limited)


# What cannot be


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        ({"ingressRate": 1000}, "if rate is set, burst must also be set"),
        ({"egressBurst": 1000}, "if burst is set, rate must also be set"),
        ({"ingressRate": 1000, "ingressBurst": 1 << 35}, "burst cannot be more than 4GB"),
        ({"ingressRate": -1, "ingressBurst": 1000}, "ingressRate"),
        ({"ingressRate": "1M", "ingressBurst": 1000}, "ingressRate"),
        ({"ingressRate": 1.5, "ingressBurst": 1000}, "ingressRate"),
        ours_alone({"ingressRate": 4, "ingressBurst": 800}, "cannot be below 8"),
        ours_alone({"egressRate": 800, "egressBurst": 7}, "cannot be below 8"),
    ],
)
def test_rates_that_cannot_be_are_refused(net: VethAttachment, rates: Conf, message: str) -> None:
    before = state(net)
    outcome = net.run("ADD", net.conf("1.0.0", **rates))
    assert (outcome.code in REFUSALS, message in outcome.json["msg"]) == (True, True)
    assert not difference(before, state(net))


OBSTACLES = {
    "a root qdisc of somebody else": "tc qdisc add dev {veth} root handle 5: pfifo",
    "an ingress of somebody else": "tc qdisc add dev {veth} handle ffff: ingress",
    "the ifb's names taken": "ip link add {ifb} type bridge",
}


@pytest.mark.ours_alone
@pytest.mark.parametrize("name", OBSTACLES)
def test_an_add_that_fails_leaves_nothing(net: VethAttachment, name: str) -> None:
    own = "bwp" + hashlib.sha256(f"{net.network}\0{net.id}\0eth0".encode()).hexdigest()[:12]
    taken = (shared_name(net), own) if "{ifb}" in OBSTACLES[name] else ("",)
    for ifb in taken:
        net.host(OBSTACLES[name].format(veth=net.host_veth, ifb=ifb))
    before = state(net)
    outcome = net.run("ADD", net.conf("1.0.0", **BOTH))
    assert outcome.code in REFUSALS
    assert "Traceback" not in outcome.stderr
    assert not difference(before, state(net))
    net.well("DEL", net.conf("1.0.0", **BOTH))
    assert not difference(before, state(net))
    for ifb in filter(None, taken):
        net.host(f"ip link delete {ifb}")


def test_a_second_add_is_refused_and_leaves_the_first(net: VethAttachment) -> None:
    conf = net.conf("1.0.0", **BOTH)
    result = net.well("ADD", conf).json
    before = state(net)
    assert net.run("ADD", conf).code == 999
    if net.plugins.whose == OURS:
        assert not difference(before, state(net))
        net.well("CHECK", {**conf, "prevResult": result})
    net.well("DEL", {**conf, "prevResult": result})


def test_without_the_veth_on_the_host_there_is_nothing_to_limit(net: VethAttachment) -> None:
    conf = net.conf("1.0.0", **BOTH)
    conf["prevResult"]["interfaces"][0]["name"] = "other"
    outcome = net.run("ADD", conf)
    assert (outcome.code, "no veth peer of container interface found in host ns" in outcome.json["msg"]) == (999, True)


@pytest.mark.parametrize("verb", ["ADD", "CHECK"])
def test_without_a_result_before_it_is_an_error(net: VethAttachment, verb: str) -> None:
    conf = net.conf("1.0.0", **BOTH)
    del conf["prevResult"]
    outcome = net.run(verb, conf)
    assert (outcome.code in REFUSALS, "chained plugin" in outcome.json["msg"]) == (True, True)


@pytest.mark.parametrize(
    "damage",
    [
        "tc qdisc replace dev {veth} root handle 1: tbf rate 3Mbit burst 100000b latency 25ms",
        "tc qdisc replace dev {veth} root handle 1: tbf rate 1Mbit burst 90000b limit 103125",
        "ip link delete {ifb}",
        ours_alone("tc qdisc delete dev {veth} root"),
        ours_alone("tc qdisc delete dev {ifb} root"),
        ours_alone("tc qdisc delete dev {veth} ingress"),
        ours_alone("ip link set {ifb} down"),
    ],
)
def test_check_notices_what_was_changed_by_hand(net: VethAttachment, damage: str) -> None:
    conf = net.conf("1.0.0", **BOTH)
    conf["prevResult"] = net.well("ADD", conf).json
    net.well("CHECK", conf)
    net.host(damage.format(veth=net.host_veth, ifb=shared_name(net)))
    assert net.run("CHECK", conf).code == 999
    net.well("DEL", conf)


# A kernel that lacks something


def lacking(our_bin_dir: Path, directory: Path, kind: str) -> Plugins:
    """A copy of our executable to which the kernel does not know `kind`."""
    number = errno.EOPNOTSUPP if kind == "ifb" else errno.ENOENT
    before, start, after = (our_bin_dir / "bandwidth").read_text().partition(START)
    assert start
    patch = WITHOUT.format(kind=kind.encode() + b"\0", number=number)
    (directory / "bandwidth").write_text(f"{before}sys.argv.append('direct')\n{patch}{start}{after}")  # no service
    (directory / "bandwidth").chmod(0o755)
    return Plugins(OURS, directory, ALL)


@pytest.mark.ours_alone
@pytest.mark.parametrize("kind", ["ifb", "tbf", "ingress", "u32"])
def test_a_kernel_that_lacks_something_is_told_of(
    net: VethAttachment, our_bin_dir: Path, tmp_path: Path, kind: str
) -> None:
    plugins = lacking(our_bin_dir, tmp_path, kind)
    before = state(net)
    outcome = net.run("ADD", net.conf("1.0.0", **BOTH), plugins=plugins)
    assert outcome.code == 999
    assert outcome.json["msg"].startswith("this kernel cannot ")
    assert kind in outcome.json["details"]
    assert "CONFIG_" in outcome.json["details"]
    assert not difference(before, state(net))
    status = net.run("STATUS", net.conf("1.1.0"), plugins=plugins)
    assert status.code == (50 if kind in ("ifb", "tbf") else 0)
    assert net.run("DEL", net.conf("1.0.0", **BOTH), plugins=plugins).status == 0


@pytest.mark.ours_alone
def test_status_changes_nothing(net: VethAttachment) -> None:
    before = state(net)
    assert net.well("STATUS", net.conf("1.1.0")).stdout == ""
    assert not difference(before, state(net))


# When things are gone, and other plugins' work


@pytest.mark.parametrize("netns", ["", "/run/netns/never-was", None])
@pytest.mark.parametrize("prev_result", [True, False])
def test_del_needs_neither_namespace_nor_result(net: VethAttachment, netns: str | None, prev_result: bool) -> None:
    conf = net.conf("1.0.0", **BOTH)
    conf["prevResult"] = net.well("ADD", conf).json
    if not prev_result:
        del conf["prevResult"]
    net.lab.remove(net.id)
    for _ in range(2):
        assert net.run("DEL", conf, netns=netns).status == 0
    assert not ifbs(net)
    assert not net.records()


@pytest.mark.ours_alone
def test_del_with_a_configuration_that_cannot_be_still_removes_the_limits(net: VethAttachment) -> None:
    before = state(net)
    net.well("ADD", net.conf("1.0.0", **BOTH))
    net.well("DEL", net.conf("1.0.0", ingressRate="1M"))
    assert not difference(before, state(net))


@pytest.mark.ours_alone
@pytest.mark.parametrize("record", ["kept", "lost"])
def test_gc_removes_what_is_stale_and_nothing_else(net: VethAttachment, record: str) -> None:
    conf = net.conf("1.1.0", **BOTH)
    net.well("ADD", conf)
    if record == "lost":
        net.lab["host"].run(["rm", *net.records()], check=True)
    valid = [{"containerID": net.id, "ifname": "eth0"}]
    net.well("GC", {**conf, "cni.dev/valid-attachments": valid})
    net.well("GC", {**conf, "name": "another", "cni.dev/valid-attachments": []})
    net.well("GC", conf)
    assert ifbs(net) == [shared_name(net)]
    net.well("GC", {**conf, "cni.dev/valid-attachments": []})
    assert not ifbs(net)
    assert not net.records()


@pytest.mark.ours_alone
@pytest.mark.parametrize("gone", [False, True])
@pytest.mark.parametrize("adds", ["go", "ours"])
def test_one_plugin_undoes_the_add_of_the_other(net: VethAttachment, theirs: Plugins, adds: str, gone: bool) -> None:
    first, second = (theirs, net.plugins) if adds == "go" else (net.plugins, theirs)
    conf = net.conf("1.0.0", **BOTH)
    conf["prevResult"] = net.run("ADD", conf, plugins=first).json
    assert ifbs(net) == [shared_name(net)]
    for plugins in (first, second):
        checked = net.run("CHECK", conf, plugins=plugins)
        assert checked.status == 0, checked
    if gone:
        net.lab.remove(net.id)
    assert net.run("DEL", conf, plugins=second, netns="" if gone else None).status == 0
    assert not ifbs(net)
    if adds == "ours":
        assert net.run("GC", {**conf, "cniVersion": "1.1.0", "cni.dev/valid-attachments": []}).status == 0
    assert not net.records()

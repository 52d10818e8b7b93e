"""The executable vrf: the interface's addresses and routes in the VRF, and what is left when it is gone.

The development kernel has no VRFs; Debian's have: `make test-kernels` runs these.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab import Lab
from runtime import REFUSALS, Plugins, go_plugins

from tests.conftest import GO
from tests.faults.crowd import Job, run_all
from tests.lacking import missing
from tests.plugins.conftest import need_kind
from tests.plugins.veth_attachment import MAC, Conf, VethAttachment

ADDRESSES = {"eth0": ("192.0.2.2/24", "2001:db8:2::2/64"), "eth1": ("203.0.113.2/24", "2001:db8:3::2/64")}
HOST = {"eth0": ("192.0.2.1/24", "2001:db8:2::1/64"), "eth1": ("203.0.113.1/24", "2001:db8:3::1/64")}
FAR = {4: "198.18.0.0/16", 6: "2001:db8:77::/48"}
PORT = 80
ours_alone = pytest.mark.ours_alone
pytestmark = pytest.mark.debian_kernel


# What a test begins with: links without a VRF or bridge, their addresses, and routes that eth0 alone has. For ip -force -batch,
# since an emulated machine takes long to start a program.
START = """\
link delete blue
link delete red
link delete green
link delete br0
rule delete lookup 3
route flush table 1
link set eth0 down
link set eth1 down
address flush dev eth0
address flush dev eth1
link set eth0 up
link set eth1 up
address add 192.0.2.2/24 dev eth0
address add 203.0.113.2/24 dev eth1
address add 2001:db8:2::2/64 dev eth0 nodad
address add 2001:db8:3::2/64 dev eth1 nodad
route add 198.18.0.0/16 via 192.0.2.1 dev eth0 mtu 1400 metric 7
route add 2001:db8:77::/48 via 2001:db8:2::1 dev eth0 proto static
"""
ABOUT_LINKS = ("link/", "valid_lft", *map(str, range(1, 10)))  # lines of ip address, and rules of the kernel's
SHOW = "rule show\nroute show table all\naddress show\n"


class InVrf(VethAttachment):
    """A container whose eth0 and eth1 lead to the host, each with addresses."""

    def __init__(self, lab: Lab, plugins: Plugins) -> None:
        super().__init__(lab, plugins, "vrf")
        self.add_veth("eth1", "02:00:00:00:00:04")
        for ifname, addresses in HOST.items():
            for address in addresses:
                self.host(f"ip address add {address} dev v{self.number}e{ifname[-1]}{' nodad' * (':' in address)}")
        self.inside("ip link add blue type vrf table 9")  # with its first VRF a namespace gets the rule for all of them
        self.reset()
        self.before = self.inner()

    def batch(self, commands: str, *options: str) -> str:
        """What ip prints for commands, one a line."""
        done = self.lab[self.id].run(["ip", *options, "-force", "-batch", "-"], input=commands)
        return str(done.stdout)

    def reset(self) -> None:
        self.batch(START)
        self.lab["host"].run(["rm", "-rf", "/run/cni-py/attachments"], check=True)

    def of(self, ifname: str = "eth0", **keys: object) -> Conf:
        result = self.result(ifname=ifname)
        result["ips"] = [{"address": address, "interface": 1} for address in ADDRESSES[ifname]]
        name = f"{self.network}-{ifname}"
        return {**self.conf(), "name": name, "vrfname": "blue", "prevResult": result, **keys}

    def inner(self) -> list[str]:
        """Rules, routes and addresses, but for those of the tables local and for the kernel's own link-local ones."""
        shown = [line for family in ("-4", "-6") for line in self.batch(SHOW, family, "-details").splitlines()]
        left_out = ("local", "broadcast", "anycast", "multicast")
        lines = [line.strip() for line in shown if not line.startswith(left_out)]
        return sorted(line for line in lines if "fe80" not in line and not line.startswith(ABOUT_LINKS))

    def members(self, vrf: str = "blue") -> list[str]:
        return [link["ifname"] for link in json.loads(self.inside(f"ip -json link show master {vrf}"))]

    def vrfs(self) -> dict[str, int]:
        """Table of each VRF."""
        links = json.loads(self.inside("ip -json -details link show type vrf"))
        return {link["ifname"]: link["linkinfo"]["info_data"]["table"] for link in links if link}


@pytest.fixture(scope="module")
def container(shared_lab: Lab, plugins: Plugins) -> Iterator[InVrf]:
    need_kind(shared_lab, "vrf")
    attachment = InVrf(shared_lab, plugins)
    yield attachment
    attachment.close()


@pytest.fixture
def net(container: InVrf) -> Iterator[InVrf]:
    yield container
    container.reset()


def test_the_interface_keeps_addresses_and_routes_and_is_reached(net: InVrf) -> None:
    assert net.well("ADD", net.of()).json["ips"] == net.of()["prevResult"]["ips"]
    assert (net.vrfs(), net.members()) == ({"blue": 1}, ["eth0"])
    there = "\n".join(net.inner())
    routes = (
        f"{FAR[4]} via 192.0.2.1 dev eth0 table 1 proto boot scope global metric 7 mtu 1400",
        f"{FAR[6]} via 2001:db8:2::1 dev eth0 table 1 proto static",
    )
    for wanted in (*ADDRESSES["eth0"], *(routes if net.plugins.whose != GO else ())):  # 1.1.1 of theirs loses routes
        assert wanted in there
    assert not [line for line in net.inner() if "dev eth0" in line and "table 1" not in line and "unicast" in line]
    net.well("CHECK", net.of())
    net.inside("sysctl -q -w net.ipv4.tcp_l3mdev_accept=1")
    for family, address in ((4, "192.0.2.2"), (6, "2001:db8:2::2")):
        net.lab.serve(net.id, PORT + family, address="0.0.0.0" if family == 4 else "::")
        assert net.lab.fetch("host", address, PORT + family).name == net.id
    net.well("DEL", net.of())
    assert (net.vrfs(), net.link().get("master")) == ({}, None)
    if net.plugins.whose != GO:  # which loses IPv6 addresses and routes
        assert net.inner() == net.before
        assert not net.records()


@ours_alone
def test_routes_of_other_tables_stay_there(net: InVrf) -> None:
    """Such as sbr's, and those that name a table in the configuration. The kernel deletes them on the way in and out."""
    for gateway, destination in (("192.0.2.1", "198.19.0.0/16"), ("2001:db8:2::1", "2001:db8:78::/48")):
        net.inside(f"ip route add {destination} via {gateway} dev eth0 table 77")
    before = net.inner()
    kept = {line for line in before if "table 77" in line}
    assert len(kept) == 2
    net.well("ADD", net.of())
    assert kept <= set(net.inner())
    net.well("CHECK", net.of())
    net.inside("ip -4 route flush table 77")
    assert "table 77 lacks the route 198.19.0.0/16" in net.run("CHECK", net.of()).json["msg"]
    net.well("DEL", net.of())
    assert net.inner() == before


@pytest.mark.parametrize("table", [{}, {"table": 4_000_000_000}], ids=["chosen", "given"])
def test_the_vrf_goes_with_its_last_interface(net: InVrf, table: dict[str, int]) -> None:
    for ifname in ADDRESSES:
        net.well("ADD", net.of(ifname, **table), ifname)
    assert (net.vrfs(), sorted(net.members())) == ({"blue": table.get("table", 1)}, ["eth0", "eth1"])
    net.well("CHECK", net.of("eth1"), "eth1")
    net.well("DEL", net.of("eth0"), "eth0")
    assert net.members() == ["eth1"]
    net.well("CHECK", net.of("eth1"), "eth1")
    net.well("DEL", net.of("eth1"), "eth1")
    assert net.vrfs() == {}


WRONG: dict[str, tuple[str, Conf, str]] = {
    "the interface has a master": ("link set eth0 master br0", {}, "has already a master set: br0"),
    "the name is another's": ("", {"vrfname": "br0"}, "is not a VRF"),
    "another table": ("link add blue type vrf table 7", {"table": 8}, "exist with different routing table 7"),
    "no such interface": ("", {"ifname": "eth9"}, "could not get link by name eth9"),
    "no name": ("", {"vrfname": ""}, "valid vrf name"),
    "no result": ("", {"prevResult": None}, "missing prevResult from earlier plugin"),
}


# The Go plugin makes the VRF before it looks at the interface, and leaves it.
BY_INTERFACE = ("the interface has a master", "no such interface")


@pytest.mark.parametrize(
    "wrong", [pytest.param(wrong, marks=[ours_alone] * (wrong in BY_INTERFACE)) for wrong in WRONG]
)
def test_an_add_that_is_refused_changes_nothing(net: InVrf, wrong: str) -> None:
    command, keys, told = WRONG[wrong]
    net.batch(f"link add br0 type bridge\n{command}\n")
    before = net.inner(), net.link("br0"), net.vrfs()
    others = {key: value for key, value in keys.items() if key != "ifname"}
    outcome = net.run("ADD", net.of(**others), ifname=keys.get("ifname", "eth0"))
    assert outcome.code in REFUSALS
    assert told in outcome.json["msg"]
    assert (net.inner(), net.link("br0"), net.vrfs()) == before
    assert not net.records()


@ours_alone
@pytest.mark.parametrize(
    "at_hand", ["no namespace", "no record", "only the container", "a broken configuration", "no interface"]
)
def test_del_with_little_at_hand_leaves_nothing(net: InVrf, at_hand: str) -> None:
    conf = net.of()
    net.well("ADD", conf)
    if at_hand in ("no record", "only the container"):
        net.host("rm -rf /run/cni-py/attachments")
    if at_hand == "only the container":
        del conf["prevResult"]
    if at_hand == "a broken configuration":
        conf |= {"vrfname": 5, "table": "x", "prevResult": []}
    if at_hand == "no interface":
        net.inside("ip link delete eth0")
    for _ in range(2):
        outcome = net.run("DEL", conf, "" if at_hand == "no namespace" else None)
        assert (outcome.status, outcome.stdout) == (0, "")
    assert net.vrfs() == {}
    if at_hand == "no interface":
        net.add_veth("eth0", MAC)
    else:
        assert net.inner() == net.before
    assert not net.records()


@ours_alone
def test_check_and_del_know_what_the_go_plugin_made(net: InVrf) -> None:
    # Under an emulator, where tests meet ours alone, the packages are there nevertheless
    debs = Path(os.environ.get("CNI_PY_DEBS", "")) / "usr/lib/cni"
    directory = Path(os.environ.get("CNI_GO_BIN_DIR") or debs)
    if not (directory / "vrf").exists():
        missing("CNI_GO_BIN_DIR names no Go plugins")
    assert net.run("ADD", net.of(), plugins=go_plugins(directory.resolve())).status == 0
    net.well("CHECK", net.of())
    net.well("DEL", net.of())
    assert net.vrfs() == {}
    kept = [line for line in net.before if "via" not in line]  # 1.1.1 of theirs has lost the others
    assert [line for line in net.inner() if "via" not in line] == kept


@ours_alone
def test_routes_by_a_gateway_outside_of_all_subnets_move_too(net: InVrf) -> None:
    """As ptp makes them."""
    net.batch(
        "route add 192.88.99.9 dev eth0 scope link src 192.0.2.2\nroute add 198.19.0.0/16 via 192.88.99.9 dev eth0\n"
    )
    before = net.inner()
    net.well("ADD", net.of())
    there = "\n".join(net.inner())
    assert "192.88.99.9 dev eth0 table 1 " in there
    assert "198.19.0.0/16 via 192.88.99.9 dev eth0 table 1 " in there
    net.well("DEL", net.of())
    assert net.inner() == before


DAMAGES = {
    "ip link set eth0 nomaster": "associated to vrf blue",
    "ip link set blue down": "blue is down",
    f"ip route delete {FAR[4]} table 1": FAR[4],
    f"ip -6 route delete {FAR[6]} table 1": FAR[6],
    "ip address delete 2001:db8:2::2/64 dev eth0": "2001:db8:2::2/64",
    "ip link delete blue": "blue",
}


@ours_alone
def test_check_sees_what_is_missing(net: InVrf) -> None:
    for damage, told in DAMAGES.items():
        net.well("ADD", net.of())
        net.well("CHECK", net.of())
        net.inside(damage)
        outcome = net.run("CHECK", net.of())
        assert (outcome.code, told in outcome.json["msg"]) == (999, True), (damage, outcome)
        net.well("DEL", net.of())
        assert net.vrfs() == {}
        assert net.inner() == net.before, damage


@ours_alone
def test_gc_removes_those_that_are_not_listed_and_status_looks_at_the_kernel(net: InVrf) -> None:
    conf = net.of(cniVersion="1.1.0")
    conf["prevResult"]["cniVersion"] = "1.1.0"
    net.well("STATUS", conf)
    assert net.run("STATUS", {**conf, "vrfname": "a/b"}).code == 50
    net.well("ADD", conf)
    net.well("GC", {**conf, "cni.dev/valid-attachments": [{"containerID": net.id, "ifname": "eth0"}]})
    assert net.members() == ["eth0"]
    net.well("GC", {**conf, "cni.dev/valid-attachments": []})
    assert net.vrfs() == {}
    assert net.inner() == net.before


@ours_alone
def test_tables_chosen_at_once_differ(net: InVrf) -> None:
    """Two of the four share a VRF. A table that has a route, or to which a rule leads, is somebody's."""
    for number in (2, 3):
        net.add_veth(f"eth{number}", f"02:00:00:00:00:1{number}")
    net.batch("route add blackhole 198.18.1.0/24 table 1\nrule add from 198.18.2.0/24 lookup 3\n")
    wanted = {"eth0": "red", "eth1": "blue", "eth2": "blue", "eth3": "green"}
    path = str(net.plugins.directory)
    jobs = [
        Job(
            f"{path}/vrf",
            json.dumps({**net.of(), "name": f"at-once-{ifname}", "vrfname": name}).encode(),
            {
                "CNI_COMMAND": "ADD",
                "CNI_CONTAINERID": net.id,
                "CNI_NETNS": net.netns,
                "CNI_IFNAME": ifname,
                "CNI_PATH": path,
            },
        )
        for ifname, name in wanted.items()
    ]
    outcomes = net.lab["host"].python(run_all, jobs, len(jobs))
    assert not [outcome for outcome in outcomes if outcome.status], outcomes
    assert (set(net.vrfs()), sorted(net.vrfs().values())) == ({"red", "blue", "green"}, [2, 4, 5])
    for ifname, name in wanted.items():
        assert ifname in net.members(name)
        net.well("DEL", {**net.of(), "name": f"at-once-{ifname}", "vrfname": name}, ifname)
    assert net.vrfs() == {}

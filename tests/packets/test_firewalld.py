"""Debian's firewalld on a host: what it rejects passes once firewall has bound the container's addresses, ours as the Go plugin.

The LAN's interface is in the zone home, and the containers' bridge in none, so that firewalld rejects what goes from one to the
other. The zones are those that the package has.
"""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from firewalld import PYTHON, Firewalld
from lab import Lab
from runtime import ALL, Network, Outcome, Plugins, go_plugins, mapping

from tests.clients import fetch_debs
from tests.commands.watching import COMMAND, Watching, until
from tests.conftest import OURS, need_root
from tests.lacking import missing

pytestmark = pytest.mark.xdist_group("firewalld")  # one host for all

RESULTS = "/var/lib/cni/results"
BUS = "/run/dbus/system_bus_socket"
HOME = '<?xml version="1.0" encoding="utf-8"?>\n<zone><interface name="lan0"/></zone>\n'
CLIENT = {4: "198.51.100.7", 6: "2001:db8:1::7"}
HOST = {4: "198.51.100.1", 6: "2001:db8:1::1"}
INSIDE, OUTSIDE, PORT = 80, 9000, 8080
# The sources of the zones that it reads the names of; firewall-cmd takes half a second for each
ASK = """
import dbus, sys
for line in sys.stdin:
    there = dbus.SystemBus().get_object("org.fedoraproject.FirewallD1", "/org/fedoraproject/FirewallD1")
    print(*there.getSources(line.strip(), dbus_interface="org.fedoraproject.FirewallD1.zone"), flush=True)
"""
FAKE = """
import socket, sys
with socket.socket(socket.AF_UNIX) as listener:
    listener.bind(sys.argv[1])
    listener.listen()
    print(flush=True)
    kept = []
    while True:
        kept.append(listener.accept()[0])
        kept[-1].sendall(b"HTTP/1.1 400 Bad Request\\r\\n" * 99)
"""


@dataclass
class Site:
    """The host: container c1 is attached to a bridge, with a published port, and firewall is still to run."""

    lab: Lab
    firewalld: Firewalld
    network: Network
    asking: subprocess.Popen[bytes]

    def run(self, plugins: Plugins, verb: str, keys: Mapping[str, object] | None = None, bus: str = "") -> Outcome:
        conf = {"cniVersion": "1.0.0", "name": "lab", "type": "firewall", "prevResult": self.network.results["c1"]}
        env = {"DBUS_SYSTEM_BUS_ADDRESS": f"unix:path={bus}"} if bus else {}
        return plugins.run(self.lab, verb, "firewall", {**conf, **(keys or {})}, "c1", **env)

    def well(self, plugins: Plugins, verb: str, keys: Mapping[str, object] | None = None, bus: str = "") -> Outcome:
        outcome = self.run(plugins, verb, keys, bus)
        assert outcome.status == 0, f"{verb}: {outcome.stdout}{outcome.stderr}"
        return outcome

    @property
    def sources(self) -> set[str]:
        """What c1 has to be for firewalld."""
        return {f"{self.network.address('c1', 4)}/32", f"{self.network.address('c1', 6)}/128"}

    def bound(self, zone: str = "trusted") -> set[str]:
        """What firewalld says."""
        assert self.asking.stdin is not None
        assert self.asking.stdout is not None
        self.asking.stdin.write(f"{zone}\n".encode())
        self.asking.stdin.flush()
        return set(self.asking.stdout.readline().decode().split())

    def reaches(self, node: str, address: str, port: int) -> bool:
        """Whether somebody is answered. firewalld rejects by ICMP, so a refusal comes at once."""
        try:
            self.lab.fetch(node, address, port)
        except OSError:
            return False
        return True

    def passes(self) -> set[tuple[str, int]]:
        """What is reached, of what is of interest."""
        ways = {("out", "c1", OUTSIDE): CLIENT, ("published", "client", PORT): HOST}
        return {
            (way, family)
            for (way, node, port), addresses in ways.items()
            for family, address in addresses.items()
            if self.reaches(node, address, port)
        }


EVERYTHING = {("out", 4), ("out", 6), ("published", 4), ("published", 6)}


@pytest.fixture(scope="module")
def site(our_bin_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    need_root()
    try:
        debs = fetch_debs.fetch()
    except (fetch_debs.Unavailable, OSError) as error:
        missing(f"Debian's firewalld cannot be had: {error}")
    folder = tmp_path_factory.mktemp("firewalld")
    with Lab.from_yaml("lan.yaml") as lab:
        firewalld = Firewalld(lab, debs, folder)
        (folder / "etc/zones/home.xml").write_text(HOME)
        with firewalld:
            lab["host"].run(["sh", "-ec", f"mkdir /run/dbus; ln -s {folder}/bus {BUS}"], check=True)
            network = Network(lab, Plugins(OURS, our_bin_dir, ALL))
            network.attach("c1", mapping(PORT, INSIDE))
            lab.serve("c1", INSIDE)
            lab.serve("client", OUTSIDE)
            pipe = subprocess.PIPE
            with lab["host"].popen([PYTHON, "-c", ASK], env=firewalld.env, stdin=pipe, stdout=pipe) as asking:
                yield Site(lab, firewalld, network, asking)
                asking.kill()


@pytest.fixture
def ours(site: Site) -> Iterator[Plugins]:
    """Our plugins, for a test after which c1 is as before."""
    yield site.network.plugins
    site.run(site.network.plugins, "DEL", {"firewalldZone": "work"})
    site.run(site.network.plugins, "DEL")
    assert not site.bound() | site.bound("work")


def debians() -> Plugins:
    try:
        return go_plugins(fetch_debs.fetch() / "usr/lib/cni")
    except (fetch_debs.Unavailable, OSError) as error:
        missing(f"the Go plugins cannot be had: {error}")


def delete_with_nothing(site: Site, plugins: Plugins) -> None:
    """A DEL without a result, a namespace and the zone's name."""
    conf = {"cniVersion": "1.0.0", "name": "lab", "type": "firewall"}
    assert plugins.run(site.lab, "DEL", "firewall", conf, "c1", netns="").status == 0
    assert not site.bound() | site.bound("work")


def test_what_firewalld_rejects_passes_until_del(site: Site, plugins: Plugins) -> None:
    """A published port is reached all the same: firewalld lets pass what NAT redirects."""
    without = site.passes()
    assert without == {("published", 4), ("published", 6)}
    added = site.well(plugins, "ADD")
    assert added.json["ips"] == site.network.results["c1"]["ips"]
    assert site.bound() == site.sources
    site.well(plugins, "CHECK")
    assert site.passes() == EVERYTHING
    assert "CNI-FORWARD" not in site.lab["host"].run(["iptables-save"]).stdout
    for _ in range(2):
        site.well(plugins, "DEL")
        assert not site.bound()
    assert site.passes() == without


def test_a_zone_of_ones_own(site: Site, plugins: Plugins) -> None:
    site.well(plugins, "ADD", {"firewalldZone": "work", "backend": "firewalld"})
    assert (site.bound(), site.bound("work")) == (set(), site.sources)
    site.well(plugins, "DEL", {"firewalldZone": "work", "backend": "firewalld"})
    assert not site.bound("work")


def test_bridges_are_kept_apart_beside_firewalld(site: Site, plugins: Plugins) -> None:
    """By the packet filter: the zone trusted accepts everything, and a drop in another table is final."""
    site.well(plugins, "ADD", {"ingressPolicy": "same-bridge"})
    site.well(plugins, "CHECK", {"ingressPolicy": "same-bridge"})
    assert site.bound() == site.sources
    if plugins.whose == OURS:
        listed = ["nft", "list", "set", "inet", "cni_py", "policed"]
        words = '"cni0"'
    else:
        listed = ["iptables-save", "-t", "filter"]
        words = "-i cni0 ! -o cni0"
    assert words in site.lab["host"].run(listed, check=True).stdout
    site.well(plugins, "DEL", {"ingressPolicy": "same-bridge"})
    assert not site.bound()


@pytest.mark.ours_alone
def test_the_go_plugin_and_ours_take_over_from_each_other(site: Site, ours: Plugins) -> None:
    go = debians()
    for first, second in ((ours, go), (go, ours)):
        results = [site.well(plugins, "ADD").json for plugins in (first, second)]
        assert {"dns": {}, **results[0]} == {"dns": {}, **results[1]}  # an empty one is printed by older Go plugins
        site.well(second, "CHECK")
        site.well(second, "DEL")
        assert not site.bound()
        site.well(first, "DEL")


@pytest.mark.ours_alone
def test_a_del_with_nothing_at_hand(site: Site, ours: Plugins) -> None:
    site.well(ours, "ADD", {"firewalldZone": "work"})
    delete_with_nothing(site, ours)


@pytest.mark.ours_alone
def test_what_the_go_plugin_bound_can_be_adopted(site: Site, ours: Plugins) -> None:
    """From then on there is a record of it, and a DEL needs no more."""
    site.well(debians(), "ADD")
    network = {"cniVersion": "1.0.0", "name": "lab", "plugins": [{"type": "firewall"}]}
    entry = {
        "kind": "cniCacheV1",
        "containerId": "c1",
        "ifName": "eth0",
        "networkName": "lab",
        "netns": "/run/netns/c1",
        "config": base64.b64encode(json.dumps(network).encode()).decode(),
        "result": site.network.results["c1"],
    }
    host = site.lab["host"]
    host.run(["mkdir", "-p", RESULTS], check=True)
    host.run(["tee", f"{RESULTS}/lab-c1-eth0"], input=json.dumps(entry), check=True)
    said = host.run([str(COMMAND), "adopt"], check=True).stdout
    assert all(f"firewalld: {each} is a source of the zone trusted" in said for each in site.sources)
    site.well(ours, "CHECK")
    delete_with_nothing(site, ours)


@pytest.mark.ours_alone
def test_a_del_without_a_record_leaves_what_others_have(site: Site, ours: Plugins) -> None:
    """Another container has the address meanwhile, and its record says so."""
    site.well(ours, "ADD")
    conf = {"cniVersion": "1.0.0", "name": "lab", "type": "firewall", "prevResult": site.network.results["c1"]}
    assert ours.run(site.lab, "DEL", "firewall", conf, "c2").status == 0
    assert site.bound() == site.sources


@pytest.mark.ours_alone
def test_gc_and_status(site: Site, ours: Plugins) -> None:
    site.well(ours, "ADD")
    keys: dict[str, object] = {"cniVersion": "1.1.0", "cni.dev/valid-attachments": []}
    site.well(ours, "STATUS", {"cniVersion": "1.1.0", "backend": "firewalld"})
    site.well(ours, "GC", keys)
    assert not site.bound()


@pytest.mark.ours_alone
def test_a_source_of_somebody_else_is_left_and_said(site: Site, ours: Plugins) -> None:
    """The second address is the administrator's: nothing is left of the first."""
    six = next(each for each in site.sources if ":" in each)
    site.firewalld.ask("--zone=block", f"--add-source={six}")
    try:
        outcome = site.run(ours, "ADD")
        assert outcome.code == 999
        assert f"zone block has {six} already" in outcome.json["msg"]
        assert not site.bound()
        site.well(ours, "DEL")
        assert site.bound("block") == {six}
    finally:
        site.firewalld.ask("--zone=block", f"--remove-source={six}")


@pytest.mark.ours_alone
@pytest.mark.parametrize(("zone", "words"), [("nonesuch", 'no zone "nonesuch"'), ("a\0b", "not the name of a zone")])
def test_a_zone_that_is_none(site: Site, ours: Plugins, zone: str, words: str) -> None:
    outcome = site.run(ours, "ADD", {"firewalldZone": zone})
    assert outcome.code == 7
    assert words in outcome.json["msg"]
    site.well(ours, "DEL", {"firewalldZone": zone})


@pytest.mark.ours_alone
def test_another_backend_asks_no_firewalld(site: Site, ours: Plugins) -> None:
    for backend in ("nftables", "iptables"):
        for verb in ("ADD", "CHECK", "DEL"):
            site.well(ours, verb, {"backend": backend})
            assert not site.bound()


@pytest.mark.ours_alone
def test_the_firewalld_of_another_network_namespace_is_not_asked(site: Site) -> None:
    """As in a test like this one on a machine that runs firewalld itself."""
    words = [sys.executable, "-c", "from cni_py.firewalld import zones; print(zones.serves())"]
    found = [site.lab["host"].run([*before, *words], check=True).stdout for before in ([], ["unshare", "--net"])]
    assert found == ["True\n", "False\n"]


@pytest.mark.ours_alone
def test_where_firewalld_does_not_run(site: Site, ours: Plugins) -> None:
    """A named one is an error, and otherwise nftables serves. An ADD that asked it is undone without it."""
    absent = "/run/dbus/none"
    for verb in ("ADD", "CHECK", "DEL"):
        site.well(ours, verb, bus=absent)
    named: dict[str, object] = {"cniVersion": "1.1.0", "backend": "firewalld"}
    for verb, code in (("ADD", 999), ("CHECK", 999), ("STATUS", 50), ("DEL", 0)):
        outcome = site.run(ours, verb, named, bus=absent)
        assert outcome.code == code, verb
        assert code == 0 or "firewalld does not run" in outcome.json["msg"]
    site.well(ours, "ADD")
    site.well(ours, "CHECK", bus=absent)
    site.well(ours, "DEL", bus=absent)


@pytest.mark.ours_alone
def test_what_is_no_bus_keeps_no_container_from_its_network(site: Site, ours: Plugins, tmp_path: Path) -> None:
    fake = site.lab["host"].popen(["python3", "-c", FAKE, str(tmp_path / "bus")], stdout=-1)
    try:
        assert fake.stdout is not None
        fake.stdout.readline()
        bus = str(tmp_path / "bus")
        assert "not D-Bus" in site.well(ours, "ADD", bus=bus).stderr
        site.well(ours, "DEL", bus=bus)
        site.well(ours, "ADD")
        assert (
            f"may be left in firewalld's zone trusted: what unix:path={bus}" in site.well(ours, "DEL", bus=bus).stderr
        )
        outcome = site.run(ours, "ADD", {"backend": "firewalld"}, bus=bus)
        assert outcome.code == 999
        assert "not D-Bus" in outcome.json["msg"]
        assert "Traceback" not in outcome.stderr
    finally:
        fake.kill()
        fake.communicate()


@pytest.mark.ours_alone
def test_the_command_that_explain_names_lets_the_client_pass(site: Site) -> None:
    """firewalld decides by the zone of the client, whatever zone the containers are in."""
    address = site.network.address("c1", 4)
    site.lab["client"].run(["ip", "route", "add", f"{address}/32", "via", HOST[4]], check=True)
    assert not site.reaches("client", address, INSIDE)
    said = site.lab["host"].run([str(COMMAND), "explain", f"{address}:{INSIDE}", "--from", CLIENT[4]]).stdout
    (mend,) = [line.removeprefix("mend:").strip() for line in said.splitlines() if line.startswith("mend:")]
    command, *words = mend.partition("#")[0].split()
    assert command == "firewall-cmd", said
    site.firewalld.ask(*words)
    assert site.reaches("client", address, INSIDE)
    site.firewalld.ask("--zone=trusted", f"--remove-source={CLIENT[4]}")


@pytest.mark.ours_alone
def test_restore_binds_again_what_a_reload_forgets(site: Site, ours: Plugins) -> None:
    site.well(ours, "ADD")
    site.firewalld.ask("--reload")
    assert not site.bound()
    outcome = site.run(ours, "CHECK")
    assert "has lost" in outcome.json["msg"]
    assert "cni-py restore" in outcome.json["msg"]
    said = site.lab["host"].run([str(COMMAND), "restore"], check=True).stdout
    assert all(f"firewalld: {each} is a source of the zone trusted" in said for each in site.sources)
    assert site.bound() == site.sources
    site.well(ours, "CHECK")


@pytest.mark.ours_alone
def test_restore_watch_binds_again_at_once(site: Site, ours: Plugins, tmp_path: Path) -> None:
    site.well(ours, "ADD")
    with Watching(site.lab, tmp_path) as watching:
        for words in ("--reload", "--complete-reload"):
            since = len(watching.lines())
            site.firewalld.ask(words)
            watching.await_line("put back in", since=since)  # maybe one of the reload before
            until(lambda: site.bound() == site.sources)
            assert site.passes() == EVERYTHING
        since = len(watching.lines())
        site.firewalld.restart()
        watching.await_line("put back in", since=since)
        until(lambda: site.bound() == site.sources)

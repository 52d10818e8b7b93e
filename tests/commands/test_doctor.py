"""`cni-py doctor` on a lab's host: one in order gives no error and no warning, each damage its own finding and no other."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from lab import Lab
from runtime import Network, Plugins, mapping
from snapshot import difference

from cni_py.commands.main import main
from cni_py.host.collect import collect
from cni_py.host.saved import write
from tests import unprivileged

pytestmark = [pytest.mark.ours_alone, pytest.mark.unchained]
COMMAND = Path(sys.executable).with_name("cni-py")
CONF, SETTINGS, BIN = "/etc/cni/net.d/50-lab.conflist", "/etc/cni-py/config.yaml", "/opt/cni/bin"
RUN = "/run/cni-py"
Found = set[tuple[str, str, str]]  # level, code, subject


def conflist(network: Network, **changes: object) -> str:
    """The network's configuration as a file; a change is made in bridge's object."""
    bridge = {key: value for key, value in network.bridge().items() if key not in ("cniVersion", "name")} | changes
    portmap = {"type": "portmap", "capabilities": {"portMappings": True}}
    return json.dumps({"cniVersion": "1.0.0", "name": network.name, "plugins": [bridge, portmap]}, indent=1)


def doctor(*options: str) -> tuple[int, str]:
    """Exit status and stdout, of a run in this process: a child that has entered the lab's host."""
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        status = main(["doctor", *options])
    return status, shown.getvalue()


@dataclass(slots=True)
class Site:
    """A host with two containers, and what doctor said of it at first."""

    lab: Lab
    network: Network
    before: Found

    def sh(self, script: str, text: str = "") -> str:
        done = self.lab["host"].run(["sh", "-ec", script], input=text)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def report(self, status: int | None = None) -> dict[str, Any]:
        ended, text = self.lab["host"].python(doctor, "--json")
        found: dict[str, Any] = json.loads(text)
        assert ended == (1 if any(one["level"] == "error" for one in found["findings"]) else 0)
        assert status in (None, ended)
        return found

    def found(self) -> Found:
        return {(one["level"], one["code"], one["subject"]) for one in self.report()["findings"]}


@pytest.fixture(scope="module")
def site(plugins: Plugins) -> Iterator[Site]:
    with Lab.from_yaml("lan.yaml") as lab:
        network = Network(lab, plugins)
        lab["host"].python(shutil.copytree, str(plugins.directory), BIN, symlinks=True)
        made = Site(lab, network, set())
        made.sh(f"mkdir -p /etc/cni/net.d /etc/cni-py; cat > {CONF}", conflist(network))
        for name, port in (("c1", 8080), ("c2", 8081)):
            network.attach(name, mapping(port, 80))
            lab.serve(name, 80)
        made.before = made.found()
        yield made


def test_a_host_in_order_has_no_errors_and_no_warnings(site: Site) -> None:
    report = site.report(0)
    assert [one for one in report["findings"] if one["level"] != "note"] == []
    assert len(report["fine"]) > 30
    assert all(one.keys() == {"level", "code", "subject", "what", "why", "do"} for one in report["findings"])


def test_looking_changes_nothing(site: Site) -> None:
    before = site.lab.snapshot("host")
    site.report()
    assert not difference(before, site.lab.snapshot("host"))


UFW = "nft 'add table ip filter; add chain ip filter ufw-user-forward'"
DROP = "nft 'add table inet site; add chain inet site forward { type filter hook forward priority 0; policy drop; }'"
KEPT = "/var/lib/nerdctl"  # of each host its own
LAUNCHER = f"cp {BIN}/ptp {KEPT}/ptp; "
PUT_BACK = f"cp {KEPT}/ptp {BIN}/ptp"
WRITTEN = f'{{"files": {{"{BIN}/ptp": "0"}}, "folders": []}}'
MANIFEST = f"cd {BIN}/.cni-py; cp manifest.json {KEPT}; echo '{WRITTEN}' > manifest.json; "
RECORD = f"cd {RUN}/attachments; cd $(dirname $(grep -l containerID.:.c1 */bridge.json)); "
MENDED = f"cp {KEPT}/conf {CONF}"

# What is done, how it is undone, and what is found: level, code, and a part of the subject
DAMAGES: dict[str, tuple[str, str, list[tuple[str, str, str]]]] = {
    "ip_forward": (
        "sysctl -qw net.ipv4.ip_forward=0",
        "sysctl -qw net.ipv4.ip_forward=1",
        [("error", "forwarding-off", "net.ipv4.ip_forward")],
    ),
    "IPv6 forwarding": (
        "sysctl -qw net.ipv6.conf.all.forwarding=0",
        "sysctl -qw net.ipv6.conf.all.forwarding=1",
        [("error", "forwarding-off", "net.ipv6.conf.all.forwarding")],
    ),
    "route_localnet": (
        "sysctl -qw net.ipv4.conf.lan0.route_localnet=1",
        "sysctl -qw net.ipv4.conf.lan0.route_localnet=0",
        [("warning", "route-localnet-open", "lan0")],
    ),
    "no IPv6": (
        "sysctl -qw net.ipv6.conf.default.disable_ipv6=1",
        "sysctl -qw net.ipv6.conf.default.disable_ipv6=0",
        [("error", "ipv6-disabled", "network lab")],
    ),
    "two uplinks, strict": (
        "ip link add up2 type veth peer name up3; ip addr add 203.0.113.2/24 dev up2; ip link set up2 up; "
        "ip route add default via 198.51.100.7; ip route add default via 203.0.113.1 metric 9; "
        "sysctl -qw net.ipv4.conf.up2.rp_filter=1",
        "ip link del up2; ip route del default",
        [("warning", "rp-filter-strict", "up2")],
    ),
    "local ports": (
        "sysctl -qw net.ipv4.ip_local_port_range='8000 9001'",
        "sysctl -qw net.ipv4.ip_local_port_range='32768 60999'",
        [("note", "port-in-local-range", "8080/tcp")],
    ),
    "local ports, reserved": (
        "sysctl -qw net.ipv4.ip_local_port_range='8000 9001'; sysctl -qw net.ipv4.ip_local_reserved_ports=8080-8081",
        "sysctl -qw net.ipv4.ip_local_port_range='32768 60999'; sysctl -qw net.ipv4.ip_local_reserved_ports=",
        [],
    ),
    "FORWARD drops": ("iptables -P FORWARD DROP", "iptables -P FORWARD ACCEPT", [("warning", "forward-drop", "lab")]),
    "a table drops": (DROP, "nft delete table inet site", [("warning", "forward-drop-elsewhere", "inet site forward")]),
    "a table drops all but ours": (
        f"{DROP}; nft add rule inet site forward iifname cni0 accept; nft add rule inet site forward oifname cni0 accept",
        "nft delete table inet site",
        [],
    ),
    "ufw": (UFW, "nft delete chain ip filter ufw-user-forward", [("note", "firewall-present", "ufw")]),
    "kube-proxy": (
        "sysctl -qw net.bridge.bridge-nf-call-iptables=0; nft add table ip kube-proxy; nft add chain ip kube-proxy services",
        "sysctl -qw net.bridge.bridge-nf-call-iptables=1; nft delete table ip kube-proxy",
        [("note", "firewall-present", "kube-proxy"), ("warning", "bridge-nf-off", "bridge-nf-call")],
    ),
    "iptables of both kinds": (
        "iptables-legacy -A INPUT -s 192.0.2.254 -j DROP; iptables -A INPUT -s 192.0.2.254 -j DROP",
        "iptables-legacy -F INPUT; iptables -F INPUT",
        [("warning", "iptables-mixed", "iptables")],
    ),
    "interpreter gone": (
        f"{LAUNCHER} sed -i '1s|.*|#!/nowhere/python3 -IS|' {BIN}/ptp",
        PUT_BACK,
        [("error", "executable-broken", BIN), ("warning", "executable-old", BIN)],
    ),
    "replaced by another": (
        f"{LAUNCHER} {MANIFEST} cp /bin/true {BIN}/ptp",
        f"cp {KEPT}/manifest.json {BIN}/.cni-py; {PUT_BACK}",
        [("error", "executable-replaced", "/ptp")],
    ),
    "ADD killed": (
        f"{RECORD} mv bridge.json bridge.adding; touch -d '1 hour ago' *",
        f"cd {RUN}/attachments; cd $(dirname */bridge.adding); mv bridge.adding bridge.json",
        [("warning", "add-unfinished", "c1")],
    ),
    "record damaged": (
        f"{RECORD} cp bridge.json {KEPT}/record; echo '{{' > bridge.json; pwd > {KEPT}/where",
        f"cp {KEPT}/record $(cat {KEPT}/where)/bridge.json",
        [("error", "record-damaged", "bridge.json")],
    ),
    "VLAN out of range": (
        f'sed -i \'s|"ipMasq"|"vlan": 5000, "ipMasq"|\' {CONF}',
        MENDED,
        [("error", "config-refused", CONF)],
    ),
    "MTU out of range": (
        f'sed -i \'s|"ipMasq"|"mtu": -5, "ipMasq"|\' {CONF}',
        MENDED,
        [("warning", "config-schema", "mtu")],
    ),
    "key misspelt": (
        f'sed -i \'s|"ipMasq"|"isGatway": true, "ipMasq"|\' {CONF}',
        MENDED,
        [("note", "config-key", CONF)],
    ),
    "no ports for portmap": (
        f"sed -i 's|\"portMappings\": true||' {CONF}",
        MENDED,
        [("warning", "portmap-without-ports", CONF)],
    ),
    "portfwd does not run": (
        f'sed -i \'s|"capabilities"|"userlandProxy": "always", "capabilities"|\' {CONF}',
        MENDED,
        [("error", "portfwd-needed", "portfwd")],
    ),
    "same name": (
        f"sed 's|192.0.2.0|203.0.113.0|; s|db8:42|db8:43|; s|cni0|cni1|' {CONF} > /etc/cni/net.d/60.conflist",
        "rm /etc/cni/net.d/60.conflist",
        [("warning", "network-twice", "lab")],
    ),
    "same subnet": (
        f'sed \'s|"lab"|"other"|; s|db8:42|db8:43|; s|cni0|cni1|\' {CONF} > /etc/cni/net.d/60.conflist',
        "rm /etc/cni/net.d/60.conflist",
        [("warning", "subnet-taken", "lab")],
    ),
    "subnet of a route": (
        "ip route add 192.0.0.0/16 via 198.51.100.7",
        "ip route del 192.0.0.0/16",
        [("warning", "subnet-taken", "lab")],
    ),
    "settings": (f"echo 'backend: nft' > {SETTINGS}", f"rm {SETTINGS}", [("error", "settings-refused", SETTINGS)]),
    "disk read-only": (
        "mount -t tmpfs -o ro,size=64m none /var/lib/cni-py",
        "umount /var/lib/cni-py",
        [("error", "disk-read-only", "/var/lib/cni-py")],
    ),
    "disk full": (
        "mount -t tmpfs -o size=64k none /var/lib/cni-py; head -c 65536 /dev/zero > /var/lib/cni-py/x",
        "umount /var/lib/cni-py",
        [("error", "disk-full", "/var/lib/cni-py")],
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damage_is_named_and_nothing_else_is(site: Site, name: str) -> None:
    damage, undo, expected = DAMAGES[name]
    site.sh(f"cp {CONF} {KEPT}/conf")
    site.sh(damage)
    try:
        new = site.found() - site.before
    finally:
        site.sh(undo)
    assert {one[:2] for one in new} == {one[:2] for one in expected}, new
    assert all(any(one[:2] == two[:2] and two[2] in one[2] for one in new) for two in expected), new


def test_a_container_that_is_gone_is_named(site: Site) -> None:
    site.lab.add_container("c9")
    site.network.attach("c9", mapping(8089, 80))
    site.lab.remove("c9")
    try:
        new = site.found() - site.before
    finally:
        site.network.detach("c9")
    assert new == {
        ("warning", "attachment-dead", "container c9"),
        ("warning", "address-leaked", "network lab"),
        ("warning", "target-missing", "port 8089/tcp"),
    }


def test_without_root_it_says_what_it_could_not_look_at(site: Site) -> None:
    host = site.lab["host"]
    done = host.run([*unprivileged.python(host), "-m", "cni_py.commands.main", "doctor", "--json"])
    report = json.loads(done.stdout)
    assert done.returncode == 0, report["findings"]
    assert [one for one in report["findings"] if one["level"] != "note"] == []
    assert any("without root" in gap for gap in report["gaps"])


def test_a_saved_host_is_read(site: Site, tmp_path: Path) -> None:
    saved_host = tmp_path / "host.json"
    site.lab["host"].python(save, str(saved_host))
    status, text = site.lab["host"].python(doctor, "--json", "--from", str(saved_host))
    report = json.loads(text)
    assert (status, [one for one in report["findings"] if one["level"] != "note"]) == (0, [])
    assert any("a saved host does not tell whether executables" in gap for gap in report["gaps"])
    saved_host.write_text("{}")
    done = site.lab["host"].run([str(COMMAND), "doctor", "--from", str(saved_host)])
    assert (done.returncode, done.stdout) == (2, "")
    assert "host.json" in done.stderr


def save(path: str) -> None:
    write(path, collect())


def test_people_get_lines_that_end_with_a_summary(site: Site) -> None:
    done = site.lab["host"].run([str(COMMAND), "doctor"], env={"COLUMNS": "60"})
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert "no errors, no warnings" in " ".join(lines[-2:])
    assert max(len(line) for line in lines if not line.startswith("note: ")) <= 60
    assert "\x1b" not in done.stdout
    done = site.lab["host"].run(["sh", "-c", f"{COMMAND} doctor | head -1"])
    assert done.stderr == ""


def test_the_paths_of_the_schemas_are_printed() -> None:
    _, text = doctor("--schemas")
    assert [json.loads(Path(line).read_text())["$schema"] for line in text.splitlines()] == [
        "http://json-schema.org/draft-07/schema#"
    ] * 4


def test_a_folder_that_is_not_there_is_no_folder_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--conf-dir", "/nowhere"]) == 3
    assert capsys.readouterr() == ("", "cni-py doctor: there is no folder /nowhere\n")
    assert main(["doctor", "--from", "-", "--conf-dir", "/nowhere"]) == 2
    assert "--conf-dir is a folder of this host" in capsys.readouterr().err


def test_the_remedy_mends_a_forward_that_began_to_drop(site: Site) -> None:
    site.lab.add_container("c8")
    path = "/etc/cni/net.d/70-guarded.conflist"
    ipam = {"type": "host-local", "subnet": "203.0.113.0/24", "routes": [{"dst": "0.0.0.0/0"}]}
    plugins = [{"type": "bridge", "bridge": "cni8", "isGateway": True, "ipam": ipam}, {"type": "firewall"}]
    network = {"cniVersion": "1.0.0", "name": "guarded", "plugins": plugins}
    by_hand = f"CNI_PATH={BIN} {COMMAND}-exec"
    site.sh(f"cat > {path}; {by_hand} ADD guarded c8", json.dumps(network))
    try:
        assert site.found() == site.before
        site.sh("iptables -P FORWARD DROP")
        late = ("error", "forward-drop-late", "chain ip filter FORWARD")
        other = ("warning", "forward-drop", "network lab")
        assert site.found() - site.before == {late, other}
        site.sh(f"{COMMAND} restore")
        assert site.found() - site.before == {other}
    finally:
        site.sh(f"iptables -P FORWARD ACCEPT; {by_hand} DEL guarded c8; rm {path}; ip link del cni8")
        site.lab.remove("c8")
    assert site.found() == site.before

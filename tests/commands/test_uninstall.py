"""`cni-py uninstall` with connected containers, what it says that stays, and `--purge`, on a lab's host."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import snapshot
from lab import Lab

import cni_py

HOME = Path(cni_py.__file__).resolve().parent.parent
COMMAND = str(Path(sys.executable).with_name("cni-py"))
EXEC = str(Path(sys.executable).with_name("cni-py-exec"))
PORTFWD = str(Path(sys.executable).with_name("portfwd"))
FOLDERS = "--bin-dir /opt/cni/bin"
FORWARDING = "cat /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv6/conf/all/forwarding"
OTHER = {
    "cniVersion": "1.1.0",
    "name": "other",
    "plugins": [
        {
            "type": "bridge",
            "bridge": "br-other",
            "isGateway": True,
            "ipMasq": True,
            "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.66.0.0/24"}]]},
        },
        {"type": "portmap", "capabilities": {"portMappings": True}},
    ],
}


def on_host(lab: Lab, script: str) -> CompletedProcess[str]:
    return lab["host"].run(["sh", "-euc", script], timeout_s=60)


def must(lab: Lab, script: str) -> str:
    done = on_host(lab, script)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def installed(lab: Lab) -> Lab:
    must(lab, f"{COMMAND} install")
    return lab


def add(lab: Lab, name: str, options: str = "", network: str = "cni-py") -> None:
    must(lab, f"{EXEC} ADD {network} {name} --create-netns {options}")


def other_network(lab: Lab) -> None:
    must(lab, f"cat >/etc/cni/net.d/50-other.conflist <<'END'\n{json.dumps(OTHER)}\nEND")


def test_connected_containers_are_named_and_take_force(installed: Lab) -> None:
    add(installed, "web", "-p 8080:80")
    add(installed, "db")
    done = on_host(installed, f"{COMMAND} uninstall")
    assert done.returncode == 1
    assert "cni-py/web/eth0" in done.stderr
    assert "cni-py/db/eth0" in done.stderr
    assert "--force" in done.stderr
    must(installed, f"{EXEC} CHECK cni-py web")  # nothing was touched
    done = on_host(installed, f"{COMMAND} uninstall --force")
    assert done.returncode == 0
    assert "remains until DEL by plugins" in done.stderr
    assert "attachments" in must(installed, "ls /run/cni-py")
    must(installed, f"{COMMAND} install && {EXEC} DEL cni-py web && {EXEC} DEL cni-py db && {COMMAND} uninstall")


def test_a_container_that_is_gone_is_not_connected(installed: Lab) -> None:
    add(installed, "web")
    must(installed, "ip netns delete web")
    must(installed, f"{COMMAND} uninstall")


def test_a_reused_name_is_not_connected(installed: Lab) -> None:
    add(installed, "web")
    must(installed, f"ip netns delete web; ip netns add web; {COMMAND} uninstall")


def test_many_are_not_all_listed(installed: Lab) -> None:
    for number in range(12):
        add(installed, f"c{number + 10}")
    done = on_host(installed, f"{COMMAND} uninstall --purge")
    assert done.returncode == 1
    assert " and 2 more; network/containerID/interface)" in done.stderr


def test_what_stays_is_listed_with_commands_that_remove_it(installed: Lab) -> None:
    before = installed.snapshot("host")
    add(installed, "web", "-p 8080:80")
    must(installed, f"{EXEC} DEL cni-py web; ip netns delete web")
    told = must(installed, f"{COMMAND} uninstall")
    lines = told.partition("These remain")[2].splitlines()[1:]
    whats = [line.strip().split("  ")[0] for line in lines]
    assert whats[:2] == ["bridge cni-py0", "nftables table inet cni_py"]
    assert {"/run/cni-py", "/var/lib/cni/networks/cni-py"} <= set(whats)
    assert {"net.ipv4.ip_forward = 1", "net.ipv6.conf.all.forwarding = 1"} <= set(whats)
    must(installed, "\n".join(line.strip().partition("  ")[2] for line in lines))
    must(installed, "rmdir /var/lib/cni/networks /var/lib/cni/results")
    after = installed.snapshot("host")
    for part in ("links", "addresses", "routes", "sysctls", "nftables"):
        assert after[part] == before[part], part


def test_what_others_need_is_said_beside_the_command(installed: Lab) -> None:
    other_network(installed)
    add(installed, "mine", "", "other")
    told = must(installed, f"{COMMAND} uninstall --force")
    assert "nft delete table inet cni_py  # other networks use it (other/mine/eth0)" in told


def test_purge_takes_no_state_of_a_network_that_was_renamed(installed: Lab) -> None:
    must(installed, """sed -i 's/"name": "cni-py"/"name": "mine"/' /etc/cni/net.d/10-cni-py.conflist""")
    add(installed, "web", "", "mine")
    must(installed, "ip netns delete web")
    done = on_host(installed, f"{COMMAND} uninstall --purge")
    assert "leave /run/cni-py: other networks use it (mine/web/eth0)" in done.stdout
    assert must(installed, "ls /var/lib/cni/networks").strip() == "mine"


def test_nothing_that_stays_is_nothing_said(installed: Lab) -> None:
    must(installed, "sysctl -qw net.ipv4.ip_forward=0 net.ipv6.conf.all.forwarding=0")
    assert "These remain" not in must(installed, f"{COMMAND} uninstall")


def test_purge_leaves_a_clean_machine(lab: Lab) -> None:
    must(lab, "rmdir /var/lib/cni || true")  # purge takes the folder when it is empty, whoever made it
    before = lab.snapshot("host")
    must(lab, f"{COMMAND} install")
    add(lab, "web", "-p 8080:80")
    add(lab, "gone", "-p 8081:80")
    must(lab, f"{EXEC} DEL cni-py web; ip netns delete web; ip netns delete gone")
    told = must(lab, f"{COMMAND} uninstall --purge")
    assert "disconnect cni-py/gone/eth0" in told
    assert snapshot.difference(before, lab.snapshot("host")) == ""


def test_purge_and_force_disconnect_first(lab: Lab) -> None:
    must(lab, "rmdir /var/lib/cni || true")  # purge takes the folder when it is empty, whoever made it
    before = lab.snapshot("host")
    must(lab, f"{COMMAND} install; ip netns add web")
    named = lab.snapshot("host")
    inside = must(lab, "ip netns exec web ip -o link")
    must(lab, f"{EXEC} ADD cni-py web -p 8080:80")
    assert on_host(lab, f"{COMMAND} uninstall --purge").returncode == 1
    must(lab, f"{EXEC} CHECK cni-py web")
    must(lab, f"{COMMAND} uninstall --purge --force")
    assert must(lab, "ip netns exec web ip -o link | grep -v 'lo:' || true") == ""
    assert "lo:" in inside
    assert named["links"] == lab.snapshot("host")["links"]
    must(lab, "ip netns delete web")
    assert snapshot.difference(before, lab.snapshot("host")) == ""


def test_purge_works_after_uninstall_but_cannot_tell_who_forwards(installed: Lab) -> None:
    add(installed, "web")
    must(installed, f"{EXEC} DEL cni-py web; ip netns delete web; {COMMAND} uninstall")
    told = must(installed, f"{COMMAND} uninstall --purge")
    assert "remove bridge cni-py0" in told
    assert (
        "leave net.ipv4.ip_forward = 1: it may have been on before the installation; `sysctl -w net.ipv4.ip_forward=0`"
        in told
    )
    assert must(installed, "ls -d /run/cni-py /var/lib/cni/networks 2>/dev/null || true") == ""
    assert must(installed, FORWARDING) == "1\n1\n"


def test_purge_leaves_what_other_networks_have(installed: Lab) -> None:
    other_network(installed)
    add(installed, "mine", "-p 8080:80", "other")
    add(installed, "web", "-p 8081:80")
    must(installed, f"{EXEC} DEL cni-py web; ip netns delete web")
    done = on_host(installed, f"{COMMAND} uninstall --purge --force")
    assert done.returncode == 0, done.stderr
    assert "leave nftables table inet cni_py: other networks use it (other/mine/eth0)" in done.stdout
    assert "leave /run/cni-py: " in done.stdout
    assert "leave net.ipv4.ip_forward = 1: " in done.stdout
    assert on_host(installed, "ip link show cni-py0").returncode != 0
    assert must(installed, "ls /var/lib/cni/networks /var/lib/cni/results").split() == [
        "/var/lib/cni/networks:",
        "other",
        "/var/lib/cni/results:",
        "other-mine-eth0",
    ]
    must(installed, f"{COMMAND} install && {EXEC} CHECK other mine && {EXEC} DEL other mine")


def test_purge_leaves_a_bridge_that_others_are_plugged_into(installed: Lab) -> None:
    add(installed, "web")
    must(installed, f"{EXEC} DEL cni-py web; ip netns delete web")
    must(installed, "ip link add mine0 type veth peer name mine1; ip link set mine0 master cni-py0")
    told = must(installed, f"{COMMAND} uninstall --purge")
    assert "leave bridge cni-py0: it has ports (mine0); `ip link delete cni-py0` removes it" in told
    must(installed, "ip link show master cni-py0 | grep mine0")


def test_purge_takes_no_bridge_that_the_operator_named(installed: Lab) -> None:
    must(installed, "ip link add br0 type bridge; sed -i s/cni-py0/br0/ /etc/cni/net.d/10-cni-py.conflist")
    done = on_host(installed, f"{COMMAND} uninstall --purge")
    assert done.returncode == 1  # the file was changed
    assert "leave bridge br0: it may be older than the installation" in done.stdout
    must(installed, "ip link show br0")


@pytest.mark.parametrize("other", ["bridge", "vxlan id 7 dstport 4789"])
def test_purge_leaves_forwarding_to_whoever_may_need_it(installed: Lab, other: str) -> None:
    add(installed, "web")
    must(installed, f"{EXEC} DEL cni-py web; ip netns delete web")
    must(installed, f"ip link add vm0 type {other}; ip link set vm0 up")
    assert "leave net.ipv4.ip_forward = 1: vm0 may need it" in must(installed, f"{COMMAND} uninstall --purge")
    assert must(installed, FORWARDING) == "1\n1\n"


def test_forwarding_that_was_on_before_stays_on(lab: Lab) -> None:
    must(lab, f"sysctl -qw net.ipv4.ip_forward=1; {COMMAND} install")
    add(lab, "web")
    must(lab, f"{COMMAND} install; {EXEC} DEL cni-py web; ip netns delete web; {COMMAND} uninstall --purge")
    assert must(lab, FORWARDING) == "1\n0\n"


def test_a_second_install_does_not_take_our_forwarding_for_somebody_elses(installed: Lab) -> None:
    add(installed, "web")
    must(installed, f"{COMMAND} install; {EXEC} DEL cni-py web; ip netns delete web; {COMMAND} uninstall --purge")
    assert must(installed, FORWARDING) == "0\n0\n"


def test_purge_leaves_a_running_portfwd_alone(installed: Lab) -> None:
    script = (
        f"{PORTFWD} serve >/dev/null 2>&1 & pid=$!\n"
        f"until {PORTFWD} ls >/dev/null 2>&1; do sleep 0.1; done\n"
        f"{PORTFWD} publish 8089:80 --to 198.51.100.2 >/dev/null\n"
        f"{COMMAND} uninstall --purge\n"
        f"{PORTFWD} ls\nkill $pid\nwait $pid || true\n"
    )
    told = must(installed, script)
    assert "leave /var/lib/cni-py: portfwd is running" in told
    assert "8089" in told


def test_a_dry_run_of_purge_changes_nothing(installed: Lab) -> None:
    add(installed, "web")
    must(installed, f"{EXEC} DEL cni-py web; ip netns delete web")
    before = installed.snapshot("host")
    told = must(installed, f"{COMMAND} uninstall --purge --dry-run")
    assert "would remove bridge cni-py0" in told
    assert snapshot.difference(before, installed.snapshot("host")) == ""


def test_chains_of_the_iptables_backend_are_named_and_never_purged(installed: Lab) -> None:
    must(installed, "mkdir -p /etc/cni-py; echo 'backend: iptables' >/etc/cni-py/config.yaml")
    add(installed, "web", "-p 8080:80")
    must(installed, f"{EXEC} DEL cni-py web; ip netns delete web")
    told = must(installed, f"{COMMAND} uninstall")
    commands = [line.strip().partition("  ")[2] for line in told.splitlines() if "tables chains" in line]
    assert len(commands) == 2
    assert "leave iptables chains CNI-HOSTPORT-*: " in must(installed, f"{COMMAND} uninstall --purge")
    save = "iptables-save -t nat; ip6tables-save -t nat"
    assert must(installed, save).count(":CNI-HOSTPORT-DNAT") == 2
    must(installed, "\n".join(commands))
    assert "CNI-" not in must(installed, save)


def test_another_user_than_root_may_install_for_himself(installed: Lab) -> None:
    """Where root has containers, whose records nobody else may read."""
    add(installed, "web")
    must(installed, f"mkdir -m 755 /run/home; mkdir -m 777 /run/mine; mount --bind {HOME} /run/home")
    script = "import sys; sys.path.append('/run/home'); from cni_py.commands.main import main; sys.exit(main())"
    nobody = "setpriv --reuid 65534 --regid 65534 --clear-groups"
    run = f'{nobody} /usr/bin/python3 -I -c "{script}"'
    folders = "--bin-dir /run/mine/bin --conf-dir /run/mine/net.d"
    must(installed, f"{run} install {folders}")
    done = on_host(installed, f"{run} uninstall --purge {folders}")
    assert (done.returncode, "--purge needs root" in done.stderr) == (3, True)
    assert "These remain" not in must(installed, f"{run} uninstall {folders}")
    assert must(installed, "ls /run/mine") == ""


def test_settings_are_the_operators(installed: Lab) -> None:
    must(installed, "mkdir -p /etc/cni-py; echo 'backend: nftables' >/etc/cni-py/config.yaml")
    assert "leave /etc/cni-py/config.yaml" in must(installed, f"{COMMAND} uninstall --purge")
    must(installed, "test -e /etc/cni-py/config.yaml")


def test_purge_of_a_machine_that_never_had_us_says_nothing_wrong(lab: Lab) -> None:
    must(lab, "rmdir /var/lib/cni || true")  # purge takes the folder when it is empty, whoever made it
    before = lab.snapshot("host")
    must(lab, f"{COMMAND} uninstall --purge")
    assert snapshot.difference(before, lab.snapshot("host")) == ""

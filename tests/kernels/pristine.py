"""Every plugin once on a kernel that has nothing of theirs: it loads each module by itself, when it is asked for it.

Run inside tests/kernels/emulator.py, whose machine and namespaces end with it. For each example of conf/ (there is one for every
plugin) and each of VARIANTS: a new namespace; STATUS, ADD, CHECK, DEL and GC of its plugins; the modules that were loaded
meanwhile, which are then unloaded, so that the next plugin finds none of them either.

    python3 -m tests.kernels.pristine BIN-DIR RESULT.json [NAME ...]     exit status 1 when one has failed
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 120  # of a call
UNLOAD_S = 3  # after the last one that went: the kernel takes its time to free what is unused
MASTER = "ip link add lan0 type dummy; ip address add 198.51.100.1/24 dev lan0; ip link set lan0 up"
# A LAN with a server, and the daemon
LEASING = """\
ip link add eth0 type veth peer name lan0; ip address add 192.0.2.1/24 dev lan0; ip link set lan0 up; ip link set eth0 up
touch /run/leases
cat >/run/udhcpd.conf <<END
interface lan0
start 192.0.2.50
end 192.0.2.59
option subnet 255.255.255.0
lease_file /run/leases
pidfile /run/udhcpd.pid
END
busybox udhcpd -f /run/udhcpd.conf >/dev/null 2>&1 &
mkdir -p /run/cni; $PLUGINS/dhcp daemon -pidfile /run/dhcp.pid >/run/dhcp.log 2>&1 &
for _ in $(seq 600); do test -S /run/cni/dhcp.sock && exit; sleep 0.1; done
"""
# What the host has before, by the name of the example
BEFORE = {
    "host-device": "ip link add lan1 type dummy",
    "dhcp": LEASING,
    **dict.fromkeys(("macvlan", "ipvlan", "vlan", "sbr", "vrf"), MASTER),
}
AFTER = {"dhcp": "kill $(cat /run/udhcpd.pid /run/dhcp.pid)"}  # what ends with nothing else
# By capability
RUNTIME = {
    "portMappings": [
        {"hostPort": 8000 + number, "containerPort": number, "protocol": protocol}
        for number, protocol in ((80, "tcp"), (53, "udp"), (132, "sctp"))
    ],
}
# What no example has: the example that it is like, and keys of plugins of its list
VARIANTS: dict[str, tuple[str, Mapping[str, Mapping[str, object]]]] = {
    "bridge, VLANs": ("bridge", {"bridge": {"vlan": 100, "vlanTrunk": [{"minID": 7, "maxID": 9}]}}),
    "bridge by iptables": ("bridge", {"bridge": {"ipMasqBackend": "iptables"}}),
    "bridge, sources checked": ("bridge", {"bridge": {"macspoofchk": True}}),
    "portmap by iptables": ("portmap", {"bridge": {"ipMasqBackend": "iptables"}, "portmap": {"backend": "iptables"}}),
    "firewall, isolated": ("firewall", {"firewall": {"backend": "nftables", "ingressPolicy": "isolated"}}),
    "firewall by iptables": ("firewall", {"firewall": {"backend": "iptables", "ingressPolicy": "same-bridge"}}),
}


class Failed(Exception):
    """A command has."""


def run(*words: str, check: bool = True, sent: str = "", env: Mapping[str, str] | None = None) -> str:
    done = subprocess.run(
        words,
        input=sent,
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT_S,
        env={**os.environ, **(env or {})},
    )
    if check and done.returncode:
        raise Failed(f"{' '.join(words)}: status {done.returncode}: {(done.stderr + done.stdout).strip()}")
    return done.stdout


def modules() -> set[str]:
    """Those that are loaded."""
    return {line.split()[0] for line in Path("/proc/modules").read_text(encoding="ascii").splitlines()}


def cases(folder: Path) -> Iterator[tuple[str, str, Path]]:
    """A name, the example that it is or is like, and the list of plugins."""
    examples = {path.stem: path for path in sorted((ROOT / "conf").glob("*.conflist"))}
    for name, path in examples.items():
        yield name, name, path
    for name, (example, keys) in VARIANTS.items():
        conf: dict[str, Any] = json.loads(examples[example].read_text())
        for plugin in conf["plugins"]:
            plugin.update(keys.get(plugin["type"], {}))
        path = folder / f"{name}.conflist"
        path.write_text(json.dumps(conf))
        yield name, example, path


def live(example: str, path: Path, plugins: Path) -> None:
    """The life of an attachment, as a runtime has it. Failed."""
    run("ip", "netns", "add", "c1")
    conf: dict[str, Any] = json.loads(path.read_text())
    members: list[dict[str, Any]] = [
        {**plugin, "cniVersion": conf["cniVersion"], "name": conf["name"]} for plugin in conf["plugins"]
    ]
    if conf["cniVersion"] == "1.1.0":
        call("STATUS", members, plugins, example)
    result = call("ADD", members, plugins, example)
    with_result = [{**plugin, "prevResult": result} for plugin in members]
    call("CHECK", with_result, plugins, example)
    call("DEL", with_result[::-1], plugins, example)
    left = [link["ifname"] for link in json.loads(run("ip", "-n", "c1", "-j", "link"))]
    if left != ["lo"]:
        raise Failed(f"DEL left {left}")
    if conf["cniVersion"] == "1.1.0":
        call("GC", [{**plugin, "cni.dev/valid-attachments": []} for plugin in members], plugins, example)


def call(verb: str, members: Sequence[Mapping[str, Any]], plugins: Path, example: str) -> dict[str, Any] | None:
    """A verb of each plugin; the result of the last ADD. Failed."""
    result: dict[str, Any] | None = None
    env = {"CNI_COMMAND": verb, "CNI_PATH": str(plugins)}
    if verb in ("ADD", "CHECK", "DEL"):
        ifname = "lo" if example == "loopback" else "eth0"
        env |= {"CNI_CONTAINERID": "c1", "CNI_NETNS": "/run/netns/c1", "CNI_IFNAME": ifname}
    for plugin in members:
        runtime = {key: RUNTIME[key] for key in plugin.get("capabilities", {}) if key in RUNTIME}
        sent = {
            **plugin,
            **({"runtimeConfig": runtime} if runtime else {}),
            **({"prevResult": result} if result else {}),
        }
        said = run(str(plugins / plugin["type"]), sent=json.dumps(sent), env=env)
        result = json.loads(said) if verb == "ADD" else None
    return result


def clear(before: set[str]) -> set[str]:
    """Undo what a case has left, as far as the machine allows; the modules that stay loaded all the same."""
    run("ip", "netns", "delete", "c1", check=False)
    for link in json.loads(run("ip", "-j", "link")):
        run("ip", "link", "delete", link["ifname"], check=False)
    run("nft", "flush", "ruleset", check=False)
    end = time.monotonic() + UNLOAD_S
    while (more := modules() - before) and time.monotonic() < end:
        run("rmmod", *sorted(more), check=False)
        if modules() - before != more:
            end = time.monotonic() + UNLOAD_S
        time.sleep(0.1)
    return more


def main() -> int:
    """All of them, or those that are named."""
    plugins, result, *names = sys.argv[1:]
    folder, bin_dir = Path(result).parent, Path(plugins)
    well, failures = 0, []
    run("ip", "link", "set", "lo", "up")
    for name, example, path in [case for case in cases(folder) if not names or case[0] in names]:
        before = modules()
        run("sh", "-ec", BEFORE.get(example, "true"), env={"PLUGINS": plugins})
        found = modules()
        try:
            live(example, path, bin_dir)
            well, outcome = well + 1, "ok"
        except (Failed, subprocess.TimeoutExpired) as error:
            failures.append(name)
            outcome = f"FAILED: {error}"
        run("sh", "-c", AFTER.get(example, "true"), check=False)
        loaded = modules() - found
        stay = clear(before)
        kept = f"   (stay: {' '.join(sorted(stay))})" if stay else ""
        print(f"{name:24} {outcome:3} {' '.join(sorted(loaded))}{kept}", flush=True)
    Path(result).write_text(json.dumps({"tests": well + len(failures), "failed": failures}))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())

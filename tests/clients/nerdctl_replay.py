"""nerdctl 2.3's side of the CNI, replayed, for Debian has no package of it.

    create_network()    a conflist as `nerdctl network create` writes it, with the checks of the plugins it makes first
    publish()           `-p`: the mappings it stands for, or the refusal of a port that is taken
    create_runtime()    the OCI hook of a start: port reserver, DEL without a namespace, ADD of all networks at once
    post_stop()         the hook of an end: DEL without a namespace, then the search for iptables rules with the container's id

Everything here runs on the lab's host, as root of its namespaces: call it through Node.python(). Plugins are run as libcni and
go-cni run them (configuration, environment, cache of results), by code that shares nothing with ours.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import hashlib
import ipaddress
import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import SystemRandom
from typing import Any

Json = dict[str, Any]

NAMESPACE = "default"  # of containerd
NETCONF = Path("/etc/cni/net.d")
CACHE = Path("/var/lib/cni/results")  # libcni's
STATE = Path("/run/nerdctl") / NAMESPACE
DEFAULT_NETWORK, DEFAULT_SUBNET = "bridge", "10.4.0.0/24"
AUTOMATIC_PORTS = range(49153, 60999)
ANY4 = "0.0.0.0"
PLUGIN_S = 20
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
TIME_WAIT, CLOSE_WAIT = 6, 8  # include/net/tcp_states.h
SEMVER = re.compile(r"v?(\d+)(?:\.(\d+))?(?:\.(\d+))?(?:-[0-9A-Za-z.-]+)?(?:\+[0-9A-Za-z.-]+)?")


class Refused(Exception):
    """nerdctl itself says no: a plugin is missing, or a port is taken."""


class PluginFailed(Exception):
    """A plugin answered with an error."""


@dataclass(frozen=True, slots=True)
class Container:
    """What the annotations of a container tell the hooks."""

    id: str  # 64 hex digits
    pid: int  # of its init, as the host sees it
    networks: tuple[str, ...] = (DEFAULT_NETWORK,)
    ports: tuple[Json, ...] = ()
    hostname: str = ""
    ip: str = ""
    ip6: str = ""
    mac: str = ""

    @property
    def full_id(self) -> str:
        """The CNI's id."""
        return f"{NAMESPACE}-{self.id}"

    @property
    def netns(self) -> str:
        return f"/proc/{self.pid}/ns/net"

    @property
    def reserver_file(self) -> Path:
        return STATE / self.id / "port-reserver.pid"

    def args(self, *, starting: bool) -> list[tuple[str, str]]:
        """CNI_ARGS in any order, since they come out of a Go map; at the end only those that asked for an address."""
        pairs = {"IP": self.ip, "MAC": self.mac}
        pairs = {key: value for key, value in pairs.items() if value}
        if starting:
            pairs["NERDCTL_CNI_DHCP_HOSTNAME"] = self.hostname
        if pairs or self.ip6:
            pairs["IgnoreUnknown"] = "1"
        return SystemRandom().sample(list(pairs.items()), len(pairs))

    @property
    def capability_args(self) -> Json:
        wanted: Json = {"portMappings": list(self.ports), "ips": [self.ip6] if self.ip6 else []}
        return {name: value for name, value in wanted.items() if value}


# Networks


def create_network(
    cni_path: Path, name: str, *subnets: str, internal: bool = False, icc: bool = True, changes: Json | None = None
) -> Json:
    """`nerdctl network create`; several subnets with --ipv6. Written as a file, and returned. Refused.

    `changes` are keys that a user put into the file afterwards, by the plugin's type.
    """
    ipam: Json = {"type": "host-local", "ranges": [[ipam_range(subnet)] for subnet in subnets]}
    if not internal:
        ipam["routes"] = [{"dst": ANY4 + "/0" if any("." in subnet for subnet in subnets) else "::/0"}]
    gateway = {} if internal else {"isGateway": True, "ipMasq": True}
    ips = {"capabilities": {"ips": True}} if any(":" in subnet for subnet in subnets) else {}
    policy = "isolated" if not icc and firewall_at_least(cni_path, (1, 7, 1)) else "same-bridge"
    plugins: list[Json] = [
        {"type": "bridge", "bridge": bridge_name(name), **gateway, "hairpinMode": True, "ipam": ipam, **ips},
        {"type": "portmap", "capabilities": {"portMappings": True}},
        {"type": "firewall", "ingressPolicy": policy},
        {"type": "tuning"},
    ]
    if internal:
        del plugins[1]
    labels = {"nerdctl/default-network": "true"} if name == DEFAULT_NETWORK else {}
    return write_network(
        cni_path, name, [{**plugin, **(changes or {}).get(plugin["type"], {})} for plugin in plugins], labels
    )


def write_network(cni_path: Path, name: str, plugins: list[Json], labels: Json) -> Json:
    """The file, once every plugin in it is there and executable."""
    for plugin in plugins:
        if not shutil.which(cni_path / plugin["type"]):
            raise Refused(f'needs CNI plugin "{plugin["type"]}" to be installed in CNI_PATH ("{cni_path}")')
    conflist = {
        "cniVersion": "1.0.0",
        "name": name,
        "nerdctlID": network_id(name),
        **({"nerdctlLabels": labels} if labels else {}),
        "plugins": plugins,
    }
    NETCONF.mkdir(parents=True, exist_ok=True)
    network_file(name).write_text(json.dumps(conflist, indent=2))
    return conflist


def ipam_range(subnet: str) -> Json:
    return {"subnet": subnet, "gateway": str(ipaddress.ip_network(subnet)[1])}


def network_id(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def bridge_name(name: str) -> str:
    return "nerdctl0" if name == DEFAULT_NETWORK else f"br-{network_id(name)[:12]}"


def network_file(name: str) -> Path:
    return NETCONF / f"nerdctl-{name}.conflist"


def firewall_at_least(cni_path: Path, wanted: tuple[int, int, int]) -> bool:
    """Whether the firewall plugin says it is of that version; what cannot be told is taken for an older one."""
    try:
        return firewall_version(cni_path) >= wanted
    except Refused:
        return False


def firewall_version(cni_path: Path) -> tuple[int, ...]:
    """What the plugin prints about itself on stderr, run without CNI_COMMAND. Refused."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("CNI_")}
    done = subprocess.run(
        [cni_path / "firewall"], env=environ, check=False, capture_output=True, text=True, timeout=PLUGIN_S
    )
    if done.returncode:
        raise Refused(f"failed to run firewall: {done.returncode}: {done.stdout}{done.stderr}")
    prefix = "CNI firewall plugin "
    for line in done.stderr.split("\n"):
        if line.startswith(prefix):
            version = SEMVER.fullmatch(line.removeprefix(prefix))
            if version is None:
                raise Refused(f"failed to parse {line!r} as a semver")
            return tuple(int(part or 0) for part in version.groups())
    raise Refused(f"no line of {done.stderr!r} starts with {prefix!r}")


# Ports


def publish(asked: str) -> list[Json]:
    """What `-p` [IP:][HOST[-HOST]:]CONTAINER[-CONTAINER][/PROTOCOL] stands for, one entry for each port. Refused."""
    ports, _, protocol = asked.partition("/")
    protocol = protocol.lower() or "tcp"
    host, _, inside = ports.rpartition(":")
    ip, _, host = host.rpartition(":")
    ip = ip.strip("[]")
    first, last = port_range(inside)
    if host:
        host_first, host_last = port_range(host)
        taken = used_ports(ip, protocol).intersection(range(host_first, host_last + 1))
        if taken:
            raise Refused(f"bind for {ip or ANY4}:{min(taken)} failed: port is already allocated")
        if host_last - host_first != last - first:
            raise Refused(f"invalid ranges specified for container and host Ports: {inside} and {host}")
    else:
        host_first = allocate(ip, protocol, last - first + 1)
    return [
        {"HostPort": host_first + index, "ContainerPort": first + index, "Protocol": protocol, "HostIP": ip or ANY4}
        for index in range(last - first + 1)
    ]


def port_range(text: str) -> tuple[int, int]:
    first, _, last = text.partition("-")
    return int(first), int(last or first)


def allocate(ip: str, protocol: str, count: int) -> int:
    """The first of so many free ports in a row."""
    used = used_ports(ip, protocol)
    return next(first for first in AUTOMATIC_PORTS[::count] if used.isdisjoint(range(first, first + count)))


def used_ports(ip: str, protocol: str) -> set[int]:
    """Ports that sockets hold, and those that the iptables rules of portmap lead away."""
    return held_ports(ip, protocol) | mapped_ports(ip)


def held_ports(ip: str, protocol: str) -> set[int]:
    """Of sockets in /proc/net; those of IPv6's any address count for IPv4 too."""
    found = set()
    for table in (protocol, f"{protocol}6") if protocol in ("tcp", "udp") else ():
        for line in Path("/proc/net", table).read_text(encoding="ascii").splitlines()[1:]:
            _, local, _, state, *_ = line.split()
            address, port = parse_socket(local)
            closing = protocol == "tcp" and int(state, 16) in (TIME_WAIT, CLOSE_WAIT)
            if not closing and (not ip or address in ("::", ip)):
                found.add(port)
    return found


def parse_socket(text: str) -> tuple[str, int]:
    """ "0100007F:0050" -> ("127.0.0.1", 80): words of the host's byte order (Documentation/networking/proc_net_tcp.rst)."""
    words, _, port = text.partition(":")
    swapped = b"".join(bytes.fromhex(words[start : start + 8])[::-1] for start in range(0, len(words), 8))
    return str(ipaddress.ip_address(swapped)), int(port, 16)


def mapped_ports(ip: str) -> set[int]:
    """Of the rules in the chains that CNI-HOSTPORT-DNAT leads to."""
    parents = iptables("-t", "nat", "-S", "CNI-HOSTPORT-DNAT").stdout.splitlines()
    chains = [chain for rule in parents for chain in re.findall(r"-j (CNI-DN-\S+)", rule)]
    rules = [rule for chain in chains for rule in iptables("-t", "nat", "-S", chain).stdout.splitlines()]
    found = set()
    for rule in rules or parents:
        ports = re.search(r"--dports ((?:,?\d+)+)", rule) or re.search(r"--dport (\d+)", rule)
        destination = re.search(r"-d (\S+?)(?:/\d+)?\s", rule)
        if ports and (ip in ("", ANY4) or destination is None or destination[1] in (ip, ANY4)):
            found |= {int(port) for port in ports[1].split(",")}
    return found


def iptables(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["iptables", *arguments], check=False, capture_output=True, text=True, timeout=PLUGIN_S)


# Hooks


def create_runtime(container: Container, cni_path: Path) -> list[Json]:
    """The results of a container's networks. PluginFailed, when all is taken back."""
    with hook():
        reserver = reserve_ports(container)
        try:
            runs = runs_of(container, cni_path, container.args(starting=True))
            with contextlib.suppress(PluginFailed):
                remove(runs)
            runs = [replace(run, netns=container.netns) for run in runs]
            try:
                return add_at_once(runs)
            except PluginFailed:
                with contextlib.suppress(PluginFailed):
                    remove(runs)
                raise
        except BaseException:
            if reserver:
                os.kill(reserver, signal.SIGKILL)
            shutil.rmtree(STATE / container.id, ignore_errors=True)
            raise


def post_stop(container: Container, cni_path: Path) -> list[str]:
    """The rules that were still there to be deleted after the DEL. PluginFailed, and then nothing more is done."""
    with hook():
        remove(runs_of(container, cni_path, container.args(starting=False)))
        rules = clean_up_rules(container)
        stop_reserver(container)
        return rules


@contextlib.contextmanager
def hook() -> Iterator[None]:
    """One hook at a time, with the folders of programs in reach."""
    os.environ["PATH"] = PATH
    NETCONF.mkdir(parents=True, exist_ok=True)
    with open(NETCONF / ".cni-concurrency.lock", "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def reserve_ports(container: Container) -> int:
    """Start the process that holds sockets on the published ports, as far as they are to be had; its id."""
    if not container.ports:
        return 0
    sockets = [held for port in container.ports if (held := reserved_socket(port))]
    null = [(os.POSIX_SPAWN_OPEN, fd, "/dev/null", os.O_RDWR, 0) for fd in range(3)]
    pid = os.posix_spawnp("sleep", ["sleep", "infinity"], os.environ, file_actions=null, setsid=True)
    for held in sockets:
        held.close()
    container.reserver_file.parent.mkdir(parents=True)
    container.reserver_file.write_text(str(pid))
    return pid


def reserved_socket(port: Json) -> socket.socket | None:
    """A socket as Go makes it for "tcp4" or "udp4"; None where nerdctl only warns."""
    kind = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}.get(port["Protocol"])
    if kind is None:
        return None
    held = socket.socket(socket.AF_INET, kind)
    try:
        if kind == socket.SOCK_STREAM:
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind((port["HostIP"], port["HostPort"]))
        if kind == socket.SOCK_STREAM:
            held.listen()
    except OSError:  # taken, or of IPv6
        held.close()
        return None
    held.set_inheritable(True)
    return held


def stop_reserver(container: Container) -> None:
    """End the process that reserve_ports() started, and wait until its sockets are closed."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        process = os.pidfd_open(int(container.reserver_file.read_text()))
        try:
            signal.pidfd_send_signal(process, signal.SIGKILL)
            select.select([process], [], [], PLUGIN_S)
        finally:
            os.close(process)
    shutil.rmtree(STATE / container.id, ignore_errors=True)


def clean_up_rules(container: Container) -> list[str]:
    """Delete every rule of iptables that tells the container's id, then its masquerade chains; the rules that were there."""
    found = []
    for table in ("nat", "filter", "mangle"):
        for rule in iptables("-t", table, "-S").stdout.split("\n"):
            if container.full_id in rule:
                found.append(rule)
                subprocess.run(
                    ["sh", "-c", "--", f"iptables -t {table} -D {rule[3:]}"],
                    check=False,
                    capture_output=True,
                    timeout=PLUGIN_S,
                )
    for name in container.networks:
        iptables("-t", "nat", "-X", chain_name(name, container.full_id))  # whether it is there or not
    return found


def chain_name(network: str, container_id: str) -> str:
    return "CNI-" + hashlib.sha512((network + container_id).encode()).hexdigest()[:24]


# libcni and go-cni


@dataclass(frozen=True, slots=True)
class Run:
    """One network of a container, and how its plugins are run for it."""

    network: Json
    container: Container
    ifname: str
    cni_path: Path
    args: list[tuple[str, str]] = field(default_factory=list)
    netns: str = ""

    @property
    def cache_file(self) -> Path:
        return CACHE / f"{self.network['name']}-{self.container.full_id}-{self.ifname}"

    def add(self) -> Json:
        """Every plugin in order. The result is cached when all of them succeeded; what a failure left is not taken back."""
        result: Json | None = None
        for plugin in self.network["plugins"]:
            result = json.loads(self.execute("ADD", plugin, result))
        assert result is not None
        validate(result)
        entry = {
            "kind": "cniCacheV1",
            "containerId": self.container.full_id,
            "config": base64.b64encode(network_file(self.network["name"]).read_bytes()).decode(),
            "ifName": self.ifname,
            "networkName": self.network["name"],
            "netns": self.netns,
            "cniArgs": self.args,
            "capabilityArgs": self.container.capability_args,
            "result": result,
        }
        CACHE.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.cache_file.write_text(json.dumps(entry))
        self.cache_file.chmod(0o600)
        return result

    def delete(self) -> None:
        """Every plugin in reverse, up to the first that fails."""
        result = json.loads(self.cache_file.read_text())["result"] if self.cache_file.exists() else None
        for plugin in reversed(self.network["plugins"]):
            self.execute("DEL", plugin, result)
        self.cache_file.unlink(missing_ok=True)

    def execute(self, verb: str, plugin: Json, result: Json | None) -> str:
        """Run one plugin; what it printed. PluginFailed."""
        environ = {
            **os.environ,
            "CNI_COMMAND": verb,
            "CNI_CONTAINERID": self.container.full_id,
            "CNI_NETNS": self.netns,
            "CNI_IFNAME": self.ifname,
            "CNI_ARGS": ";".join(f"{key}={value}" for key, value in self.args),
            "CNI_PATH": str(self.cni_path),
        }
        stdin = json.dumps(request(self.network, plugin, self.container.capability_args, result), sort_keys=True)
        path = self.cni_path / plugin["type"]
        done = subprocess.run(
            [path], env=environ, input=stdin, check=False, capture_output=True, text=True, timeout=PLUGIN_S
        )
        if done.returncode:
            raise PluginFailed(f'plugin type="{plugin["type"]}" failed ({verb}): {done.stdout or done.stderr}')
        return done.stdout


def runs_of(container: Container, cni_path: Path, args: list[tuple[str, str]]) -> list[Run]:
    """Those of a container's networks in order, without its namespace."""
    networks = [json.loads(network_file(name).read_text()) for name in container.networks]
    return [Run(network, container, f"eth{index}", cni_path, args) for index, network in enumerate(networks)]


def request(network: Json, plugin: Json, capability_args: Mapping[str, Any], result: Json | None) -> Json:
    """The configuration of one plugin of a list: what it declares of the capabilities comes as runtimeConfig."""
    declared = plugin.get("capabilities", {})
    runtime = {name: value for name, value in capability_args.items() if declared.get(name)}
    return {
        **plugin,
        "name": network["name"],
        "cniVersion": network["cniVersion"],
        **({"prevResult": result} if result is not None else {}),
        **({"runtimeConfig": runtime} if runtime else {}),
    }


def add_at_once(runs: list[Run]) -> list[Json]:
    """ADD of all networks in parallel. PluginFailed, once all of them have ended."""
    with ThreadPoolExecutor(len(runs)) as pool:
        return [future.result() for future in [pool.submit(run.add) for run in runs]]


def remove(runs: list[Run]) -> None:
    """DEL of one network after the other. PluginFailed, but not for what go-cni takes for an answer."""
    for run in runs:
        try:
            run.delete()
        except PluginFailed as failure:
            gone = not run.netns and "no such file or directory" in str(failure)
            if not gone and "not found" not in str(failure):
                raise


def validate(result: Json) -> None:
    """PluginFailed for a result that go-cni refuses: an address without an interface of that number, or no eth0."""
    interfaces = result.get("interfaces", [])
    for ip in result.get("ips", []):
        ipaddress.ip_interface(ip["address"])
        if not 0 <= ip.get("interface", 0) < len(interfaces):
            raise PluginFailed(f"invalid interface config: {ip}")

"""Our executables where nobody is root: a user's own user, network and mount namespace (`unshare -Urnm`).

In there the user is root of the network, and of nothing else: /proc/sys may be read-only, and the machine's files are others'.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients.containerd_host import COMMAND_S, Namespaces
from tests.conftest import install_ours
from tests.lacking import missing, need_root

pytestmark = [pytest.mark.ours_alone, pytest.mark.unchained, pytest.mark.xdist_group("rootless")]

USER = 65534
PREPARE = """
set -e
ip link set lo up
mount -t tmpfs tmpfs /var/lib
mount -t tmpfs tmpfs /run
mkdir /run/netns
echo $$
exec sleep 300
"""
READ_ONLY = "mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys"
SUBNETS = ("192.0.2.0/24", "2001:db8:2::/64")
GATEWAY = "192.0.2.1"
PLUGINS = [
    {
        "type": "bridge",
        "bridge": "br-lab",
        "isGateway": True,
        "ipMasq": True,
        "hairpinMode": True,
        "ipam": {"type": "host-local", "ranges": [[{"subnet": subnet}] for subnet in SUBNETS]},
    },
    {"type": "portmap", "capabilities": {"portMappings": True}},
    {"type": "firewall", "ingressPolicy": "same-bridge"},
    {"type": "tuning"},
]
NETWORKS = {"list": PLUGINS, "chain": [{"type": "chain", "plugins": PLUGINS, "capabilities": {"portMappings": True}}]}
WEB = """
import http.server
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"web " + self.client_address[0].encode())
    def log_message(self, *words):
        pass
server = http.server.HTTPServer(("0.0.0.0", 80), Handler)
print("ready", flush=True)
server.serve_forever()
"""


class Own(Namespaces):
    """A user's namespaces, entered as the root that is in them; the machine takes that for the user."""

    def __init__(self, holder: int, commands: Path, bin_dir: Path) -> None:
        enter = ["nsenter", f"--target={holder}", "--user", "--net", "--mount", "--wd=/"]
        super().__init__(enter, {"PATH": f"{commands}:/usr/sbin:/usr/bin:/sbin:/bin", "CNI_PATH": str(bin_dir)})

    def cni(self, verb: str, network: str, name: str, *options: str) -> subprocess.CompletedProcess[str]:
        return self.run("cni-py-exec", "--json", verb, f"/run/{network}.conflist", name, *options, check=False)


@pytest.fixture(scope="module")
def bin_dir() -> Iterator[Path]:
    """Our executables where every user reaches them; pytest's folders are for their owner."""
    need_root()
    with tempfile.TemporaryDirectory(prefix="cni-py-rootless-") as folder:
        Path(folder).chmod(0o755)
        yield install_ours(Path(folder))


@pytest.fixture
def own(bin_dir: Path) -> Iterator[Own]:
    """By a user of no files; by root where a stranger cannot read this checkout."""
    commands = Path(sys.executable).parent
    become = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups"]
    reads = subprocess.run([*become, commands / "cni-py-exec", "--version"], capture_output=True, check=False)
    start = [*(become if reads.returncode == 0 else []), "unshare", "-Urnm", "sh", "-c", PREPARE]
    with subprocess.Popen(start, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd="/") as holder:
        try:
            assert holder.stdout
            assert holder.stderr
            if not holder.stdout.readline():
                missing(f"no user namespaces here: {holder.stderr.read()}")
            found = Own(holder.pid, commands, bin_dir)
            for name, plugins in NETWORKS.items():
                conflist = {"cniVersion": "1.0.0", "name": name, "plugins": plugins}
                found.run("tee", f"/run/{name}.conflist", given=json.dumps(conflist))
            yield found
        finally:
            holder.kill()


def serving(own: Own, name: str) -> subprocess.Popen[str]:
    """A web server in a container."""
    server = own.popen(
        *("nsenter", f"--net=/run/netns/{name}", sys.executable, "-I", "-S", "-c", WEB),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    )
    assert server.stdout
    assert server.stdout.readline() == "ready\n"
    return server


def state(own: Own) -> list[str]:
    """What a container may leave, without what all share."""
    ruleset = own.run("nft", "--stateless", "list", "ruleset").stdout
    elements = [line.strip() for line in ruleset.splitlines() if "192.0.2.2" in line or "2001:db8:2::2" in line]
    folders = ("/run/cni-py/attachments", "/run/user/cni-py/attachments", "/var/lib/cni")
    files = own.run("find", *folders, "-type", "f", "!", "-name", "l*", check=False)
    links = [link["ifname"] for link in own.json("ip", "-json", "link") if link["ifname"].startswith("veth")]
    return [*elements, *files.stdout.split(), *links]


@pytest.mark.parametrize("network", NETWORKS)
def test_a_published_port_of_a_user(own: Own, network: str) -> None:
    added = own.cni("ADD", network, "web", "--create-netns", "-p", "8080:80")
    assert added.returncode == 0, added.stdout + added.stderr
    with serving(own, "web") as server:
        try:
            seen = [own.fetch(address, 8080) for address in ("127.0.0.1", GATEWAY)]
        finally:
            server.kill()
    assert seen == [f"web {GATEWAY}"] * 2
    assert state(own)
    for verb in ("CHECK", "DEL", "DEL"):
        done = own.cni(verb, network, "web")
        assert done.returncode == 0, done.stdout + done.stderr
    assert state(own) == []


def test_the_folders_of_the_machines_root_are_left_alone(own: Own, bin_dir: Path) -> None:
    """rootlesskit gives its child a /run and /var/lib with all that the machine has there, such as our root's folders."""
    theirs = bin_dir.parent / "theirs"
    theirs.mkdir(mode=0o700)
    os.chown(theirs, 12345, 12345)
    for folder in ("/run/cni-py", "/var/lib/cni-py"):
        own.run("mkdir", folder)
        own.run("mount", "--bind", str(theirs), folder)
    own.run("mkdir", "/run/user")
    own.environment |= {"XDG_RUNTIME_DIR": "/run/user", "XDG_STATE_HOME": "/run/user/state"}
    added = own.cni("ADD", "list", "web", "--create-netns", "-p", "8080:80")
    assert added.returncode == 0, added.stdout + added.stderr
    assert any(entry.startswith("/run/user/cni-py/attachments/") for entry in state(own))
    service = own.popen("portfwd", "serve", stdin=subprocess.DEVNULL)
    try:
        own.run("sh", "-c", "for i in $(seq 100); do portfwd ls 2>/dev/null && exit; sleep 0.1; done; exit 1")
    finally:
        service.terminate()
        service.wait(COMMAND_S)
    assert own.cni("DEL", "list", "web").returncode == 0
    assert state(own) == []


@pytest.mark.parametrize(
    ("before", "names", "said"),
    [
        ("true", [], "cannot set the sysctl net.ipv4.ip_forward to 1"),
        ("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1", [], "route_localnet"),
        (
            "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.ipv4.conf.all.route_localnet=1",
            ["127.0.0.1", GATEWAY],
            "",
        ),
    ],
)
def test_sysctls_that_cannot_be_set(own: Own, before: str, names: list[str], said: str) -> None:
    """Which one, and why, in a sentence; where all have their values already, nothing needs to be set."""
    own.run("sh", "-c", f"{before} && {READ_ONLY}")
    added = own.cni("ADD", "list", "web", "--create-netns", "-p", "8080:80")
    if said:
        error = json.loads(added.stdout)
        assert (error["code"], added.returncode) == (5, 1)
        assert said in error["msg"]
        assert "the file system is read-only: run it privileged, or mount it writable" in error["details"]
        assert state(own) == []
        return
    with serving(own, "web") as server:
        try:
            assert [own.fetch(address, 8080) for address in names] == [f"web {GATEWAY}"] * 2
        finally:
            server.kill()


def test_portfwd_of_a_user(own: Own) -> None:
    """To what listens on the loopback of a namespace of the user's."""
    own.run("ip", "netns", "add", "web")
    own.run("ip", "-netns", "web", "link", "set", "lo", "up")
    with (
        serving(own, "web") as server,
        own.popen("portfwd", "run", "-p", "8080:80", "--netns", "web", stdin=subprocess.DEVNULL) as relay,
    ):
        try:
            seen = []
            for address in ("127.0.0.1", "::1"):
                own.run(
                    "sh", "-c", "for i in $(seq 100); do ss -Hltn sport = :8080 | grep -q . && exit; sleep 0.1; done"
                )
                seen.append(own.fetch(address, 8080))
        finally:
            relay.terminate()
            relay.wait(COMMAND_S)
            server.kill()
    assert seen == ["web 127.0.0.1"] * 2

"""What a user's nerdctl does with our plugins, under rootlesskit and slirp4netns: a part of `make test-nerdctl`.

The machine's root uses our plugins, too, so that rootlesskit shows the user a /run/cni-py that is not the user's. The user's
ports are rootlesskit's: it listens, and connects from the loopback of the user's network to what portmap has published there.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import pytest

from tests.clients import fetch_debs, image
from tests.clients.containerd_host import CLIENT4, COMMAND_S, HOST4, Namespaces, NoNamespaces, wait_for
from tests.clients.docker_host import ask_udp
from tests.clients.nerdctl_real import SETTINGS_OF_CONTAINERD, NerdctlHost, ask
from tests.clients.nerdctl_steps import BLOCKED, GATEWAY4, LOCAL4, REFUSED, nerdctl
from tests.lacking import missing

__all__ = ["nerdctl"]  # the fixture

pytestmark = pytest.mark.xdist_group("nerdctl-rootless")

PACKAGES = ("rootlesskit", "slirp4netns", "uidmap")
UID, NAME, HOME, RUNTIME = "1234", "tester", "/run/home", "/run/user/1234"
KIT = f"{RUNTIME}/containerd-rootless"  # where nerdctl looks for it
DUAL4, DUAL6 = "10.4.2.0/24", "2001:db8:4::/64"
USER = f"""
set -e
mkdir -p /run/etc {RUNTIME} {HOME}
cp /etc/passwd /etc/group /run/etc/
echo "{NAME}:x:{UID}:{UID}::{HOME}:/bin/sh" >>/run/etc/passwd
echo "{NAME}:x:{UID}:" >>/run/etc/group
for file in subuid subgid; do echo "{NAME}:200000:65536" >/run/etc/$file; done
for file in passwd group subuid subgid; do mount --bind /run/etc/$file /etc/$file; done
mknod -m 666 /run/tun c 10 200
mount --bind /run/tun /dev/net/tun
chown -R {UID}:{UID} {RUNTIME} {HOME}
"""
# As nerdctl's containerd-rootless.sh: what rootlesskit has copied of the machine makes way for the user's.
CHILD = f"""
set -e
rm -rf /run/containerd /run/xtables.lock /var/lib/containerd /var/lib/cni
mkdir -p {RUNTIME}/containerd /run/containerd {HOME}/containerd /var/lib/containerd {HOME}/cni /var/lib/cni
mount --bind {RUNTIME}/containerd /run/containerd
mount --bind {HOME}/containerd /var/lib/containerd
mount --bind {HOME}/cni /var/lib/cni
exec containerd --config {HOME}/containerd.toml
"""
CONTAINERD = f"""\
version = 2
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[plugins."io.containerd.internal.v1.opt"]
path = "{HOME}/opt"
{SETTINGS_OF_CONTAINERD}"""
SETTINGS = """\
snapshotter = "native"
cni_path = "/opt/cni/bin"
cgroup_manager = "none"
"""


class RootlessHost(NerdctlHost):
    """A host on which a user runs rootlesskit with containerd, beside the containerd of root. `nerdctl` is the user's."""

    conflists = f"{HOME}/.config/cni/net.d"

    def __init__(self, debs: Path, tools: Path, plugins: Path, program: Path, archive: Path) -> None:
        super().__init__(debs, plugins, program, archive, "nftables")
        own = [*fetch_debs.programs(debs), *fetch_debs.programs(tools), "/usr/sbin", "/usr/bin", "/sbin", "/bin"]
        self.users = {
            "HOME": HOME,
            "XDG_RUNTIME_DIR": RUNTIME,
            "USER": NAME,
            "NERDCTL_TOML": f"{HOME}/nerdctl.toml",
            "PATH": ":".join(own),
            "LD_LIBRARY_PATH": ":".join(fetch_debs.libraries(tools)),
        }

    def __enter__(self) -> Self:
        super().__enter__()
        try:
            with self.running("roots", "--publish=9090:80"):
                pass  # so that there is a /run/cni-py
            # They are root's alone so far
            self.run("install", "-D", "--target-directory=/run/all", self.program, str(self.archive))
            self.program, archive = f"/run/all/{Path(self.program).name}", f"/run/all/{self.archive.name}"
            self.run("sh", "-c", USER)
            enter = [*self.enter, "setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups"]
            self.user = Namespaces([*enter], self.users)
            for name, text in (("containerd.toml", CONTAINERD), ("nerdctl.toml", SETTINGS), ("child.sh", CHILD)):
                self.user.run("tee", f"{HOME}/{name}", given=text)
            for program in ("containerd", "/opt/cni/bin/firewall"):
                if self.user.run(program, "--version", check=False).returncode:
                    missing(f"{program} is not for every user: this checkout is in a folder that is root's alone")
            self.start_rootlesskit()
            self.nerdctl("load", f"--input={archive}")
        except BaseException:
            self.close()
            raise
        return self

    def start_rootlesskit(self) -> None:
        detached = "--detach-netns" in self.user.run("rootlesskit", "--help").stdout
        words = [f"--state-dir={KIT}", "--net=slirp4netns", "--mtu=65520", "--disable-host-loopback"]
        words += ["--slirp4netns-sandbox=auto", "--slirp4netns-seccomp=auto", "--port-driver=builtin"]
        words += ["--copy-up=/etc", "--copy-up=/run", "--copy-up=/var/lib", *["--detach-netns"][: int(detached)]]
        command = ["rootlesskit", *words, "sh", f"{HOME}/child.sh"]
        log = f'exec "$@" >{HOME}/log 2>&1 </dev/null'
        kit = self.user.popen("sh", "-c", log, "sh", *command)
        self.started.append(kit)

        def answers() -> bool | None:
            if kit.poll() is not None:
                pytest.fail(f"rootlesskit did not start\n{self.run('tail', f'{HOME}/log').stdout}")
            return self.user.run(self.program, "ps", check=False).returncode == 0 or None

        wait_for("the user's containerd", answers)
        child = self.run("cat", f"{KIT}/child_pid").stdout.strip()
        net = f"--net={KIT}/netns" if detached else "--net"
        self.child = Namespaces([*self.enter, "nsenter", f"--target={child}", "--user", "--mount", net], self.users)

    def nerdctl(self, *words: str) -> str:
        """The user's, once there is one."""
        return self.place.run(self.program, *words).stdout

    def refusal(self, *words: str) -> str:
        done = self.place.run(self.program, *words, check=False)
        assert done.returncode, f"{words} was done: {done.stdout}"
        return done.stderr

    def remove(self, *names: str) -> None:
        self.place.run(self.program, "rm", "--force", *names, check=False)

    @property
    def place(self) -> Namespaces:
        return getattr(self, "user", self)

    def left(self) -> dict[str, Any]:
        """In the user's network and folders."""
        ruleset = self.child.run("nft", "--stateless", "list", "ruleset").stdout
        files = self.child.run("find", f"{RUNTIME}/cni-py/attachments", f"{HOME}/cni", "-type", "f", check=False)
        links = [link["ifname"] for link in self.child.json("ip", "-json", "link")]
        return {
            "elements": sorted(line for line in ruleset.splitlines() if "default-" in line),
            "links": [name for name in links if name.startswith("veth")],
            "files": [path for path in files.stdout.split() if "last_reserved" not in path and "/lock" not in path],
        }


@pytest.fixture(scope="module")
def host(nerdctl: Path, of_today: Path, archive: Path, our_bin_dir: Path) -> Iterator[RootlessHost]:
    try:
        tools = fetch_debs.fetch(packages=PACKAGES)
        found = RootlessHost(of_today, tools, our_bin_dir, nerdctl, archive).__enter__()
    except (NoNamespaces, fetch_debs.Unavailable, OSError, subprocess.SubprocessError) as error:
        missing(str(error))
    try:
        with found.running("first", "--publish=8080:80"):
            pass
        yield found
    finally:
        found.close()


@pytest.fixture(autouse=True)
def _nothing_is_left(host: RootlessHost) -> Iterator[None]:
    yield
    wait_for("the end of what a step made", lambda: not any(host.left().values()) or None)


@pytest.mark.parametrize(
    ("asked", "seen"),
    [
        ("8080:80", [f"web {GATEWAY4}"] * 2),
        (f"{LOCAL4}:8080:80", [REFUSED, f"web {GATEWAY4}"]),
        (f"{HOST4}:8080:80", [f"web {GATEWAY4}", REFUSED]),
        ("8078-8080:78-80", [f"web {GATEWAY4}"] * 2),
    ],
)
def test_rootless_run_publish(host: RootlessHost, asked: str, seen: list[str]) -> None:
    with host.running("web", f"--publish={asked}"):
        assert ":8080" in host.nerdctl("port", "web", "80")
        assert host.left()["elements"] + host.left()["files"]
        assert [ask(host.client, HOST4, 8080), ask(host, LOCAL4, 8080)] == seen
    wait_for("rootlesskit to close it", lambda: ask(host.client, HOST4, 8080) == REFUSED or None)


def test_rootless_run_publish_udp(host: RootlessHost) -> None:
    with host.running("web", "--publish=8053:53/udp") as web, web.serving_udp(53):
        assert ask_udp(host.client, HOST4, 8053) == f"web {GATEWAY4}"


def test_rootless_network_bridge(host: RootlessHost) -> None:
    host.nerdctl("network", "create", "--subnet=10.4.1.0/24", "foo")
    try:
        (firewall,) = [plugin for plugin in host.conflist("foo")["plugins"] if plugin["type"] == "firewall"]
        assert firewall["ingressPolicy"] == "same-bridge"
        with (
            host.running("web") as web,
            host.running("peer") as peer,
            host.running("other", "--network=foo", "--publish=8080:80") as other,
        ):
            seen = [ask(peer.network, web.ip4, 80), ask(other.network, web.ip4, 80), ask(host.client, HOST4, 8080)]
            listed = json.loads(host.nerdctl("network", "inspect", "foo"))[0]["Containers"].values()
    finally:
        host.nerdctl("network", "rm", "foo")
    assert seen == [f"web {peer.ip4}", BLOCKED, "other 10.4.1.1"]
    assert [entry["Name"] for entry in listed] == ["other"]


def test_rootless_network_ipv6(host: RootlessHost) -> None:
    host.nerdctl("network", "create", "--ipv6", f"--subnet={DUAL4}", f"--subnet={DUAL6}", "six")
    try:
        with host.running("web", "--network=six") as web, host.running("peer", "--network=six") as peer:
            assert ask(peer.network, web.ip6, 80) == f"web {peer.ip6}"
    finally:
        host.nerdctl("network", "rm", "six")


def test_rootless_ip_and_mac_address(host: RootlessHost) -> None:
    with host.running("web", "--ip=10.4.0.77", "--mac-address=02:00:5e:10:00:01") as web:
        assert (web.ip4, web.mac()) == ("10.4.0.77", "02:00:5e:10:00:01")


def test_rootless_outside(host: RootlessHost) -> None:
    """A container reaches the LAN, by slirp4netns."""
    host.client.run("sh", "-c", "ip link set lo up")
    page = f"import http.server as h; h.HTTPServer(({CLIENT4!r}, 80), h.SimpleHTTPRequestHandler).serve_forever()"
    with host.running("web") as web, host.client.popen("python3", "-c", page, stderr=subprocess.DEVNULL) as server:
        try:
            wait_for("the neighbour", lambda: not host.fetch(CLIENT4, 80).startswith("!") or None)
            assert not web.network.fetch(CLIENT4, 80).startswith("!")
        finally:
            server.kill()
            server.wait(COMMAND_S)


def test_rootless_stop_start_restart(host: RootlessHost) -> None:
    with host.running("web", "--publish=8080:80"):
        host.nerdctl("stop", "--time=3", "web")
        assert ask(host.client, HOST4, 8080) == "! ConnectionResetError"  # by rootlesskit, which nerdctl lets listen on
        for verb in ("start", "restart"):
            host.nerdctl(verb, "web")
            host.find("web")
            assert ask(host.client, HOST4, 8080) == f"web {GATEWAY4}"


def test_rootless_kill_9(host: RootlessHost) -> None:
    with host.running("web", "--publish=8080:80") as web:
        host.run("kill", "-KILL", web.pid)
        wait_for("the end", lambda: host.status("web") == "exited" or None)
        host.nerdctl("start", "web")
        host.find("web")
        assert ask(host.client, HOST4, 8080) == f"web {GATEWAY4}"


def test_rootless_network_macvlan(host: RootlessHost) -> None:
    """The interface of the machine is not to be seen; a sentence says which one."""
    host.nerdctl("network", "create", "--driver=macvlan", "--subnet=203.0.113.0/24", "--opt=parent=lan0", "mac")
    try:
        said = host.refusal("run", "--detach", "--name=web", "--network=mac", image.NAME, "web", "80")
        host.remove("web")
    finally:
        host.nerdctl("network", "rm", "mac")
    assert "lan0" in said

"""A throwaway host that runs Debian's containerd, unpacked, with a directory of CNI plugins, and a neighbour on its LAN.

    LAN client 192.0.2.9, 2001:db8:1::9 ---- lan0 192.0.2.1, 2001:db8:1::1 host ---- (bridge of the plugins) ---- containers

One holder process owns the network, mount and pid namespaces; everything runs inside them, so that the end of the
holder ends containerd, its shims and all containers. The holder dies with the test (PR_SET_PDEATHSIG) and by itself
after LIFETIME_S. The machine sees none of it but cgroups, in folders named after the holder, which close() removes; the
next start removes those of a run that was killed.

Inside, ctr's fixed directories (/opt/cni/bin, /etc/cni/net.d, /var/lib/cni) and /run are private. Run as a program,
this module mounts them: python3 containerd_host.py PLUGINS LIBC LIBRARIES, from within the new namespaces, with folders that are
joined by colons.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self, TypeVar

T = TypeVar("T")

FIXTURES = Path(__file__).resolve().parents[2] / "netns-fixtures"
LIFETIME_S = 900
COMMAND_S = 30
CGROUPS = Path("/sys/fs/cgroup")
CGROUP_PREFIX = "cni-py-test-"

HOST4, HOST6 = "192.0.2.1", "2001:db8:1::1"
CLIENT4, CLIENT6 = "192.0.2.9", "2001:db8:1::9"

CONTAINERD_CONFIG = """\
version = 2
root = "/run/containerd-root"
state = "/run/containerd"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[plugins."io.containerd.internal.v1.opt"]
path = "/run/containerd-opt"  # the default is a folder made in /opt
"""

# Prints the page, or ends with the error's name. An HTTP library would take longer to import than the page to fetch.
FETCH = """
import socket, sys
address, port, timeout = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
try:
    with socket.create_connection((address, port), timeout) as stream:
        stream.sendall(b"GET / HTTP/1.0\\r\\n\\r\\n")
        reply = b""
        while piece := stream.recv(65536):
            reply += piece
    print(reply.partition(b"\\r\\n\\r\\n")[2].decode(), end="")
except OSError as error:
    sys.exit(type(error).__name__)
"""


# Makes / the root of the new mount namespace, where nsenter leads, also in a chroot; then becomes another program.
OWN_MOUNTS = """
import os, sys; sys.path.insert(0, sys.argv[1])
import keeper
keeper.own_root()
keeper.mount("proc", "/proc", "proc")
os.execvp(sys.argv[2], sys.argv[2:])
"""


class Failed(Exception):
    """A command on the throwaway host ended badly, or took too long; the text has its output."""


class NoNamespaces(Exception):
    """This machine does not let us make the throwaway host."""


def wait_for(what: str, look: Callable[[], T | None], within_s: float = 20) -> T:
    """Return the first answer of look() that is not None."""
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        if (found := look()) is not None:
            return found
        time.sleep(0.02)
    raise Failed(f"waited {within_s} s for {what}")


class Namespaces:
    """The namespaces of one process, and commands run inside them."""

    def __init__(self, enter: list[str], environment: dict[str, str]) -> None:
        self.enter = enter
        self.environment = environment

    def popen(self, *command: str, **options: Any) -> subprocess.Popen[str]:
        return subprocess.Popen([*self.enter, *command], env=self.environment, text=True, **options)

    def run(self, *command: str, given: str = "", check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [*self.enter, *command],
            env=self.environment,
            input=given,
            capture_output=True,
            text=True,
            timeout=COMMAND_S,
            check=False,
        )
        if check and done.returncode:
            raise Failed(f"{' '.join(command)}: exit {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def fetch(self, address: str, port: int, timeout_s: float = 3) -> str:
        """Return the page, or "" and why not after it: "ConnectionRefusedError", "TimeoutError"."""
        done = self.run(sys.executable, "-I", "-S", "-c", FETCH, address, str(port), str(timeout_s), check=False)
        return done.stdout or f"! {done.stderr.strip()}"

    def json(self, *command: str) -> Any:
        return json.loads(self.run(*command).stdout or "[]")


class ContainerdHost(Namespaces):
    """The host of the picture above, as a context manager. Links and containerd are there once it is entered."""

    settings = ""  # more of containerd's

    def __init__(self, debs: Path, plugins: Path) -> None:
        from tests.clients import fetch_debs  # inside the namespaces this file is a program by itself, without `tests`

        self.libraries = fetch_debs.libraries(debs)
        self.libc = fetch_debs.newer_libc(debs)
        environment = os.environ | {
            "PATH": ":".join([*fetch_debs.programs(debs), "/usr/sbin", "/usr/bin", "/sbin", "/bin"]),
            "LD_LIBRARY_PATH": ":".join(self.libraries),
            "CONTAINERD_ADDRESS": "/run/containerd/containerd.sock",
            "CONTAINERD_SNAPSHOTTER": "native",
        }
        super().__init__([], environment)
        self.plugins = plugins
        self.pid = 0  # of the holder's child, init of the pid namespace
        self.started: list[subprocess.Popen[str]] = []  # they end with the holder

    def __enter__(self) -> Self:
        remove_cgroups_of_the_dead()
        self.holder = hold(self.environment)
        try:
            self.pid = only_child(self.holder.pid)
            self.enter = ["nsenter", f"--target={self.pid}", "--net", "--mount", "--pid", "--wd=/"]
            self.run(sys.executable, "-I", __file__, str(self.plugins), ":".join(self.libc), ":".join(self.libraries))
            self.client = self.make_lan()
            self.start_containerd()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)  # its parent, unshare, sees it end and follows
        else:
            self.holder.kill()
        self.holder.wait(COMMAND_S)
        for process in self.started:
            process.wait(COMMAND_S)
        remove_cgroups(self.cgroup)

    @property
    def cgroup(self) -> str:
        return f"{CGROUP_PREFIX}{own_pids()}-{self.holder.pid}"

    def make_lan(self) -> Namespaces:
        holding = f"echo $$; exec sleep {LIFETIME_S}"
        neighbour = self.popen("unshare", "--net", "sh", "-c", holding, stdout=subprocess.PIPE)
        self.started.append(neighbour)
        assert neighbour.stdout
        pid = neighbour.stdout.readline().strip()
        neighbour.stdout.close()
        client = Namespaces([*self.enter, "nsenter", f"--target={pid}", "--net"], self.environment)
        self.run("ip", "link", "set", "lo", "up")
        self.run("ip", "link", "add", "lan0", "type", "veth", "peer", "name", "eth0", "netns", pid)
        for side, link, addresses in ((self, "lan0", (HOST4, HOST6)), (client, "eth0", (CLIENT4, CLIENT6))):
            for address, length in zip(addresses, (24, 64), strict=True):
                side.run("ip", "address", "add", f"{address}/{length}", "dev", link, *["nodad"][: length == 64])
            side.run("ip", "link", "set", link, "up")
        return client

    def start_containerd(self) -> None:
        self.run("tee", "/run/containerd.toml", given=CONTAINERD_CONFIG + self.settings)
        start = "exec containerd --config /run/containerd.toml >/run/containerd.log 2>&1 </dev/null"
        containerd = self.popen("sh", "-c", start)
        self.started.append(containerd)

        def answers() -> bool | None:
            if containerd.poll() is not None:
                raise Failed(f"containerd did not start\n{self.run('cat', '/run/containerd.log').stdout}")
            return self.run("ctr", "version", check=False).returncode == 0 or None

        wait_for("containerd", answers)

    def import_image(self, archive: Path, namespace: str = "default") -> None:
        """Its first container unpacks it, by its own snapshotter: containerd 2 would here by one that it knows a platform for."""
        self.run("ctr", "--namespace", namespace, "image", "import", "--no-unpack", str(archive))

    def write_conflist(self, conflist: dict[str, Any]) -> None:
        """At once: containerd reads a file as soon as it is opened for writing, and with half of one it has no network."""
        command = "cd /etc/cni/net.d && cat >new && mv new 10-test.conflist"
        self.run("sh", "-c", command, given=json.dumps(conflist))

    def pid_of(self, container_id: str) -> str | None:
        """Return the process id of a running container's init, as seen inside."""
        for line in self.run("ctr", "task", "list").stdout.splitlines():
            match line.split():
                case [name, pid, "RUNNING"] if name == container_id:
                    return pid
        return None

    def inside(self, pid: str) -> Namespaces:
        """The network of a process, with the host's programs."""
        return Namespaces([*self.enter, "nsenter", f"--target={pid}", "--net"], self.environment)

    def snapshot(self) -> dict[str, Any]:
        """Return all that a container may leave on its host, without counters, handles and what is made to stay."""
        links = [(link["ifname"], link.get("master"), link.get("ifalias")) for link in self.json("ip", "-json", "link")]
        addresses = [
            (link["ifname"], address["local"], address["prefixlen"])
            for link in self.json("ip", "-json", "address")
            for address in link["addr_info"]
        ]
        routes = [
            {key: route.get(key) for key in ("dst", "gateway", "dev")}
            for family in ("-4", "-6")
            for route in self.json("ip", "-json", family, "route")
        ]
        return {
            "links": sorted(links, key=str),
            "addresses": sorted(addresses),
            "routes": sorted(routes, key=str),
            "ruleset": self.run("nft", "--stateless", "list", "ruleset").stdout.splitlines(),
            "files": self.files("/run/cni-py", "/var/lib/cni"),
            "namespaces": self.files("/run/netns"),
            "containers": self.run("ctr", "container", "list", "--quiet").stdout.split(),
            "tasks": self.run("ctr", "task", "list", "--quiet").stdout.split(),
            "cgroups": sorted(str(found) for found in CGROUPS.glob(f"*/{self.cgroup}/*/")),
        }

    def has_settled(self) -> bool | None:
        """Whether no address of a link with a carrier is tentative: a connection would leave from another one.

        Duplicates are looked for anew when a bridge gets its first port, which it is told of a little after the port carries.
        """
        links = [link for link in self.json("ip", "-json", "-6", "address") if "LOWER_UP" in link.get("flags", [])]
        told = all(link["operstate"] in ("UP", "UNKNOWN") for link in links)
        return (told and not any(address.get("tentative") for link in links for address in link["addr_info"])) or None

    def files(self, *folders: str) -> list[str]:
        """Return the files below the folders but locks and what host-local remembers of its directory."""
        kept = ["-name", "lock", "-o", "-name", "last_reserved_ip.*", "-o", "-path", "/run/cni-py/host-local/*/state"]
        kinds = ["-type", "f", "-o", "-type", "l"]
        found = self.run("find", *folders, "(", *kept, ")", "-prune", "-o", "(", *kinds, ")", "-print", check=False)
        return sorted(found.stdout.split())


def hold(environment: dict[str, str]) -> subprocess.Popen[str]:
    """Start the holder. With SIGCHLD ignored, init of the pid namespace leaves no zombie of an orphan."""
    unshare = ["unshare", "--net", "--mount", "--propagation=unchanged", "--pid", "--ipc", "--fork", "--kill-child"]
    own_mounts = [sys.executable, "-I", "-S", "-c", OWN_MOUNTS, str(FIXTURES)]
    init = [*own_mounts, "sh", "-c", f"trap '' CHLD; echo; exec sleep {LIFETIME_S}"]
    holder = subprocess.Popen(
        ["setpriv", "--pdeathsig=KILL", *unshare, *init],
        env=environment,
        stdout=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
    )
    assert holder.stdout
    ready = holder.stdout.readline()
    holder.stdout.close()
    if not ready:
        holder.wait()
        raise NoNamespaces("namespaces need root, or CAP_SYS_ADMIN")
    return holder


def only_child(pid: int) -> int:
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])


def remove_cgroups(name: str) -> None:
    for top in [CGROUPS, *(entry for entry in CGROUPS.iterdir() if entry.is_dir())]:
        for folder, _, _ in os.walk(top / name, topdown=False):
            with contextlib.suppress(OSError):  # not ours to force: a process in it has not ended yet
                Path(folder).rmdir()


def remove_cgroups_of_the_dead() -> None:
    for found in [*CGROUPS.glob(f"{CGROUP_PREFIX}*"), *CGROUPS.glob(f"*/{CGROUP_PREFIX}*")]:
        if is_of_the_dead(found):
            remove_cgroups(found.name)


def own_pids() -> int:
    """The number of this pid namespace: runs in several containers of one machine may see the same cgroups, not pids."""
    return os.stat("/proc/self/ns/pid").st_ino


def is_of_the_dead(cgroup: Path) -> bool:
    """Whether the holder it is named after has ended; one of another pid namespace has when its time is over."""
    pids, _, pid = cgroup.name.removeprefix(CGROUP_PREFIX).partition("-")
    if pids == str(own_pids()):
        return not Path("/proc", pid).exists()
    try:
        return time.time() - cgroup.stat().st_mtime > 2 * LIFETIME_S
    except OSError:
        return False  # another run has removed it


# What follows runs inside the new mount namespace.

MS_BIND, MS_REC = 0x1000, 0x4000  # linux/mount.h
LINKER_CACHE = Path("/etc/ld.so.cache")


def prepare(plugins: Path, libc: list[str], libraries: list[str]) -> None:
    """Give the mount namespace the new network's /sys, the machine's cgroups, a /run, the directories of CNI, and libraries."""
    mount("tmpfs", "/run", "tmpfs")
    kept = Path("/run/cgroup")
    kept.mkdir()
    mount(CGROUPS, kept, flags=MS_BIND | MS_REC)
    mount("sysfs", "/sys", "sysfs")
    mount(kept, CGROUPS, flags=MS_BIND | MS_REC)
    for folder in ("/run/netns", "/run/lock"):
        Path(folder).mkdir()
    for folder in ("/var/lib/cni", "/etc/cni/net.d", "/opt/cni/bin", "/usr/lib/cni"):
        make_private(Path(folder))
    mount(plugins, "/opt/cni/bin", flags=MS_BIND)
    if LINKER_CACHE.exists():
        provide_libraries(libraries)
    for folder in libc:
        replace_libc(Path(folder))


def replace_libc(folder: Path) -> None:
    """Put a newer C library in the place of the machine's: its dynamic loader, and all that must be of the loader's version.

    A loader elsewhere would do for one program; runc starts itself again as /proc/self/exe, which would be the loader. This
    process has loaded its own, and starts no other one in between.
    """
    for part in folder.iterdir():
        own = Path("/usr/lib", folder.name, part.name)
        if own.exists():
            mount(part.resolve(), own, flags=MS_BIND)


def provide_libraries(folders: list[str]) -> None:
    """Have the linker find what is in the folders: dockerd starts helpers of its own without LD_LIBRARY_PATH."""
    settings, cache = Path("/run/ld.so.conf"), Path("/run/ld.so.cache")
    settings.write_text("\n".join(["include /etc/ld.so.conf", *folders]) + "\n")  # the machine's own go first
    subprocess.run(["ldconfig", "-X", "-f", settings, "-C", cache], check=True, timeout=COMMAND_S)
    mount(cache, LINKER_CACHE, flags=MS_BIND)


def make_private(folder: Path) -> None:
    """Mount an empty tmpfs on the folder, which need not exist: then its nearest parent is rebuilt from binds."""
    parent = next(path for path in (folder, *folder.parents) if path.is_dir())
    if parent != folder:
        rebuild(parent)
        folder.mkdir(parents=True)
    mount("tmpfs", folder, "tmpfs")


def rebuild(folder: Path) -> None:
    """Replace a folder by a tmpfs that has the same entries. (An overlay showed empty listings under /var/lib.)"""
    kept = Path("/run/rebuilt", str(folder).replace("/", "_"))
    kept.mkdir(parents=True)
    mount(folder, kept, flags=MS_BIND | MS_REC)
    mount("tmpfs", folder, "tmpfs")
    for entry in kept.iterdir():
        place = folder / entry.name
        if entry.is_symlink():
            place.symlink_to(entry.readlink())
        elif entry.is_dir():
            place.mkdir()
            mount(entry, place, flags=MS_BIND | MS_REC)
        else:
            place.touch()
            mount(entry, place, flags=MS_BIND)


def mount(source: str | Path, target: str | Path, kind: str = "", flags: int = 0) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    names = (os.fsencode(source), os.fsencode(target), kind.encode())
    if libc.mount(*names, ctypes.c_ulong(flags), None):
        error = ctypes.get_errno()
        raise OSError(error, f"mount {source} on {target}: {os.strerror(error)}")


if __name__ == "__main__":
    libc, libraries = ([folder for folder in joined.split(":") if folder] for joined in sys.argv[2:])
    prepare(Path(sys.argv[1]), libc, libraries)

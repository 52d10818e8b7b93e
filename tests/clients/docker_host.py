"""Docker Engine on the throwaway host of containerd_host.py, with portfwd-docker-proxy as its userland proxy.

dockerd uses the host's containerd, and keeps what it has in the host's own /run. The containers' default network has
both families; `v4only` has IPv4 alone, so that its ports are reached by IPv6 through the proxy only.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.clients import image
from tests.clients.containerd_host import COMMAND_S, ContainerdHost, Failed, Namespaces, wait_for

ROOT = Path(__file__).resolve().parents[2]
NAME = "portfwd-docker-proxy"
GATEWAY4, SUBNET6, GATEWAY6 = "172.31.77.1", "2001:db8:d0c::/64", "2001:db8:d0c::1"
V4ONLY, V4ONLY_SUBNET, V4ONLY_GATEWAY = "v4only", "172.31.78.0/24", "172.31.78.1"
CONTROL = "/run/cni-py/portfwd.sock"
LOG, SERVICE_LOG = "/run/dockerd.log", "/run/portfwd.log"
SERVE = f"exec {Path(sys.executable).with_name('portfwd')} serve"

# Makes /var/lib/cni-py the host's own, where the service keeps its mappings. containerd_host.py may have rebuilt /var/lib.
PRIVATE_STATE = """
import sys; sys.path.insert(0, sys.argv[1])
from pathlib import Path
from containerd_host import make_private
folder = Path("/var/lib/cni-py")
if not folder.exists() and Path("/run/rebuilt/_var_lib").exists():
    folder.mkdir()
else:
    make_private(folder)
"""

# Prints what answers a datagram, or ends with the error's name.
ASK_UDP = """
import socket, sys
address, port = sys.argv[1], int(sys.argv[2])
with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as client:
    client.settimeout(5)
    try:
        client.connect((address, port))
        client.send(b"who?")
        print(client.recv(4096).decode().strip(), end="")
    except OSError as error:
        sys.exit(type(error).__name__)
"""

# Prints protocol, address and port of each mapping.
LIST = """
import json, socket, sys
with socket.socket(socket.AF_UNIX) as control:
    control.connect(sys.argv[1])
    control.sendall(b'{"verb":"list"}\\n')
    answer = json.loads(control.makefile().readline())
for mapping in answer["mappings"]:
    print(mapping["protocol"], *mapping["host_ips"], mapping["first"])
"""


def proxy_executable(folder: Path) -> Path:
    """portfwd-docker-proxy as installed beside the interpreter; a launcher for the checkout where it is not."""
    installed = Path(sys.executable).with_name(NAME)
    if installed.exists():
        return installed
    launcher = folder / NAME
    lines = (f"#!{sys.executable} -IS", "import sys", f"sys.path.append({str(ROOT)!r})")
    launcher.write_text("\n".join([*lines, "from portfwd.docker.proxy import main", "sys.exit(main())", ""]))
    launcher.chmod(0o755)
    return launcher


class DockerHost:
    """dockerd on an entered ContainerdHost. Its processes end with that host."""

    def __init__(self, host: ContainerdHost, proxy: Path) -> None:
        self.host = host
        self.proxy = proxy
        self.service = Service(host)
        host.environment |= {"DOCKER_HOST": "unix:///run/docker.sock", "DOCKER_CONFIG": "/run/docker-config"}

    def start(self, archive: Path) -> None:
        """Start dockerd, and give it the image and the network without IPv6."""
        self.host.run(sys.executable, "-I", "-c", PRIVATE_STATE, str(Path(__file__).parent))
        places = ["--data-root=/run/docker-root", "--exec-root=/run/docker", "--pidfile=/run/docker.pid"]
        outside = ["--containerd=/run/containerd/containerd.sock", f"--cgroup-parent=/{self.host.cgroup}"]
        network = [f"--bip={GATEWAY4}/24", "--ipv6", f"--fixed-cidr-v6={SUBNET6}", "--ip6tables", "--experimental"]
        lean = ["--storage-driver=vfs", f"--userland-proxy-path={self.proxy}"]  # overlayfs is not to be had everywhere
        if "--oom-score-adjust" in self.host.run("dockerd", "--help").stdout:
            # A lower score, which Docker gave itself until 25.0, needs CAP_SYS_RESOURCE
            lean.append("--oom-score-adjust=0")
        command = ["dockerd", "--host=unix:///run/docker.sock", *places, *outside, *network, *lean]
        dockerd = self.host.popen("sh", "-c", f'exec "$@" >{LOG} 2>&1 </dev/null', "sh", *command)
        self.host.started.append(dockerd)

        def answers() -> bool | None:
            if dockerd.poll() is not None:
                raise Failed(f"dockerd did not start\n{self.host.run('cat', LOG).stdout}")
            return self.host.run("docker", "version", check=False).returncode == 0 or None

        wait_for("dockerd", answers, within_s=30)
        self.host.run("docker", "load", f"--input={archive}")
        self.host.run("docker", "network", "create", f"--subnet={V4ONLY_SUBNET}", V4ONLY)

    @contextlib.contextmanager
    def running(self, name: str, *options: str) -> Iterator[Container]:
        """A container whose web server runs on port 80; removed at the end."""
        self.host.run("docker", "run", "--detach", f"--name={name}", *options, image.NAME, name, "80")
        try:
            wait_for("the addresses of the bridge", self.host.has_settled)
            yield Container(self.host, name)
        finally:
            self.remove(name)

    def remove(self, name: str) -> None:
        """With its ports. A second call is harmless."""
        self.host.run("docker", "rm", "--force", name, check=False)

    def proxies(self) -> list[int]:
        """The processes that dockerd started for published ports."""
        found = self.host.run("pgrep", "--full", "--", "-container-port", check=False)
        return [int(pid) for pid in found.stdout.split()]

    @property
    def binds_itself(self) -> bool:
        """Whether dockerd, and not the proxy, binds the ports: moby's portmapper does since 28.0."""
        version = self.host.run("docker", "version", "--format={{.Server.Version}}").stdout
        return int(version.partition(".")[0]) >= 28

    def arguments(self, pid: int) -> list[str]:
        return self.host.run("cat", f"/proc/{pid}/cmdline").stdout.split("\0")

    def private_kb(self, pid: int) -> int:
        """Memory that a process shares with no other."""
        lines = self.host.run("cat", f"/proc/{pid}/smaps_rollup").stdout.splitlines()
        return sum(int(line.split()[1]) for line in lines if line.startswith("Private"))


class Service:
    """The portfwd service of the checkout, on the host."""

    def __init__(self, host: ContainerdHost) -> None:
        self.host = host
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Until it answers."""
        command = f"echo $$; {SERVE} 2>>{SERVICE_LOG}"
        process = self.host.popen("sh", "-c", command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        assert process.stdout
        self.pid = process.stdout.readline().strip()  # of the service: what was started is nsenter
        self.process = process

        def listens() -> bool | None:
            if process.poll() is not None:
                raise Failed(f"portfwd serve ended\n{self.host.run('tail', SERVICE_LOG).stdout}")
            return self.mappings() is not None or None

        try:
            wait_for("the portfwd service", listens)
        except Failed:
            self.stop()
            raise

    def stop(self, signal: str = "TERM") -> None:
        """A second call is harmless."""
        if self.process is not None:
            self.host.run("kill", f"-{signal}", self.pid, check=False)
            self.process.communicate(timeout=COMMAND_S)
            self.process = None

    def mappings(self) -> list[str] | None:
        """What it publishes, in words; None when it does not answer."""
        done = self.host.run(sys.executable, "-I", "-S", "-c", LIST, CONTROL, check=False)
        return None if done.returncode else done.stdout.splitlines()


class Container:
    """A running container: the network it is in, and its addresses there."""

    def __init__(self, host: ContainerdHost, name: str) -> None:
        self.name = name
        look = "{{.State.Pid}} {{range .NetworkSettings.Networks}}{{.IPAddress}} {{.GlobalIPv6Address}}{{end}}"
        pid, *addresses = host.run("docker", "inspect", f"--format={look}", name).stdout.split()
        self.network = host.inside(pid)
        self.ip4, self.ip6 = [*addresses, ""][:2]

    @contextlib.contextmanager
    def serving_udp(self, port: int) -> Iterator[None]:
        """Datagrams to a port are answered with the container's name, the source they came from, and its own address."""
        probe = ROOT / "netns-fixtures/probe.py"
        command = [sys.executable, "-I", "-S", str(probe), "serve", self.name, "udp", str(port)]
        server = self.network.popen(*command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        try:
            assert server.stdout
            assert server.stdout.readline() == "ready\n"
            yield
        finally:
            server.communicate(timeout=COMMAND_S)


def ask(place: Namespaces, address: str, port: int) -> str:
    """Who a web page says it was asked by: "NAME PEER", or "! ERROR"."""
    page = place.fetch(address, port)
    if page.startswith("!"):
        return page
    answer = image.Answer.parse(page)
    return f"{answer.name} {answer.peer}"


def ask_udp(place: Namespaces, address: str, port: int) -> str:
    """The same for a datagram."""
    done = place.run(sys.executable, "-I", "-S", "-c", ASK_UDP, address, str(port), check=False)
    return " ".join(done.stdout.split()[:2]) or f"! {done.stderr.strip()}"

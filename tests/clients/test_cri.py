"""What the kubelet does, with real containerd: pods by the Container Runtime Interface.

RunPodSandbox with published ports and limits, StopPodSandbox, RemovePodSandbox; also with containerd killed in between.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from runtime import Plugins

from cni_py.commands.convert import to_chain
from cni_py.protocol.gojson import Object, decode
from tests.clients import image
from tests.clients.containerd_host import (
    CLIENT4,
    COMMAND_S,
    HOST4,
    HOST6,
    ContainerdHost,
    Failed,
    NoNamespaces,
    wait_for,
)
from tests.clients.cri_client import Pod, Port, Refused, Runtime
from tests.conftest import CHAINED
from tests.lacking import missing

pytestmark = [pytest.mark.ours_alone, pytest.mark.xdist_group("cri")]

SUBNETS = ("10.88.0.0/24", "2001:db8:88::/64")
SOCKET = "/run/containerd/containerd.sock"
LIMITED = {"kubernetes.io/ingress-bandwidth": "8M", "kubernetes.io/egress-bandwidth": "16M"}
LEFT = ("links", "ruleset", "files", "namespaces")  # of a snapshot
CONFIG = f"""\
version = 2
root = "/run/containerd-root"
state = "/run/containerd"
[plugins."io.containerd.internal.v1.opt"]
path = "/run/containerd-opt"  # the default is a folder made in /opt
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{image.NAME}"
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/opt/cni/bin"  # Debian's builds look in /usr/lib/cni by default, or are told so in /etc/containerd
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "native"
"""

# TCP and UDP on port 80: "NAME PEER", in words that a client can read to the end
SERVER = """
import socket, sys, threading
name = sys.argv[1]
def answer(peer): return f"{name} {peer.removeprefix('::ffff:')}".encode()
udp = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
udp.bind(("::", 80))
def serve_udp():
    while True:
        _, peer = udp.recvfrom(100)
        udp.sendto(answer(peer[0]), peer)
threading.Thread(target=serve_udp, daemon=True).start()
tcp = socket.create_server(("::", 80), family=socket.AF_INET6, dualstack_ipv6=True)
print("ready", flush=True)
while True:
    stream, peer = tcp.accept()
    with stream:
        stream.recv(100)
        stream.sendall(b"\\r\\n\\r\\n" + answer(peer[0]))
"""
ASK_BY_UDP = """
import socket, sys
with socket.socket(socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET, socket.SOCK_DGRAM) as client:
    client.settimeout(3)
    client.connect((sys.argv[1], int(sys.argv[2])))
    client.send(b"?")
    print(client.recv(100).decode(), end="")
"""


class KubernetesNode(ContainerdHost):
    """The throwaway host, whose containerd answers the kubelet."""

    runtime: Runtime

    def start_containerd(self) -> None:
        self.run("tee", "/run/containerd.toml", given=CONFIG)
        self.runtime = Runtime(f"/proc/{self.pid}/root{SOCKET}")
        self.start_again()

    def start_again(self) -> None:
        start = "exec containerd --config /run/containerd.toml >>/run/containerd.log 2>&1 </dev/null"
        self.containerd = self.popen("sh", "-c", start)
        self.started.append(self.containerd)
        wait_for("containerd's CRI", self.answers)

    def answers(self) -> bool | None:
        if self.containerd.poll() is not None:
            raise Failed(f"containerd did not start\n{self.run('cat', '/run/containerd.log').stdout}")
        try:
            self.runtime.sandboxes()
        except (OSError, Refused):
            return None
        return True

    def kill_containerd(self) -> None:
        """As by the kernel when memory is short; nsenter, which we started, has become containerd itself."""
        inner = self.run("pidof", "-s", "containerd").stdout.strip()
        self.run("kill", "-KILL", inner)
        self.containerd.wait(COMMAND_S)

    def start(self, name: str, *ports: Port, **annotations: str) -> str:
        """The ID of a pod, whose server answers."""
        pod = Pod(name, ports, annotations, f"/{self.cgroup}")
        sandbox = self.runtime.run(pod)
        self.serve(name, sandbox)
        return sandbox

    def serve(self, name: str, sandbox: str) -> None:
        network = self.inside(str(json.loads(self.runtime.info(sandbox))["pid"]))
        server = network.popen(sys.executable, "-I", "-S", "-c", SERVER, name, stdout=-1)
        self.started.append(server)
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n"
        server.stdout.close()

    def end(self, sandbox: str) -> None:
        self.runtime.stop(sandbox)
        self.runtime.remove(sandbox)

    def ask(self, asker: Any, address: str, port: int, protocol: str = "tcp") -> list[str]:
        """The name that answers, and the source address it saw."""
        if protocol == "tcp":
            return str(asker.fetch(address, port)).split()
        done = asker.run(sys.executable, "-I", "-S", "-c", ASK_BY_UDP, address, str(port), check=False)
        return str(done.stdout or done.stderr).split()

    @property
    def major(self) -> int:
        """containerd's version."""
        return int(self.run("containerd", "--version").stdout.split()[2].removeprefix("v").partition(".")[0])

    def qdiscs(self) -> list[dict[str, Any]]:
        return [qdisc for qdisc in self.json("tc", "-json", "qdisc") if qdisc["kind"] == "tbf"]


def conflist() -> dict[str, Any]:
    """What a distribution's node has, with everything in the chain."""
    ipam = {
        "type": "host-local",
        "ranges": [[{"subnet": subnet}] for subnet in SUBNETS],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
    }
    return {
        "cniVersion": "1.0.0",
        "cniVersions": ["1.0.0", "1.1.0"],  # as conf/cni-py.conflist: a runtime that knows one of them takes that
        "name": "k8s",
        "plugins": [
            {"type": "bridge", "bridge": "cni0", "isGateway": True, "ipMasq": True, "hairpinMode": True, "ipam": ipam},
            {
                "type": "portmap",
                "capabilities": {"portMappings": True, "io.kubernetes.cri.pod-annotations": True},
                "podHostPorts": ["9100-9199", "9053/udp"],
            },
            {"type": "bandwidth", "capabilities": {"bandwidth": True}},
            {"type": "firewall", "ingressPolicy": "same-bridge"},
            {"type": "tuning", "sysctl": {"net.ipv4.conf.IFNAME.arp_filter": "1"}},
        ],
    }


@pytest.fixture(scope="module")
def node(debs: Path, archive: Path, plugins: Plugins) -> Iterator[KubernetesNode]:
    try:
        entered = KubernetesNode(debs, plugins.directory).__enter__()
    except NoNamespaces as error:
        missing(str(error))
    try:
        entered.import_image(archive, "k8s.io")
        listed = decode(json.dumps(conflist()).encode())
        assert isinstance(listed, Object)
        entered.write_conflist(to_chain(listed) if CHAINED else conflist())
        wait_for("the network's configuration", lambda: first_pod(entered))
        yield entered
    finally:
        entered.close()


def first_pod(node: KubernetesNode) -> bool | None:
    """It makes what stays: the bridge, the tables. containerd sees a new configuration after a moment."""
    try:
        node.end(node.runtime.run(Pod("first", (Port(8080, 80),), LIMITED, f"/{node.cgroup}")))
    except Refused as refused:
        if "cni" in str(refused):
            return None
        raise
    return True


@pytest.fixture
def unchanged(node: KubernetesNode) -> Iterator[None]:
    """Nothing of the test's pods is left."""
    before = node.snapshot()
    yield
    after = node.snapshot()
    assert {part: after[part] for part in LEFT} == {part: before[part] for part in LEFT}
    assert node.runtime.sandboxes() == []


@pytest.mark.today
@pytest.mark.usefixtures("unchanged")
def test_pod_with_published_ports_and_limits(node: KubernetesNode) -> None:
    ports = (Port(8080, 80), Port(8053, 80, "udp"), Port(8081, 80, "tcp", HOST4), Port(8082, 80, "tcp", "127.0.0.1"))
    sandbox = node.start("web", *ports, **LIMITED)
    other = node.start("other")
    four, six = node.runtime.addresses(sandbox)
    assert four.startswith("10.88.0.")
    assert six.startswith("2001:db8:88::")
    inside, beside = (node.inside(str(json.loads(node.runtime.info(each))["pid"])) for each in (sandbox, other))
    (link,) = beside.json("ip", "-json", "address", "show", "dev", "eth0")
    assert {entry["local"] for entry in link["addr_info"]} >= set(node.runtime.addresses(other))
    for address in (HOST4, HOST6):
        for asker in (node.client, node, beside, inside):
            assert node.ask(asker, address, 8080)[0] == "web"
            assert node.ask(asker, address, 8053, "udp")[0] == "web"
    assert node.ask(node.client, HOST4, 8080) == ["web", CLIENT4]
    assert node.ask(node, "127.0.0.1", 8080)[0] == "web"
    assert node.ask(node, "127.0.0.1", 8053, "udp")[0] == "web"
    assert node.ask(node.client, HOST4, 8081)[0] == "web"
    assert node.ask(node, "127.0.0.1", 8082)[0] == "web"
    assert node.ask(node.client, HOST4, 8082)[0] == "!"
    assert node.ask(beside, four, 80)[0] == "web"
    limits = sorted(qdisc["options"]["rate"] for qdisc in node.qdiscs())  # bytes/s
    assert limits == [1_000_000, 2_000_000]
    assert [link["ifname"] for link in node.json("ip", "-json", "link") if link["ifname"].startswith("bwp")]
    node.end(other)
    node.end(sandbox)
    assert node.ask(node.client, HOST4, 8080)[0] == "!"


@pytest.mark.today
@pytest.mark.usefixtures("unchanged")
def test_pod_says_by_annotations_which_ports_it_has_and_for_whom(node: KubernetesNode) -> None:
    said = {
        "cni-py/host-ports": "9100-9179, 9053:80/udp, 9190:80",
        "cni-py/ports": '{"9190/tcp": {"allow": ["192.0.2.9"]}}',
    }
    sandbox = node.start("web", **said)
    for address in (HOST4, HOST6):
        assert node.ask(node.client, address, 9053, "udp")[0] == "web"
    assert node.ask(node.client, HOST4, 9190) == ["web", CLIENT4]
    assert node.ask(node, HOST4, 9190)[0] == "!"  # not one of the clients
    assert "9100-9179" in node.run("nft", "list", "map", "inet", "cni_py", "range4_tcp").stdout
    # It needs the chains of the subnets
    other = node.runtime.run(Pod("other", (Port(8080, 80),), cgroup=f"/{node.cgroup}"))
    node.end(sandbox)
    collect(node)  # the chain of the clients, which no container has any more
    node.end(other)
    with pytest.raises(Refused, match=r"may not publish '9099-9100'"):
        node.runtime.run(Pod("greedy", (), {"cni-py/host-ports": "9099-9100"}, f"/{node.cgroup}"))
    for left in node.runtime.sandboxes():
        node.end(left)


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("between", ["stop", "remove"])
def test_containerd_killed_in_between(node: KubernetesNode, between: str) -> None:
    sandbox = node.start("web", Port(8080, 80), **LIMITED)
    if between == "remove":
        node.runtime.stop(sandbox)
    node.kill_containerd()
    if between == "stop":
        assert node.ask(node.client, HOST4, 8080)[0] == "web"  # the network does not need it
    node.start_again()
    assert node.runtime.sandboxes() == [sandbox]
    node.end(sandbox)


@pytest.mark.usefixtures("unchanged")
def test_pod_whose_process_was_killed(node: KubernetesNode) -> None:
    sandbox = node.start("web", Port(8080, 80), **LIMITED)
    node.run("kill", "-KILL", str(json.loads(node.runtime.info(sandbox))["pid"]))
    node.end(sandbox)


@pytest.mark.usefixtures("unchanged")
def test_stop_and_remove_can_be_repeated(node: KubernetesNode) -> None:
    sandbox = node.start("web", Port(8080, 80))
    node.runtime.stop(sandbox)
    node.runtime.stop(sandbox)
    node.end(sandbox)


@pytest.mark.usefixtures("unchanged")
def test_many_pods_at_once(node: KubernetesNode) -> None:
    pods = [Pod(f"pod{n}", (Port(9000 + n, 80),), cgroup=f"/{node.cgroup}") for n in range(6)]
    with ThreadPoolExecutor(len(pods)) as crowd:
        sandboxes = list(crowd.map(node.runtime.run, pods))
        addresses = [address for each in crowd.map(node.runtime.addresses, sandboxes) for address in each]
        assert len(set(addresses)) == 2 * len(pods)
        node.serve("pod3", sandboxes[3])
        assert node.ask(node.client, HOST6, 9003)[0] == "pod3"
        list(crowd.map(node.end, sandboxes))


@pytest.mark.usefixtures("unchanged")
def test_a_port_that_another_pod_has_is_refused_by_name(node: KubernetesNode) -> None:
    """And the pod that failed leaves nothing."""
    sandbox = node.start("web", Port(8080, 80))
    with pytest.raises(Refused, match="8080/tcp is in use by k8s/"):
        node.runtime.run(Pod("late", (Port(8080, 80),), cgroup=f"/{node.cgroup}"))
    assert node.ask(node.client, HOST4, 8080)[0] == "web"
    node.end(sandbox)
    for left in node.runtime.sandboxes():  # containerd keeps a failed one for the kubelet to remove
        node.end(left)


def collect(node: KubernetesNode) -> dict[str, list[dict[str, str]]]:
    """`cni-py gc`."""
    found: dict[str, list[dict[str, str]]] = node.json(str(Path(sys.executable).with_name("cni-py")), "gc", "--json")
    return found


@pytest.mark.usefixtures("unchanged")
def test_gc_removes_what_a_pod_left_that_containerd_does_not_know(node: KubernetesNode) -> None:
    """Its namespace is still mounted; that containerd does not know it, and that no process is in it, proves it dead."""
    sandbox = node.start("web", Port(8080, 80))
    lost = node.runtime.run(Pod("lost", (Port(8081, 80),), LIMITED, f"/{node.cgroup}"))
    assert collect(node) == {"removed": [], "left": [], "failed": []}
    ctr = ("ctr", "--namespace", "k8s.io")
    node.run(*ctr, "task", "kill", "--signal", "KILL", lost)
    node.kill_containerd()
    assert collect(node)["removed"] == []  # nobody can be asked
    node.start_again()
    assert collect(node)["removed"] == []  # a pod whose process was killed is the kubelet's to end
    wait_for("the end of the task", lambda: lost not in node.run(*ctr, "task", "ls").stdout or None)
    node.run(*ctr, "container", "rm", lost)
    for more in (("sandbox", "rm", "--force"), ("leases", "rm")):  # of containerd 2, which both keep the ID as well
        node.run(*ctr, *more, lost, check=False)
    # What a Go bridge leaves that is killed between IPAM and the interface
    crashed = "0123456789abcdef" * 4
    node.run("sh", "-c", f"printf '{crashed}\\r\\neth0' > /var/lib/cni/networks/k8s/10.88.0.99")
    said = collect(node)
    whose = {
        line["owner"].split("/")[1] for line in said["removed"] if line["owner"]
    }  # eth0, and containerd's loopback
    assert whose == {lost, crashed}
    assert {line["why"].partition(" in /")[0] for line in said["removed"] if line["owner"]} == {
        "containerd has no such container, and no process is",
        "containerd has no such container, and no namespace has its interface",
    }
    assert node.ask(node.client, HOST4, 8080)[0] == "web"
    assert node.ask(node.client, HOST4, 8081)[0] == "!"
    for each in (sandbox, lost):
        node.end(each)


SPY = """#!{python}
import json, os, sys
sys.path.insert(0, {home!r})
from cni_py.host.containers import containers
conf = json.load(sys.stdin)
with open("/run/spied", "a") as file:
    file.write(os.environ["CNI_COMMAND"] + "\\n")
if os.environ["CNI_COMMAND"] == "ADD":
    with open("/run/knows", "w") as file:
        file.write(str(os.environ["CNI_CONTAINERID"] in containers().known))
    json.dump(conf["prevResult"], sys.stdout)
"""


@pytest.fixture
def spy(node: KubernetesNode) -> Iterator[None]:
    """Another plugin at the end of the chain, which writes down the verbs in /run/spied."""
    spy = SPY.format(python=sys.executable, home=str(Path(__file__).parents[2]))
    node.run("sh", "-c", "cat > /opt/cni/bin/spy; chmod 755 /opt/cni/bin/spy", given=spy)
    listed = conflist()
    node.write_conflist({**listed, "plugins": [*listed["plugins"], {"type": "spy"}]})
    wait_for("the spy", lambda: spied(node))
    yield
    node.write_conflist(listed)


@pytest.mark.usefixtures("spy")
def test_containerd_knows_the_id_of_a_pod_before_it_connects_it(node: KubernetesNode) -> None:
    """Else a gc between the ADD and the making of the container would take a new pod for a dead one."""
    assert node.run("cat", "/run/knows").stdout == "True"


@pytest.mark.today
@pytest.mark.usefixtures("spy")
def test_verbs_that_a_pod_and_the_kubelets_questions_lead_to(node: KubernetesNode) -> None:
    """containerd 2 asks STATUS whenever the kubelet asks how the node is, and repeats the answer; none knows CHECK and GC."""
    node.run("rm", "/run/spied")
    sandbox = node.runtime.run(Pod("spied", cgroup=f"/{node.cgroup}"))
    assert node.runtime.conditions()["NetworkReady"] == ""
    node.end(sandbox)
    asked = ["STATUS"] if node.major >= 2 else []
    assert node.run("cat", "/run/spied").stdout.split() == ["ADD", *asked, "DEL", "DEL"]
    broken = conflist()
    broken["plugins"][0]["bridge"] = "lan0"
    node.write_conflist(broken)
    if asked:
        said = '"lan0" already exists but is not a bridge'
        wait_for("the network's condition", lambda: said in node.runtime.conditions()["NetworkReady"] or None)


def spied(node: KubernetesNode) -> bool | None:
    node.end(node.runtime.run(Pod("spied", cgroup=f"/{node.cgroup}")))
    return node.run("test", "-e", "/run/spied", check=False).returncode == 0 or None

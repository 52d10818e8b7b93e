"""portmap's `randomHostPort: sticky`: a mapping with hostPort 0 gets a random port of the host, the same one each time.

The number is remembered (sticky_ports) by the pod's or container's name, the first of these that the runtime tells:

    the pod's annotation cni-py/sticky       with the pod's namespace (capability io.kubernetes.cri.pod-annotations)
    K8S_POD_NAMESPACE and K8S_POD_NAME       in CNI_ARGS: Kubernetes, and podman with the container's name
    the containerID                          nerdctl keeps it when a container is restarted

One that is free now, for all addresses, is taken: what a container that is alive publishes, with either backend, and ports that a
program of the host listens on are not free, but for what is there for this container (its other networks). The result of the ADD
tells all mappings below `cni-py/portMappings`, in the form of runtimeConfig.portMappings; the record keeps them for CHECK.
"""

from cni_py.attachment import holders, records
from cni_py.attachment.engine import Op
from cni_py.errors import CniError, InvalidNetworkConfig, PortInUse, warn
from cni_py.kernel import sock_diag
from cni_py.lean import os
from cni_py.ports import claims, host_listeners, local_ports, sticky_ports
from cni_py.ports.config import POD_ANNOTATIONS, PORT_MAX, Entry, PortmapConf
from cni_py.ports.mapping import PROTOCOLS, Mapping
from cni_py.protocol.gojson import Object
from cni_py.protocol.netconf import child
from cni_py.sha import sha256

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from cni_py.attachment.call import Call
    from cni_py.attachment.context import Kernel

ANNOTATION = "cni-py/sticky"
TRIES = 16  # random numbers that are looked at
TEXT_MAX = 512  # characters of a name
NAME_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")


class RememberPorts(Op):
    """The numbers are remembered. `sticky` is the file's name, "" when they are not; `whose` says for people what it is for."""

    sticky: str  # not "name": engine.NAMES are names of interfaces
    whose: str
    ports: str  # "80/tcp=40123 53/udp=40124"
    owned = True
    line = "disk: host ports of {whose}, kept for when it comes again: {ports}"

    def validate(self) -> None:
        parse(self.ports)  # ValueError

    def apply(self, _kernel: "Kernel") -> bool:
        try:
            if self.sticky:
                memory().remember(self.sticky, parse(self.ports))
        except OSError as error:
            warn(f"the host ports of {self.whose} cannot be remembered in {folder()}: {error.strerror}")
        return True


def parse(text: str) -> dict[str, int]:
    """The numbers by key, as RememberPorts has them. ValueError."""
    found = {}
    for part in text.split():
        key, _, number = part.partition("=")
        if not 1 <= int(number) <= PORT_MAX:
            raise ValueError(f"not a port: {part}")
        found[key] = int(number)
    return found


def folder() -> str:
    """Where the numbers are remembered, for root or for this user."""
    home = "/var/lib"
    if os.geteuid() != 0:
        home = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return f"{home}/cni-py/portmap/sticky"


def memory() -> sticky_ports.Memory:
    """What is remembered."""
    return sticky_ports.Memory(folder(), warn)


def choose(call: "Call", conf: PortmapConf) -> list[Op]:
    """ADD: give each mapping with hostPort 0 its number; returns the operation that remembers them. PortInUse."""
    name, whose = _name(call)
    known = memory().recall(name)
    search = Search(call, conf)
    for entry in conf.entries:
        if not entry.host_port:
            key = key_of(entry)
            entry.host_port = search.chosen.get(key) or search.find(entry, known.get(key, 0))
            search.chosen[key] = entry.host_port
    ports = " ".join(f"{key}={number}" for key, number in search.chosen.items())
    displaced = any(search.chosen[key] != number for key, number in known.items() if key in search.chosen)
    second = displaced and _is_second(call, name)
    return [RememberPorts(sticky="" if second else name, whose=whose, ports=ports)]


def _is_second(call: "Call", name: str) -> bool:
    """Whether another container has the numbers of the name now: this one, beside it, does not displace them."""
    others = (one for one in records.all_records(call.plugin) if one.key.container_id != call.container_id)
    ops = (fields for one in others if not holders.is_dead(one) for fields in one.ops if isinstance(fields, dict))
    return any(fields.get("op") == RememberPorts.__name__ and fields.get("sticky") == name for fields in ops)


def recorded(call: "Call", conf: PortmapConf) -> None:
    """CHECK: the same from the record. CniError when it does not tell."""
    record = records.load(call.key, call.plugin)
    found = {}
    for fields in record.ops if record is not None else ():
        if isinstance(fields, dict) and fields.get("op") == RememberPorts.__name__:
            try:
                found = parse(str(fields.get("ports")))
            except ValueError:
                continue  # a damaged record
    for entry in conf.entries:
        if not entry.host_port:
            entry.host_port = found.get(key_of(entry), 0)
            if not entry.host_port:
                raise CniError(f"no record tells which host port container port {key_of(entry)} has")


def told(conf: PortmapConf) -> list[Object]:
    """For the result: all mappings, as runtimeConfig.portMappings has them."""
    found = []
    for entry in [one for several in conf.entries for one in several.apart()]:
        one = Object([("hostPort", entry.host_port), ("containerPort", entry.container_port)])
        one["protocol"] = entry.protocol.lower()
        if entry.host_ip:
            one["hostIP"] = entry.host_ip
        found.append(one)
    return found


def key_of(entry: Entry) -> str:
    """Which of a name's ports it is: on several addresses it has one number."""
    return f"{entry.container_port}/{entry.protocol.lower()}"


def _name(call: "Call") -> tuple[str, str]:
    """By what the numbers are remembered: the name of a file, which whatever it is made from may be, and words for people."""
    args = dict(_pairs(call.args))
    namespace, pod = args.get("K8S_POD_NAMESPACE", ""), args.get("K8S_POD_NAME", "")
    runtime = child(call.conf.raw, "runtimeConfig")
    annotations = child(runtime, POD_ANNOTATIONS) if runtime is not None else None
    said = annotations.get(ANNOTATION) if annotations is not None else None
    if said is not None:
        if not isinstance(said, str) or not _is_plain(said):
            raise InvalidNetworkConfig(
                f"annotation {ANNOTATION} is no name", f"1 to {TEXT_MAX} letters, digits, dots, dashes and underscores"
            )
        parts, whose = ("sticky", namespace, said), said
    elif _is_plain(pod):
        parts, whose = ("pod", namespace, pod), f"{namespace}/{pod}" if _is_plain(namespace) else pod
    else:
        parts, whose = ("container", "", call.container_id), f"container {call.container_id}"
    digest: str = sha256("\0".join(parts).encode("utf-8", "surrogateescape")).hexdigest()
    return digest[:32], whose


def _pairs(text: str) -> "Iterator[tuple[str, str]]":
    """Of CNI_ARGS; what is not understood here is none of our business."""
    for pair in text.split(";"):
        key, equals, value = pair.partition("=")
        if equals:
            yield key, value


def _is_plain(text: str) -> bool:
    return 0 < len(text) <= TEXT_MAX and NAME_CHARACTERS.issuperset(text)


class Search:
    """Looks for host ports that are free for a container."""

    __slots__ = ("_call", "_own", "chosen", "said")

    def __init__(self, call: "Call", conf: PortmapConf) -> None:
        self._call = call
        self.chosen: dict[str, int] = {}  # by key
        self.said = [
            (entry.protocol.lower(), range(entry.host_port, entry.host_port + entry.count)) for entry in conf.entries
        ]
        addresses = [ip.address.packed for ip in conf.prev_result.ips] if conf.prev_result is not None else []
        self._own = host_listeners.Container(call.container_id, call.netns, addresses)

    def find(self, entry: Entry, known: int) -> int:
        """A port that is free, the known one if it is. PortInUse."""
        protocol = entry.protocol.lower()
        if protocol not in PROTOCOLS:
            return known or local_ports.EPHEMERAL[0]  # refused further on, with the right words
        refusal: PortInUse | None = None
        candidates: list[int] = [*([known] if known else ()), *random_ports()]
        for port in candidates:
            said = any(protocol == other and port in ports for other, ports in self.said)
            if said or port in self._numbers(protocol):
                continue
            try:
                self._refuse_taken(protocol, port)
            except PortInUse as error:
                refusal = error
                continue
            if refusal is not None and known:
                warn(f"container port {key_of(entry)} gets host port {port} instead of {known}: {refusal}")
            return port
        raise PortInUse(f"no random host port is free for container port {key_of(entry)}", str(refusal or ""))

    def _numbers(self, protocol: str) -> set[int]:
        return {number for key, number in self.chosen.items() if key.endswith(f"/{protocol}")}

    def _refuse_taken(self, protocol: str, port: int) -> None:
        """PortInUse when somebody else has the port on any address."""
        wanted = [Mapping(protocol, None, port, bytes(length), port) for length in (4, 16)]
        listeners = sock_diag.waiting([(protocol, port, port)])
        for one in host_listeners.held(host_listeners.in_the_way(wanted, listeners), self._own):
            raise PortInUse(str(one))
        kernel = self._call.kernel
        claims.dead_holders(kernel, wanted)
        from cni_py.iptables import names

        for family in names.concerned(kernel, names.ENTRIES):
            from cni_py.iptables import tool
            from cni_py.ports import by_iptables

            ours = [one for one in wanted if one.family == family]
            by_iptables.take_out_dead(tool.Rules.read(family, "nat"), ours, self._call.key, strangers=True)


def random_ports() -> "Iterator[int]":
    """Numbers that the kernel may choose, too, and that nobody has reserved."""
    ports = local_ports.choosable(local_ports.content)
    for _ in range(TRIES):
        yield ports[int.from_bytes(os.urandom(4), "big") % len(ports)]

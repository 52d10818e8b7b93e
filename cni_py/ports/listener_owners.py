"""Who holds a port of the host that a container is to have, and whether it is held for this container: then it is not in the way.

There for the very container is what is held by

    nerdctl's reserver    a `sleep infinity` that was given the sockets; the file /run/nerdctl/NAMESPACE/ID/port-reserver.pid
                          names the process, and NAMESPACE-ID is the container's ID here
    conmon                with the container's ID in its command line: it keeps podman's sockets while the container lives
    portfwd's service     for an attachment of this container, to whatever network, or by a mapping that leads to one of its
                          addresses; what it holds for attachments whose ports NAT serves is told by portmap's claims
    docker-proxy          or portfwd-docker-proxy, started with -container-ip and an address in the container's namespace. What
                          dockerd itself holds is in the way: it says nowhere for which container
"""

from cni_py.addr import ip_text
from cni_py.attachment import holders
from cni_py.errors import CniError
from cni_py.kernel import processes
from cni_py.lean import os
from cni_py.ports import relay

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from cni_py.kernel.sock_diag import Listener
    from cni_py.ports.host_listeners import Container
    from cni_py.protocol.gojson import Object

NERDCTL = "/run/nerdctl"
PID_MAX = 10  # digits
SHOWN = 12  # digits of an ID
PROXIES = ("docker-proxy", "portfwd-docker-proxy")
BY_NAT = ("PublishPorts", "PublishByIptables")  # operations of portmap that have claims


def foreign(found: "Sequence[Listener]", container: "Container") -> dict[int, str]:
    """Of the sockets those that are not there for the container, by inode, with who has them."""
    left = {one.inode: one for one in found}
    for inode in reserved(container.id) & left.keys():
        del left[inode]
    told = portfwds(left, container) if left else {}
    seen = processes.having(left.keys() - told.keys()) if len(left) > len(told) else {}
    for inode, pids in seen.items():
        told[inode] = "" if is_for(container, pids) else described(left[inode], pids)
    return {inode: holder for inode, holder in told.items() if holder}


def described(listener: "Listener", pids: "Sequence[int]") -> str:
    """The program, in words."""
    if not pids:
        if os.geteuid():
            return f"a process of user {processes.user(listener.uid)}"
        return "a process that is not seen from here, or by the kernel itself (WireGuard, VXLAN, NFS)"
    for pid in pids:
        reserver = reserver_for(pid)
        if reserver:
            return f"nerdctl, for its container {reserver[:SHOWN]} (pid {pid})"
    return processes.described(pids[0])


def reserved(container_id: str) -> set[int]:
    """The sockets of nerdctl's reserver for the container."""
    start = container_id.find("-")
    while start > 0:  # a namespace of containerd may have a "-" in its name
        pid = _pid_in(f"{NERDCTL}/{container_id[:start]}/{container_id[start + 1 :]}/port-reserver.pid")
        if pid:
            return processes.sockets_of(pid)
        start = container_id.find("-", start + 1)
    return set()


def reserver_for(pid: int) -> str:
    """The container's ID, as nerdctl has it, when the process is a reserver; "" otherwise."""
    if processes.words(pid)[:1] != ["sleep"]:
        return ""
    try:
        for namespace in os.listdir(NERDCTL):
            for container_id in os.listdir(f"{NERDCTL}/{namespace}"):
                if _pid_in(f"{NERDCTL}/{namespace}/{container_id}/port-reserver.pid") == pid:
                    return container_id
    except OSError:
        pass
    return ""


def _pid_in(path: str) -> int:
    try:
        text = processes.read(path).strip()
    except ValueError:  # a name with a null byte
        return 0
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= PID_MAX else 0


def is_for(container: "Container", pids: "Iterable[int]") -> bool:
    """Whether one of the processes holds a socket for the container: podman's conmon, or a proxy of Docker's."""
    for pid in pids:
        words = processes.words(pid)
        program = {word.rpartition("/")[2] for word in words[:2]}
        if "conmon" in program and container.id in words:
            return True
        if program.intersection(PROXIES) and _is_own(container, _after(words, "-container-ip")):
            return True
    return False


def _after(words: "Sequence[str]", option: str) -> str:
    """The value of an option of a Go program."""
    for place, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name in (option, "-" + option):
            return value if equals else "".join(words[place + 1 : place + 2])
    return ""


def _is_own(container: "Container", ip: str) -> bool:
    """Whether an address is the container's: one of those that are known, or else in its namespace."""
    return ip in map(ip_text, container.addresses) or ip in _inside(container.netns)


def _inside(path: str) -> set[str]:
    """The addresses in a namespace; but its loopback's; none of one that cannot be entered, or is our own."""
    from cni_py.kernel import inet, netns
    from cni_py.kernel.rtnl import Rtnl

    try:
        if not path or os.path.samestat(os.stat(path), os.stat("/proc/self/ns/net")):
            return set()
        fd = netns.open_netns(path)
        try:
            inside = Rtnl(fd)
            try:
                found = {ip_text(one.address.packed) for one in inet.addresses(inside)}
                return {ip for ip in found if not ip.startswith("127.")} - {"::1"}
            finally:
                inside.close()
        finally:
            os.close(fd)
    except (OSError, ValueError, CniError):
        return set()


# portfwd


def portfwds(found: "dict[int, Listener]", container: "Container") -> dict[int, str]:
    """Which of the sockets portfwd's service has, and for whom; "" for what is not in the container's way."""
    try:
        service = relay.Service.connect(relay.AUTO_S)
        if service is None:
            return {}
        with service:
            ours = processes.sockets_of(service.pid) & found.keys()
            listed = service.mappings() if ours else []
    except CniError:
        return {}
    told: dict[int, str] = {}
    for inode in ours:
        mapping = next((one for one in listed if relay.listens(one, found[inode])), None)
        told[inode] = "portfwd" if mapping is None else _for_whom(mapping, container)
    return told


def _for_whom(mapping: "Object", container: "Container") -> str:
    """Who published the mapping, when it is in the container's way."""
    hexed = relay.owner_of(mapping)
    if not hexed:
        whose = "for Docker" if mapping.get("label") == "docker" else f"mapping {mapping.get('id')}"
        return "" if _leads_to(mapping, container) else f"portfwd ({whose})"
    record = holders.record_of(hexed)
    if record is None or holders.is_dead(record) or record.key.container_id == container.id:
        return ""
    names = [fields.get("op") for fields in record.ops if isinstance(fields, dict)]
    return "" if any(name in BY_NAT for name in names) else f"portfwd, for {record.key.label}"


def _leads_to(mapping: "Object", container: "Container") -> bool:
    """Whether a mapping of somebody's leads to the container."""
    targets = mapping.get("targets")
    for target in targets if isinstance(targets, list) else ():
        if isinstance(target, dict):
            address, path, named = (str(target.get(name, "")) for name in ("address", "path", "container"))
            inside = (path and path == container.netns) or (named and container.id.startswith(named))
            if inside or (not path and not named and address in map(ip_text, container.addresses)):
                return True
    return False

"""Host ports, also ranges, that a pod asks for by the annotation `cni-py/host-ports`: a Kubernetes hostPort is one port. Pure.

    cni-py/host-ports: "9000-9099, 5060/udp, 8000-8009:80-89"

Each is HOST_PORTS[:CONTAINER_PORTS][/PROTOCOL], published on every address of the host; without container ports they are the
same. A pod may have only what the key `podHostPorts` of portmap's configuration lists, such as ["9000-9999", "5060/udp"]: an
admission rule that guards hostPort does not see the annotation. So without the key it is refused.
"""

from cni_py.errors import InvalidNetworkConfig
from cni_py.ports.options import PROTOCOLS, is_port

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    Said = tuple[int, int, str, str]  # host port, container port, protocol, hostIP

ANNOTATION = "cni-py/host-ports"
TEXT_MAX = 4096  # characters; a stranger may have written them
SHOWN_MAX = 64
KEY = "podHostPorts"


def entries(text: object, allowed: "Sequence[str]") -> "list[Said]":
    """The mappings that the annotation, if any, stands for, as elements of portMappings say them. InvalidNetworkConfig."""
    place = f"annotation {ANNOTATION}"
    free = [_parse(one, f"{KEY}: ")[::2] for one in allowed]
    if text is None:
        return []
    if not isinstance(text, str) or len(text) > TEXT_MAX:
        raise InvalidNetworkConfig(f"{place} must be a text of at most {TEXT_MAX} characters")
    found: list[Said] = []
    taken: list[tuple[str, range]] = []
    for one in text.replace(",", " ").split():
        host, container, protocol = _parse(one, f"{place}: ")
        shown = _shown(one)
        if not any(protocol == other and host[0] in ports and host[-1] in ports for ports, other in free):
            what = f"{place}: this network's pods may not publish {shown}"
            raise InvalidNetworkConfig(what, f"portmap's key {KEY} lists {', '.join(allowed) or 'no ports'}")
        if any(protocol == other and host[0] <= ports[-1] and ports[0] <= host[-1] for other, ports in taken):
            raise InvalidNetworkConfig(f"{place}: a host port of {shown} stands there twice")
        taken.append((protocol, host))
        found += [(*pair, protocol, "") for pair in zip(host, container, strict=True)]
    return found


def _parse(text: str, place: str) -> tuple[range, range, str]:
    """Host ports, container ports, protocol. InvalidNetworkConfig."""
    ports, slash, protocol = text.lower().partition("/")
    host_text, colon, container_text = ports.partition(":")
    host, container = _range(host_text), _range(container_text if colon else host_text)
    protocol = protocol if slash else "tcp"
    if host is None or container is None or len(host) != len(container) or protocol not in PROTOCOLS:
        example = "9000-9099, 8000-8009:80-89 or 5060/udp"
        raise InvalidNetworkConfig(
            f"{place}{_shown(text)} is not HOST_PORTS[:CONTAINER_PORTS][/PROTOCOL], such as {example}"
        )
    return host, container, protocol


def _range(text: str) -> range | None:
    first, dash, last = text.partition("-")
    if not is_port(first) or (dash and not is_port(last)):
        return None
    return range(int(first), int(last if dash else first) + 1) or None


def _shown(text: str) -> str:
    return repr(text[:SHOWN_MAX])

"""What newer Go plugins publish by nftables: rules of the tables ip and ip6 cni_hostport, which name the container alone."""

from cni_py.addr import ip_text, parse_ip
from cni_py.iptables import goplugins
from cni_py.iptables.names import GO_HOSTPORT, GO_HOSTPORTS, has_chain
from cni_py.kernel.xtables import NFPROTO
from cni_py.ports.flows import forget_flows
from cni_py.ports.mapping import Mapping
from cni_py.protocol.gojson import Object
from cni_py.protocol.netconf import is_identifier

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from cni_py.attachment.context import Kernel


def forget(kernel: "Kernel", family: int, container_id: str, goes: "Callable[[bytes], bool] | None") -> None:
    """Take out what leads to those addresses of a container that go (None: to any), and forget the UDP flows."""
    found = [mapping for owner, mapping in published(family) if owner == container_id]
    gone = [mapping for mapping in found if goes is None or goes(mapping.container_ip)]
    if gone or goes is None:
        goplugins.forget_ports(family, container_id, {ip_text(one.container_ip) for one in gone} if goes else ())
        forget_flows(kernel, gone, added=False)


def clear(kernel: "Kernel", addresses: "Collection[bytes]") -> None:
    """Take out what leads to the addresses, whoever had them."""
    found = {(owner, mapping.family) for owner, mapping in everything(kernel) if mapping.container_ip in addresses}
    for owner, family in found:
        forget(kernel, family, owner, addresses.__contains__)


def everything(kernel: "Kernel") -> "Iterator[tuple[str, Mapping]]":
    """The IDs of containers and what they publish. CniError."""
    for family, number in NFPROTO.items():
        if has_chain(kernel, number, GO_HOSTPORT, GO_HOSTPORTS):
            yield from published(family)


def published(family: int) -> "Iterator[tuple[str, Mapping]]":
    """The same of one family, whose table is there. Rules of another form are none of the Go plugins'."""
    for rule in goplugins.rules_of("ip" if family == 4 else "ip6", GO_HOSTPORT):
        owner, parts = str(rule.get("comment", "")), rule.get("expr")
        try:
            mapping = mapping_in(parts if isinstance(parts, list) else [])
        except ValueError:
            continue
        if mapping is not None and is_identifier(owner):
            yield owner, mapping


def mapping_in(parts: "Sequence[object]") -> Mapping | None:
    """The mapping of a rule such as `ip daddr 192.0.2.1 tcp dport 8080 dnat to 192.0.2.5:80`, as JSON. ValueError."""
    protocol, host_port, host_ip = "", 0, None
    for part in parts:
        name, fields = part.pairs[0] if isinstance(part, Object) and part.pairs else ("", None)
        if name == "match" and isinstance(fields, Object):
            header, field = [*goplugins.texts_in(fields.get("left")), "", ""][:2]
            if field == "dport":
                protocol, host_port = header, int(str(fields.get("right")))
            elif field == "daddr":
                host_ip = parse_ip(str(fields.get("right")))
        elif name == "dnat" and isinstance(fields, Object) and host_port:
            container_ip, port = parse_ip(str(fields.get("addr"))), int(str(fields.get("port")))
            return Mapping(protocol, host_ip, host_port, container_ip, port)
    return None

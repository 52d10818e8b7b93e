"""Programs of this host that listen on a port which `cni-py-exec` is about to publish: ADD is refused, as by docker and podman.

The check comes before the first plugin is run, and does not need a portmap of ours. It is left out where portmap has
"hostListener": "warn", and with "userlandProxy": "always", where portfwd itself cannot listen beside another program.
"""

from cni_py.addr import parse_address, parse_ip
from cni_py.commands.chain import Chain
from cni_py.commands.report import Failure
from cni_py.errors import CniError
from cni_py.kernel import sock_diag
from cni_py.ports.host_listeners import Container, Held, held, in_the_way
from cni_py.ports.mapping import Mapping
from cni_py.protocol import netconf
from cni_py.protocol.gojson import Object
from cni_py.protocol.result import from_json

BYTES = {4: 4, 6: 16}  # of an address


def refuse_listeners(chain: Chain) -> None:
    """Failure that names the program that listens."""
    found = listeners(chain)
    if found:
        more = f" (and {len(found) - 1} more ports)" if len(found) > 1 else ""
        raise Failure(f"{found[0]}{more}: stop it, or publish another port")


def notes(chain: Chain, result: Object | None) -> list[str]:
    """For CHECK: programs that began to listen after the ADD. NAT leads their clients to the container all the same."""
    addresses: list[bytes] = []
    if result is not None:
        known = from_json(result, netconf.string(result, "cniVersion") or chain.network.cni_version)
        addresses = [ip.address.packed for ip in known.ips]
    return [f"{one}, but its clients reach the container" for one in listeners(chain, addresses)]


def listeners(chain: Chain, addresses: list[bytes] | None = None) -> list[Held]:
    """The programs that hold published ports and do not belong to the container; none where the network allows them."""
    if not any(publishes_by_nat(plugin) for plugin in chain.network.members):
        return []
    asked = wanted(chain)
    found = in_the_way(asked, sock_diag.waiting((one.protocol, one.first, one.last) for one in asked))
    return held(found, Container(chain.container_id, chain.netns, addresses or ()))


def publishes_by_nat(plugin: Object) -> bool:
    """Whether the plugin is a portmap that gets port mappings and refuses ports with a listener."""
    capabilities = netconf.child(plugin, "capabilities") or Object()
    return (
        netconf.string(plugin, "type") == "portmap"
        and capabilities.get("portMappings") is True
        and plugin.get("hostListener") != "warn"
        and plugin.get("userlandProxy") != "always"
    )


def wanted(chain: Chain) -> list[Mapping]:
    """The requested port mappings, one for each family of which the container may get an address."""
    found: list[Mapping] = []
    families = families_of(chain)
    listed = chain.capability_args.get("portMappings")
    for port in listed if isinstance(listed, list) else ():
        if isinstance(port, Object):
            found += mappings_of(port, families)
    return found


def mappings_of(port: Object, families: set[int]) -> list[Mapping]:
    """The mappings of one element of portMappings; none for an element that portmap will refuse."""
    try:
        stated = netconf.string(port, "hostIP")
        host_ip = parse_ip(stated) if stated else b""
        number = netconf.integer(port, "hostPort")
        protocol = netconf.string(port, "protocol").lower()
    except (ValueError, CniError):
        return []
    own = {4 if len(host_ip) == 4 else 6} if host_ip else {4, 6}
    host = host_ip if any(host_ip) else None
    return [Mapping(protocol, host, number, bytes(BYTES[family]), number) for family in sorted(own & families)]


def families_of(chain: Chain) -> set[int]:
    """The families (4, 6) of the addresses in the configuration, --ip and CNI_ARGS; both if there is none."""
    named: set[int] = set()
    for plugin in chain.network.members:
        _collect(netconf.child(plugin, "ipam") or Object(), named)
    _collect(chain.capability_args.get("ips"), named)
    for key, value in chain.cni_args:
        if key == "IP":
            _collect(value.split(","), named)
    return named or {4, 6}


def _collect(value: object, named: set[int]) -> None:
    """Add the families of all addresses and subnets in a value, except those of routes and name servers."""
    if isinstance(value, str):
        try:
            named.add(parse_address(value if "/" in value else f"{value}/{128 if ':' in value else 32}").family)
        except ValueError:
            return
    elif isinstance(value, list):
        for one in value:
            _collect(one, named)
    elif isinstance(value, dict):
        for key, one in value.items():
            if key not in ("routes", "dns"):
                _collect(one, named)

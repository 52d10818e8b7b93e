"""Programs of this host that have a port which `cni-py-exec` is to publish: it refuses, as docker and podman do.

It does so before the first plugin is run, whoever's the portmap plugin is. A network whose portmap says "hostListener": "warn" is
left to that, and one whose portmap says "userlandProxy": "always" to portfwd, which cannot listen beside another program.
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
    """Failure that names the program."""
    found = listeners(chain)
    if found:
        more = f" (and {len(found) - 1} more of the ports)" if len(found) > 1 else ""
        raise Failure(f"{found[0]}{more}: stop it, or publish another port")


def notes(chain: Chain, result: Object | None) -> list[str]:
    """CHECK: programs that came after the ADD. Their clients come to the container all the same."""
    addresses: list[bytes] = []
    if result is not None:
        known = from_json(result, netconf.string(result, "cniVersion") or chain.network.cni_version)
        addresses = [ip.address.packed for ip in known.ips]
    return [f"{one}, whose clients come to the container" for one in listeners(chain, addresses)]


def listeners(chain: Chain, addresses: list[bytes] | None = None) -> list[Held]:
    """Those that have ports of the container and are not there for it; none where the network leaves that to others."""
    if not any(publishes_by_nat(plugin) for plugin in chain.network.plugins):
        return []
    asked = wanted(chain)
    found = in_the_way(asked, sock_diag.waiting((one.protocol, one.first, one.last) for one in asked))
    return held(found, Container(chain.container_id, chain.netns, addresses or ()))


def publishes_by_nat(plugin: Object) -> bool:
    """Whether it is a portmap that hears of ports, and does not say that all of this is well."""
    capabilities = netconf.child(plugin, "capabilities") or Object()
    return (
        netconf.string(plugin, "type") == "portmap"
        and capabilities.get("portMappings") is True
        and plugin.get("hostListener") != "warn"
        and plugin.get("userlandProxy") != "always"
    )


def wanted(chain: Chain) -> list[Mapping]:
    """What is asked for, in every family that the container may get an address of."""
    found: list[Mapping] = []
    families = families_of(chain)
    listed = chain.capability_args.get("portMappings")
    for port in listed if isinstance(listed, list) else ():
        if isinstance(port, Object):
            found += mappings_of(port, families)
    return found


def mappings_of(port: Object, families: set[int]) -> list[Mapping]:
    """One element of the capability portMappings; nothing of one that portmap will refuse."""
    try:
        host_ip = parse_ip(netconf.string(port, "hostIP")) if netconf.string(port, "hostIP") else b""
        number = netconf.integer(port, "hostPort")
        protocol = netconf.string(port, "protocol").lower()
    except (ValueError, CniError):
        return []
    own = {4 if len(host_ip) == 4 else 6} if host_ip else {4, 6}
    host = host_ip if any(host_ip) else None
    return [Mapping(protocol, host, number, bytes(BYTES[family]), number) for family in sorted(own & families)]


def families_of(chain: Chain) -> set[int]:
    """Those of the addresses that the network's configuration names, and that are asked for; both where none is named."""
    named: set[int] = set()
    for plugin in chain.network.plugins:
        _collect(netconf.child(plugin, "ipam") or Object(), named)
    _collect(chain.capability_args.get("ips"), named)
    for key, value in chain.cni_args:
        if key == "IP":
            _collect(value.split(","), named)
    return named or {4, 6}


def _collect(value: object, named: set[int]) -> None:
    """The families of all addresses and networks in a value, but for those of routes and name servers."""
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

"""The result of an ADD, and its JSON in the form of each version of the specification.

    0.1.0, 0.2.0           ip4 and ip6, each with its routes; dns always
    0.3.0, 0.3.1, 0.4.0    interfaces, ips with "version", routes; dns always
    1.0.0, 1.1.0           ips without "version", interfaces with mtu, socketPath and pciID; dns when there is any

Go writes the keys of the first two in the order of its structs, those of the third sorted. It writes the route fields
that came with 1.1.0 (mtu, advmss, priority, table, scope) from 0.3.0 on.

portmap may add a key of ours with the host ports that it has chosen (ports/random_ports.py). Our plugins that come after it in
the chain pass the key on; libcni drops it.
"""

from cni_py import version
from cni_py.addr import Address, ip_text, parse_address, parse_ip
from cni_py.errors import CniError
from cni_py.protocol import netconf
from cni_py.protocol.gojson import Object

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_py.protocol.gojson import Value
    from cni_py.protocol.netconf import NetConf


PORT_MAPPINGS = "cni-py/portMappings"  # the key


class Interface:
    """A link that was made or changed; `sandbox` is the namespace's path, empty for the host."""

    __slots__ = ("mac", "mtu", "name", "pci_id", "sandbox", "socket_path")

    def __init__(
        self, name: str, mac: str = "", sandbox: str = "", mtu: int = 0, socket_path: str = "", pci_id: str = ""
    ) -> None:
        self.name = name
        self.mac = mac
        self.sandbox = sandbox
        self.mtu = mtu  # bytes
        self.socket_path = socket_path
        self.pci_id = pci_id


class IPConfig:
    """An address. `interface` is an index into the result's interfaces, None when it belongs to none of them.

    `version` is the value of that key in a result of 0.3 or 0.4 that was read, which libcni passes on even if it is missing
    or wrong. None, as in a result that we make, means the family of the address.
    """

    __slots__ = ("address", "gateway", "interface", "version")

    def __init__(
        self,
        address: Address,
        gateway: bytes | None = None,
        interface: int | None = None,
        version: str | None = None,
    ) -> None:
        self.address = address
        self.gateway = gateway
        self.interface = interface
        self.version = version


class Route:
    """A route in the container. `dst` keeps its host bits. 0 or None: not given, so the kernel's default."""

    __slots__ = ("advmss", "dst", "gw", "mtu", "priority", "scope", "table")

    def __init__(
        self,
        dst: Address,
        gw: bytes | None = None,
        mtu: int = 0,
        advmss: int = 0,
        priority: int = 0,
        table: int | None = None,
        scope: int | None = None,
    ) -> None:
        self.dst = dst
        self.gw = gw
        self.mtu = mtu  # bytes
        self.advmss = advmss  # bytes
        self.priority = priority
        self.table = table
        self.scope = scope


class DNS:
    """The settings of the container's resolver."""

    __slots__ = ("domain", "nameservers", "options", "search")

    def __init__(
        self,
        nameservers: list[str] | None = None,
        domain: str = "",
        search: list[str] | None = None,
        options: list[str] | None = None,
    ) -> None:
        self.nameservers = nameservers or []
        self.domain = domain
        self.search = search or []
        self.options = options or []


class Result:
    """The result of an ADD. `form` is the family of versions that it was read in, None for a result that we make.

    `port_mappings` is an extension of ours: the host ports that portmap has chosen.
    """

    __slots__ = ("dns", "form", "interfaces", "ips", "port_mappings", "routes")

    def __init__(
        self,
        interfaces: list[Interface] | None = None,
        ips: list[IPConfig] | None = None,
        routes: list[Route] | None = None,
        dns: DNS | None = None,
    ) -> None:
        self.interfaces = interfaces if interfaces is not None else []
        self.ips = ips if ips is not None else []
        self.routes = routes if routes is not None else []
        self.dns = dns or DNS()
        self.form: tuple[str, ...] | None = None
        self.port_mappings: list[Object] = []


def to_json(result: Result, cni_version: str) -> Object:
    """The object to print, in the form of `cni_version`.

    CniError when that version has no form for it: a result of ours without addresses, in 0.1.0 and 0.2.0.
    """
    form = version.family(cni_version)
    chosen: list[Value] = [*result.port_mappings]
    told: list[tuple[str, Value]] = [(PORT_MAPPINGS, chosen)] if chosen else []
    if "0.2.0" in form:
        return Object([("cniVersion", cni_version), *_ip_blocks(result), ("dns", _dns_to_json(result.dns)), *told])
    old = "0.4.0" in form
    fields = _given(
        cniVersion=cni_version,
        interfaces=[_interface_to_json(interface, old) for interface in result.interfaces],
        ips=[_ip_to_json(ip, old, passed_on=result.form == form) for ip in result.ips],
        routes=[_route_to_json(route) for route in result.routes],
    )
    dns = _dns_to_json(result.dns)
    if old or dns:
        fields["dns"] = dns
    fields.update(told)
    return fields if old else _sorted(fields)


def _given(**fields: "Value") -> Object:
    """The fields but those that are None, "" or [], as Go's omitempty leaves them out. Pass `number or None` to omit a 0."""
    return Object([(key, value) for key, value in fields.items() if value is not None and value not in ("", [])])


def _sorted(obj: Object) -> Object:
    def inner(value: "Value") -> "Value":
        if isinstance(value, list):
            return [inner(element) for element in value]
        return _sorted(value) if isinstance(value, Object) else value

    return Object([(key, inner(value)) for key, value in sorted(obj.items())])


def _interface_to_json(interface: Interface, old: bool) -> Object:
    fields = _given(name=interface.name, mac=interface.mac, sandbox=interface.sandbox)
    if not old:
        newer = _given(mtu=interface.mtu or None, socketPath=interface.socket_path, pciID=interface.pci_id)
        fields.update(newer)
    return fields


def _ip_to_json(ip: IPConfig, old: bool, passed_on: bool) -> Object:
    fields = Object()
    if old:
        fields["version"] = ip.version if passed_on and ip.version is not None else str(ip.address.family)
    fields.update(_given(interface=ip.interface, address=str(ip.address), gateway=_text(ip.gateway)))
    return fields


def _route_to_json(route: Route) -> Object:
    return _given(
        dst=str(route.dst),
        gw=_text(route.gw),
        mtu=route.mtu or None,
        advmss=route.advmss or None,
        priority=route.priority or None,
        table=route.table,
        scope=route.scope,
    )


def _text(ip: bytes | None) -> str | None:
    return None if ip is None else ip_text(ip)


def _dns_to_json(dns: DNS) -> Object:
    return _given(nameservers=[*dns.nameservers], domain=dns.domain, search=[*dns.search], options=[*dns.options])


def _ip_blocks(result: Result) -> "list[tuple[str, Value]]":
    """ip4 and ip6 of 0.1.0 and 0.2.0: the first address of each family, and the family's routes if it has one."""
    blocks: list[tuple[str, Value]] = []
    for key, family in (("ip4", 4), ("ip6", 6)):
        for ip in result.ips:
            if ip.address.family == family:
                own = [route for route in result.routes if route.dst.family == family]
                routes: list[Value] = [_given(dst=str(route.dst), gw=_text(route.gw)) for route in own]
                blocks.append((key, _given(ip=str(ip.address), gateway=_text(ip.gateway), routes=routes)))
                break
    if not blocks and result.form != version.family("0.2.0"):
        raise CniError("cannot convert: no valid IP addresses")
    return blocks


def from_json(obj: Object, cni_version: str) -> Result:
    """The result in `obj`, in the form of its own cniVersion, or of `cni_version` if it has none.

    CniError, in Go's words, if the two are of different families, or for a text that is no address.
    """
    form = version.family(cni_version)
    stated = netconf.string(obj, "cniVersion") or cni_version
    if stated not in form:
        supported = " ".join(("", *form) if "0.2.0" in form else form)  # libcni's 0.2.0 lists the absent version too
        raise CniError(f'result type supports [{supported}] but unmarshalled CNIVersion is "{stated}"')
    result = Result(dns=dns_from_json(netconf.child(obj, "dns") or Object()))
    result.form = form
    chosen = obj.get(PORT_MAPPINGS)
    result.port_mappings = [one for one in chosen if isinstance(one, Object)] if isinstance(chosen, list) else []
    try:
        if "0.2.0" in form:
            _read_ip_blocks(obj, result)
        else:
            result.interfaces = [_interface_from_json(entry) for entry in netconf.objects(obj, "interfaces")]
            result.ips = [_ip_from_json(entry, "0.4.0" in form) for entry in netconf.objects(obj, "ips")]
            result.routes = [route_from_json(entry) for entry in netconf.objects(obj, "routes")]
    except ValueError as error:
        raise CniError(str(error)) from None
    return result


def prev_result(conf: "NetConf") -> Result | None:
    """The prevResult of a configuration, None when there is none."""
    if conf.prev_result is None:
        return None
    try:
        return from_json(conf.prev_result, conf.cni_version)
    except CniError as error:
        code = 6 if error.code == 6 else 7
        raise CniError(f"could not parse prevResult: {error}", code=code) from None


def known_result(conf: "NetConf") -> Result | None:
    """For DEL: all that can be read of the prevResult, in the form of any version. None if that is nothing."""
    with netconf.Tolerant():
        obj = conf.prev_result
        if obj is None:
            return None
        found = Result()
        found.interfaces = [_interface_from_json(entry) for entry in netconf.objects(obj, "interfaces")]
        old = [block for key in ("ip4", "ip6") if (block := netconf.child(obj, key)) is not None]
        entries = [*((entry, "address") for entry in netconf.objects(obj, "ips")), *((block, "ip") for block in old)]
        for entry, name in entries:
            try:
                address = parse_address(netconf.string(entry, name))
            except ValueError:
                continue
            found.ips.append(IPConfig(address, interface=netconf.optional_integer(entry, "interface")))
    return found if found.interfaces or found.ips else None


def _read_ip_blocks(obj: Object, result: Result) -> None:
    for key in ("ip4", "ip6"):
        block = netconf.child(obj, key)
        if block is not None:
            address = parse_address(netconf.string(block, "ip"))
            result.ips.append(IPConfig(address, _ip(block, "gateway")))
            result.routes += [route_from_json(entry) for entry in netconf.objects(block, "routes")]


def _interface_from_json(entry: Object) -> Interface:
    return Interface(
        netconf.string(entry, "name"),
        netconf.string(entry, "mac"),
        netconf.string(entry, "sandbox"),
        netconf.integer(entry, "mtu"),
        netconf.string(entry, "socketPath"),
        netconf.string(entry, "pciID"),
    )


def _ip_from_json(entry: Object, old: bool) -> IPConfig:
    return IPConfig(
        parse_address(netconf.string(entry, "address")),
        _ip(entry, "gateway"),
        netconf.optional_integer(entry, "interface"),
        netconf.string(entry, "version") if old else None,
    )


def route_from_json(entry: Object) -> Route:
    """A route of a result or of an IPAM configuration. ValueError for a text that is no address."""
    return Route(
        parse_address(netconf.string(entry, "dst")),
        _ip(entry, "gw"),
        netconf.integer(entry, "mtu"),
        netconf.integer(entry, "advmss"),
        netconf.integer(entry, "priority"),
        netconf.optional_integer(entry, "table"),
        netconf.optional_integer(entry, "scope"),
    )


def _ip(entry: Object, name: str) -> bytes | None:
    text = netconf.string(entry, name)
    return parse_ip(text) if text else None


def dns_from_json(obj: Object) -> DNS:
    return DNS(
        netconf.strings(obj, "nameservers"),
        netconf.string(obj, "domain"),
        netconf.strings(obj, "search"),
        netconf.strings(obj, "options"),
    )


def addresses_of(earlier: Result, ifname: str) -> list[Address]:
    """The addresses of the container's interface `ifname`, and those that name no interface."""
    found = []
    for ip in earlier.ips:
        if ip.interface is not None and 0 <= ip.interface < len(earlier.interfaces):
            interface = earlier.interfaces[ip.interface]
            if interface.name != ifname or not interface.sandbox:
                continue
        found.append(ip.address)
    return found

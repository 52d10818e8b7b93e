"""static: the addresses that the configuration or the runtime names, and no others. An IPAM plugin.

    ADD     the addresses, routes and DNS settings of the configuration -> result
    DEL     withdraws ports that the attachment still publishes
    CHECK   an address that prevResult has, too, has the configured gateway there
    GC      nothing: nothing is kept that could be stale
    STATUS  the configuration can be read

Where the addresses come from: runtimeConfig.ips, else args.cni.ips, else ipam.addresses and IP of CNI_ARGS together.

An address that is asked for without a prefix length takes the length and the gateway of the configured address in whose subnet
it is (the Go plugin refuses it). It makes nothing in the kernel and reserves nothing: two containers may get the same address.
Example configuration: conf/static.conflist.
"""

from cni_py.addr import Address, ip_text, parse_address, parse_ip
from cni_py.attachment.call import Call, Plugin
from cni_py.errors import CniError, InvalidEnvironment, InvalidNetworkConfig
from cni_py.protocol import netconf
from cni_py.protocol.gojson import Object
from cni_py.protocol.result import IPConfig, Result, dns_from_json, prev_result, route_from_json
from cni_py.version import at_least

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

ARGS_MAX = 256  # addresses or gateways in CNI_ARGS


def add(call: Call) -> Result:
    """Answer with what is configured."""
    result = parse(call)
    call.hand_out([ip.address.packed for ip in result.ips])
    return result


def examine(call: Call) -> None:
    """Read all that ADD reads of the configuration, and raise what it would raise."""
    from cni_py.interface.addressing import check_route

    for route in parse(call).routes:
        check_route(route, route.gw)


def delete(call: Call) -> None:
    """Withdraw published ports. There are no reservations, and the configuration is not read: it may be wrong by now."""
    call.withdraw_ports()


def check(call: Call) -> None:
    """Compare the gateways of the addresses that prevResult has, too. The runtime may have asked for others (as in Go)."""
    wanted = parse(call)
    earlier = prev_result(call.conf)
    if earlier is None:
        raise InvalidNetworkConfig("Required prevResult missing")
    for ip in wanted.ips:
        found = [held.gateway for held in earlier.ips if held.address.packed == ip.address.packed]
        if ip.gateway is not None and found and ip.gateway not in found:
            raise CniError(f"static: Failed to match addr {ip_text(ip.address.packed)} on interface {call.ifname}")


def gc(_call: Call) -> None:
    """Nothing is kept, so nothing can be stale."""


def status(call: Call) -> None:
    """An ADD can be served if its configuration can be read."""
    parse(call)


def parse(call: Call) -> Result:
    """The result that the configuration and the runtime ask for. InvalidNetworkConfig, or InvalidEnvironment for CNI_ARGS."""
    ipam = call.conf.ipam
    if ipam is None:
        raise InvalidNetworkConfig("IPAM config missing 'ipam' key: the configuration needs an object \"ipam\"")
    try:
        routes = [route_from_json(entry) for entry in netconf.objects(ipam, "routes")]
        extra = added(call, ipam)
        ips = requested(call, ipam) or [*configured(ipam), *extra]
    except ValueError as error:
        raise InvalidNetworkConfig(f"ipam: {error}") from None
    if not at_least(call.conf.cni_version, "0.3.0"):
        families = [ip.address.family for ip in ips]
        if len(families) != len(set(families)):
            raise InvalidNetworkConfig(
                f"CNI version {call.conf.cni_version} does not support more than 1 address per family"
            )
    return Result(ips=once(ips), routes=routes, dns=dns_from_json(netconf.child(ipam, "dns") or Object()))


def configured(ipam: Object) -> "Iterator[IPConfig]":
    """ipam.addresses."""
    for entry in netconf.objects(ipam, "addresses"):
        text, gateway = netconf.string(entry, "address"), netconf.string(entry, "gateway")
        try:
            address = parse_address(text)
        except ValueError:
            raise InvalidNetworkConfig(
                f"the 'address' field is expected to be in CIDR notation, got: '{text}'"
            ) from None
        yield IPConfig(address, parse_ip(gateway) if gateway else None)


def added(call: Call, ipam: Object) -> list[IPConfig]:
    """The addresses in IP of CNI_ARGS. Each gateway in GATEWAY goes to those in whose subnet it is."""
    asked = netconf.parse_cni_args(call.args, ("IP", "GATEWAY"))
    refusal = "the 'ip' field is expected to be in CIDR notation, got: '{}'"
    addresses, gateways = list(listed(asked.get("IP", ""))), list(listed(asked.get("GATEWAY", "")))
    if max(len(addresses), len(gateways)) > ARGS_MAX:  # each gateway is looked at for each address
        raise InvalidEnvironment(
            f"CNI_ARGS has {len(addresses)} addresses in IP and {len(gateways)} in GATEWAY: at most {ARGS_MAX}"
        )
    ips = [wished(text, ipam, refusal) for text in addresses]
    for text in gateways:
        try:
            gateway = parse_ip(text)
        except ValueError:
            raise InvalidEnvironment(f"invalid gateway address: {text} (GATEWAY in CNI_ARGS)") from None
        for ip in ips:
            if ip.address.contains(gateway):
                ip.gateway = gateway
    return ips


def once(ips: list[IPConfig]) -> list[IPConfig]:
    """Each address once, with whatever gateway it was given (the kernel takes none twice, so the Go plugins fail)."""
    known: dict[Address, IPConfig] = {}
    for ip in ips:
        held = known.setdefault(ip.address, ip)
        held.gateway = held.gateway if held.gateway is not None else ip.gateway
    return [*known.values()]


def listed(text: str) -> list[str]:
    """The elements of "a, b"; none of an empty text."""
    return [element.strip() for element in text.split(",")] if text else []


def requested(call: Call, ipam: Object) -> list[IPConfig]:
    """The addresses that take the place of the configured ones: the capability `ips`, else args.cni.ips, else none."""
    refusal = "an entry in the 'ips' field is NOT in CIDR notation, got: '{}'"
    cni = netconf.child(call.conf.args or Object(), "cni") or Object()
    for source in (call.conf.runtime_config or Object(), cni):
        texts = netconf.strings(source, "ips")
        if texts:
            return [wished(text, ipam, refusal) for text in texts]
    return []


def wished(text: str, ipam: Object, refusal: str) -> IPConfig:
    """An address that is asked for. InvalidNetworkConfig with `refusal`, a text with a place for the address.

    Without a prefix length it takes those of the configured address in whose subnet it is, the gateway included.
    """
    try:
        if "/" in text:
            return IPConfig(parse_address(text))
        ip = parse_ip(text)
    except ValueError:
        raise InvalidNetworkConfig(refusal.format(text)) from None
    for own in configured(ipam):
        if own.address.contains(ip):
            if ip == own.gateway:
                raise InvalidNetworkConfig(f"requested ip {text} is subnet's gateway")
            return IPConfig(Address(ip, own.address.prefixlen), own.gateway)
    raise InvalidNetworkConfig(refusal.format(text), "nor is it in the subnet of one of ipam.addresses")


PLUGIN = Plugin("static", add=add, delete=delete, check=check, gc=gc, status=status, examine=examine)

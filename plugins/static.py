"""static: the addresses that the configuration or the runtime names, and no others. An IPAM plugin.

    ADD     the addresses, routes and DNS settings -> result
    CHECK   an address of ours that the result has, has our gateway there
    STATUS  the configuration can be read

    ipam.addresses, then IP of CNI_ARGS added to them; replaced by args.cni.ips, and those by runtimeConfig.ips

Nothing is looked up and nothing kept, so two containers may be given one address, DEL does nothing and GC has nothing to
collect. Example configuration: conf/static.conflist.
"""

from cni_py import netconf
from cni_py.addr import Address, ip_text, parse_address, parse_ip
from cni_py.call import Call, Plugin
from cni_py.errors import CniError
from cni_py.jsontext import Object
from cni_py.result import IPConfig, Result, dns_from_json, prev_result, route_from_json
from cni_py.version import at_least

ARGS_MAX = 256  # addresses or gateways in CNI_ARGS


def add(call: Call) -> Result:
    """Say what is configured."""
    return parse(call)


def delete(_call: Call) -> None:
    """Nothing was kept; the configuration is not even read."""


def check(call: Call) -> None:
    """As the Go plugin: an address that the result does not have may have been replaced by the runtime's."""
    wanted = parse(call)
    earlier = prev_result(call.conf)
    if earlier is None:
        raise CniError("Required prevResult missing")
    for ip in wanted.ips:
        found = [held.gateway for held in earlier.ips if held.address.packed == ip.address.packed]
        if ip.gateway is not None and found and ip.gateway not in found:
            raise CniError(f"static: Failed to match addr {ip_text(ip.address.packed)} on interface {call.ifname}")


def gc(_call: Call) -> None:
    """No state of ours: nothing can be stale."""


def status(call: Call) -> None:
    """An ADD can be served if its configuration can be read."""
    parse(call)


def parse(call: Call) -> Result:
    """The result that the configuration and the runtime ask for."""
    ipam = call.conf.ipam
    if ipam is None:
        raise CniError("IPAM config missing 'ipam' key")
    try:
        routes = [route_from_json(entry) for entry in netconf.objects(ipam, "routes")]
        extra = added(call)
        ips = requested(call) or [configured(entry) for entry in netconf.objects(ipam, "addresses")] + extra
    except ValueError as error:
        raise CniError(str(error)) from None
    if not at_least(call.conf.cni_version, "0.3.0"):
        families = [ip.address.family for ip in ips]
        if len(families) != len(set(families)):
            raise CniError(f"CNI version {call.conf.cni_version} does not support more than 1 address per family")
    return Result(ips=ips, routes=routes, dns=dns_from_json(netconf.child(ipam, "dns") or Object()))


def configured(entry: Object) -> IPConfig:
    """One of ipam.addresses."""
    gateway = netconf.string(entry, "gateway")
    refusal = "the 'address' field is expected to be in CIDR notation, got: '{}'"
    return IPConfig(address_of(netconf.string(entry, "address"), refusal), parse_ip(gateway) if gateway else None)


def added(call: Call) -> list[IPConfig]:
    """IP of CNI_ARGS, a list; each gateway of GATEWAY there is for those of them whose subnet it is in."""
    asked = netconf.parse_cni_args(call.args, ("IP", "GATEWAY"))
    refusal = "the 'ip' field is expected to be in CIDR notation, got: '{}'"
    addresses, gateways = listed(asked.get("IP", "")), listed(asked.get("GATEWAY", ""))
    if max(len(addresses), len(gateways)) > ARGS_MAX:  # each gateway is looked at for each address
        raise CniError(f"CNI_ARGS has {len(addresses)} in IP and {len(gateways)} in GATEWAY", f"{ARGS_MAX} at most")
    ips = [IPConfig(address_of(text, refusal)) for text in addresses]
    for text in gateways:
        try:
            gateway = parse_ip(text)
        except ValueError:
            raise CniError(f"invalid gateway address: {text}") from None
        for ip in ips:
            if ip.address.contains(gateway):
                ip.gateway = gateway
    return ips


def listed(text: str) -> list[str]:
    """The elements of "a, b"; none of an empty text."""
    return [element.strip() for element in text.split(",")] if text else []


def requested(call: Call) -> list[IPConfig]:
    """What replaces the configured addresses: the capability `ips`, else args.cni.ips."""
    refusal = "an entry in the 'ips' field is NOT in CIDR notation, got: '{}'"
    cni = netconf.child(call.conf.args or Object(), "cni") or Object()
    for source in (call.conf.runtime_config or Object(), cni):
        texts = netconf.strings(source, "ips")
        if texts:
            return [IPConfig(address_of(text, refusal)) for text in texts]
    return []


def address_of(text: str, refusal: str) -> Address:
    """The address with its prefix length; CniError, with the text put into `refusal`."""
    try:
        return parse_address(text)
    except ValueError:
        raise CniError(refusal.format(text)) from None


PLUGIN = Plugin("static", add=add, delete=delete, check=check, gc=gc, status=status)

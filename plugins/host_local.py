"""host-local: addresses from the ranges of the configuration, reserved in a directory of this host. An IPAM plugin.

    ADD     reserves one free (or requested) address of each range set -> result [addresses, routes, DNS settings]
    DEL     releases what the attachment has reserved, and withdraws ports that it still publishes; nothing is success
    CHECK   an address is reserved for the attachment
    GC      releases the reservations of attachments that are not in the list
    STATUS  code 50 when a range set has no address left

It makes nothing in the kernel. An ADD holds the lock of the network's directory while it chooses and reserves; the files there
and what is reclaimed from them: cni_py/ipam/reservations.py. Which address comes next: cni_py/ipam/ranges.py.

Beyond the Go plugin: `exclude` in `ipam` or in a range lists addresses, networks and ranges ("192.0.2.9-192.0.2.20") that
only those get who ask for one by name. Example configuration: conf/host-local.conflist.
"""

from cni_py.addr import Address, ip_text, parse_address, parse_ip
from cni_py.attachment.call import Call, Plugin
from cni_py.errors import CniError, InvalidNetworkConfig, PluginNotAvailable
from cni_py.ipam.reservations import DATA_DIR, Pool, ReserveAddress, directory_of, holder, is_address
from cni_py.protocol import netconf
from cni_py.protocol.gojson import Object
from cni_py.protocol.result import DNS, IPConfig, Result, route_from_json
from cni_py.version import at_least

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_py.ipam.ranges import Range, RangeSet
    from cni_py.protocol.result import Route

    Choice = tuple[bytes, Range]


def add(call: Call) -> Result:
    """Choose an address of each set and reserve them, both under the lock of the directory."""
    ipam, range_sets, requested = parse(call)
    routes = parse_routes(ipam)
    path = netconf.string(ipam, "resolvConf")
    dns = resolver(path) if path else DNS()
    directory = directory_of(call.conf)
    with Pool(directory, make=not call.dry_run, look=call.dry_run) as pool:
        chosen = choose_all(call, range_sets, requested, pool)
        call.apply(
            [
                ReserveAddress(
                    directory=directory,
                    range_set=number,
                    address=ip_text(ip),
                    container_id=call.container_id,
                    ifname=call.ifname,
                )
                for number, (ip, _) in enumerate(chosen)
            ]
        )
    call.hand_out([ip for ip, _ in chosen])
    ips = [IPConfig(Address(ip, one.subnet.prefixlen), one.gateway) for ip, one in chosen]
    return Result(ips=ips, routes=routes, dns=dns)


def examine(call: Call) -> None:
    """Read all that ADD reads of the configuration, and raise what it would raise."""
    from cni_py.interface.addressing import check_route

    ipam, _, _ = parse(call)
    for route in parse_routes(ipam):
        check_route(route, route.gw)
    path = netconf.string(ipam, "resolvConf")
    if path:
        resolver(path)
    directory_of(call.conf)


def choose_all(call: Call, range_sets: "list[RangeSet]", requested: list[bytes], pool: Pool) -> "list[Choice]":
    """An address of each set, with its range. CniError when a set has none to give, or a requested one is in no set.

    Then the cursors of the sets before have moved on, as with the Go plugin.
    """
    from cni_py.ipam.ranges import choose, range_of, set_text

    mine = pool.of_attachment(call.container_id, call.ifname)[1]
    chosen: list[Choice] = []
    try:
        for number, ranges in enumerate(range_sets):
            wanted = next((ip for ip in requested if range_of(ranges, ip)), None)
            requested = [ip for ip in requested if ip != wanted]
            try:
                refuse_second(call, ranges, mine if wanted is None else [])
                chosen.append(choose(ranges, wanted, pool.cursor(number), pool.is_free))
            except CniError as error:
                raise CniError(f"failed to allocate for range {number}: {error.msg}", code=error.code) from None
        if requested:
            there = ", ".join(set_text(ranges) for ranges in range_sets)
            asked = " ".join(ip_text(ip) for ip in requested)
            raise InvalidNetworkConfig(
                f"failed to allocate all requested IPs: {asked} (not in the ranges there are: {there})"
            )
    except CniError:
        for number, (ip, _) in enumerate(() if call.dry_run else chosen):
            pool.move_cursor(number, ip_text(ip))
        raise
    return chosen


def refuse_second(call: Call, ranges: "RangeSet", mine: list[str]) -> None:
    """CniError when one of the attachment's reservations, `mine`, is of this set."""
    from cni_py.ipam.ranges import range_of

    for name in mine:
        if is_address(name) and range_of(ranges, parse_ip(name)):
            raise CniError(f"{name} has been allocated to {call.container_id}, duplicate allocation is not allowed")


def delete(call: Call) -> None:
    """Release what the attachment has. Of the configuration only dataDir and the network's name count: the rest may be wrong."""
    try:
        call.withdraw_ports()  # before the addresses are free, for whoever gets them next
    finally:
        release(call)


def release(call: Call) -> list[str]:
    """Release what the attachment has reserved. Returns the names of the reservations: the addresses as text."""
    # With a NUL in it dataDir is no path, so no ADD can have used it. DEL looks in the default directory, and succeeds.
    data_dir = netconf.string(call.conf.ipam or Object(), "dataDir")
    directory = directory_of(call.conf) if "\0" not in data_dir else f"{DATA_DIR}/{call.conf.name}"
    with Pool(directory) as pool:
        who, names = pool.of_attachment(call.container_id, call.ifname)
        pool.release(who, names)
    return names


def check(call: Call) -> None:
    """One reservation is enough, as with the Go plugin, since the configuration may have other range sets by now."""
    parse(call)
    with Pool(directory_of(call.conf), make=True, look=True) as pool:
        if not pool.of_attachment(call.container_id, call.ifname)[1]:
            raise CniError(
                f"host-local: Failed to find address added by container {call.container_id}: none is reserved for it"
            )


def gc(call: Call) -> None:
    """Release what is reserved for attachments that are not in the list. Files that are no reservations are left alone."""
    valid = call.valid_attachments
    if valid is None:
        return
    keep = {form for key in valid for form in (holder(key.container_id, key.ifname), holder(key.container_id))}
    with Pool(directory_of(call.conf)) as pool:
        for who, names in pool.by_holder().items():
            # Of one line (before 2019) or two, without white space in them: else it is no reservation.
            if who not in keep and len(who.split()) == len(who.split(b"\r\n")) <= 2:
                pool.release(who, [name for name in names if is_address(name)])


def status(call: Call) -> None:
    """PluginNotAvailable when a range set is full. Changes nothing, and does not wait for the lock."""
    from cni_py.ipam.ranges import choose

    _, range_sets, _ = parse(call)
    with Pool(directory_of(call.conf), look=True) as pool:
        for number, ranges in enumerate(range_sets):
            try:
                choose(ranges, None, pool.cursor(number), pool.is_free)
            except CniError as error:
                raise PluginNotAvailable(f"range set {number} is full", error.msg) from None


def resolver(path: str) -> DNS:
    """The DNS settings in a file of the form of resolv.conf(5)."""
    from cni_py.ipam.resolvconf import read

    return read(path)


def parse(call: Call) -> "tuple[Object, list[RangeSet], list[bytes]]":
    """The ipam object, its range sets in the order of the result, and the requested addresses. InvalidNetworkConfig."""
    from cni_py.ipam.ranges import SETS_MAX, parse_sets

    ipam, runtime = call.conf.ipam, call.conf.runtime_config or Object()
    if ipam is None:
        raise InvalidNetworkConfig("IPAM config missing 'ipam' key: the configuration needs an object \"ipam\"")
    requested = parse_requests(call, runtime)
    range_sets = parse_sets(ipam, runtime)
    widths = [ranges[0].width for ranges in range_sets]
    if len(requested) > SETS_MAX:
        raise InvalidNetworkConfig(f"{len(requested)} addresses are asked for", f"{SETS_MAX} at most")
    version = call.conf.cni_version
    if not at_least(version, "0.3.0") and len(widths) != len(set(widths)):
        raise InvalidNetworkConfig(f"CNI version {version} does not support more than 1 address per family")
    return ipam, range_sets, requested


def parse_requests(call: Call, runtime: Object) -> list[bytes]:
    """The addresses that CNI_ARGS, args.cni and the capability `ips` ask for, each once. A prefix length is not looked at."""
    cni = netconf.child(call.conf.args or Object(), "cni") or Object()
    asked = netconf.parse_cni_args(call.args, ("IP",)).get("IP", "")
    texts = [*([asked] if asked else []), *netconf.strings(cni, "ips"), *netconf.strings(runtime, "ips")]
    try:
        return list(dict.fromkeys(parse_address(text).packed if "/" in text else parse_ip(text) for text in texts))
    except ValueError as error:
        raise InvalidNetworkConfig(f"the address that was asked for cannot be read: {error}") from None


def parse_routes(ipam: Object) -> "list[Route]":
    """The routes of the result. InvalidNetworkConfig for one without dst, of which the Go plugin makes "<nil>"."""
    try:
        return [route_from_json(entry) for entry in netconf.objects(ipam, "routes")]
    except ValueError as error:
        raise InvalidNetworkConfig(f"routes: {error}") from None


PLUGIN = Plugin("host-local", add=add, delete=delete, check=check, gc=gc, status=status, examine=examine)

"""sbr: source-based routing. What comes from an address of the container leaves by the interface that has the address.

    ADD    the plan -> result: prevResult
    DEL    undoes the record; without one, the rules from the interface's addresses, and the routes in their tables
    CHECK  rules and routes of the ADD's record against the kernel; without a record, that each address has its rule
    GC     attachments of this network that the runtime no longer knows
    STATUS that the kernel has rules, and that the configuration can be used

What ADD makes, all of it in the container: for each address of the interface a table, the first free one from 100 on, with
a default route by the address's gateway and the routes of the interface; a rule that leads packets from the address to
the table; and then the interface's routes are taken from the table main. With `table` only the rules, to that table.

Tables are chosen under a lock of the container's namespace. Example configuration: conf/sbr.conflist.
"""

from cni_py.addr import Address, parse_ip
from cni_py.attachment import records
from cni_py.attachment.call import Call, Plugin, collect_garbage
from cni_py.errors import CniError, InvalidNetworkConfig, PluginNotAvailable
from cni_py.protocol import netconf
from cni_py.protocol.result import known_result, prev_result

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_py.attachment.engine import Op
    from cni_py.protocol.result import IPConfig, Result


TABLE_MAX = (1 << 32) - 1


class SbrConf:
    """`table` None: a free one for each address. `gateways` by family, 4 and 6; read by check_add()."""

    __slots__ = ("gateways", "hints", "table", "texts")

    def __init__(self, call: Call) -> None:
        raw = call.conf.raw
        self.table = netconf.optional_integer(raw, "table")
        self.texts = netconf.strings(raw, "gateways")
        self.hints = netconf.boolean(raw, "addSourceHints")
        self.gateways: dict[int, bytes] = {}

    def check_add(self) -> None:
        """InvalidNetworkConfig for what only ADD and STATUS refuse."""
        if self.table is not None and not 0 < self.table <= TABLE_MAX:
            raise InvalidNetworkConfig(f"table: {self.table} is no table (they are 1 to {TABLE_MAX})")
        if len(self.texts) > 2:
            raise InvalidNetworkConfig("gateways list cannot contain more than 2 entries (one IPv4, one IPv6)")
        for text in self.texts:
            try:
                gateway = parse_ip(text)
            except ValueError:
                raise InvalidNetworkConfig(f"invalid static gateway IP address: {text}") from None
            family = 4 if len(gateway) == 4 else 6
            if family in self.gateways:
                raise InvalidNetworkConfig(f"gateways list contains multiple IPv{family} addresses")
            self.gateways[family] = gateway


def add(call: Call) -> "Result":
    """Route by source."""
    conf = SbrConf(call)
    earlier = prev_result(call.conf)
    if earlier is None:
        raise InvalidNetworkConfig(
            "sbr must be called as chained plugin: it needs the result of one before it (prevResult)"
        )
    if not earlier.ips:
        raise InvalidNetworkConfig(f"No IP addresses supplied on interface: {call.ifname}")
    conf.check_add()
    ips = own_ips(earlier, call.ifname)
    _ = call.kernel.container_fd  # raises where there is no namespace
    if not ips:
        return earlier
    call.begin()
    refuse_repeated(call)
    if call.dry_run:
        call.apply(plan(call, conf, ips))
        return earlier
    from cni_py.interface import tables

    with tables.lock(call.kernel):
        call.apply(plan(call, conf, ips))
    return earlier


def own_ips(earlier: "Result", ifname: str) -> "list[IPConfig]":
    """The addresses of the interface, and those that name none, each once."""
    found: dict[bytes, IPConfig] = {}
    for ip in earlier.ips:
        listed = ip.interface is not None and 0 <= ip.interface < len(earlier.interfaces)
        if not listed or earlier.interfaces[ip.interface or 0].name == ifname:
            found.setdefault(ip.address.packed, ip)
    return list(found.values())


def refuse_repeated(call: Call) -> None:
    """CniError where an earlier ADD still stands: the routes are not in main any more, so a second one would lose them."""
    from cni_py.attachment import engine
    from cni_py.interface.source_routing import RouteBySource

    if any(isinstance(op, RouteBySource) for op in engine.readable(call.executor.before or ())):
        raise CniError(f"the routes of {call.ifname} are separate already", "an ADD without a DEL came before")


def plan(call: Call, conf: SbrConf, ips: "list[IPConfig]") -> "list[Op]":
    """The operations, in order: tables, rules, main. CniError where there is no interface."""
    from cni_py.interface import source_routing as routing
    from cni_py.interface import tables
    from cni_py.kernel import inet

    side, netns = call.kernel.container, call.kernel.container_cookie
    link = side.link(call.ifname)
    if link is None and not call.dry_run:  # in a dry run the plugin before has not made it
        raise CniError(f"Cannot find network interface {call.ifname}", "the container has no such interface")
    if conf.table is not None:
        return [routing.RouteBySource(source=str(ip.address.host()), table=conf.table, netns=netns) for ip in ips]
    index = link.index if link is not None else 0
    present = inet.copies(side, index) if index else []
    addresses = [ip.address for ip in ips]
    filled: list[Op] = []
    led: list[Op] = []
    moved: dict[bytes, None] = {}
    for ip, table in zip(ips, tables.free(side, routing.FIRST_TABLE, len(ips)), strict=True):
        routes = routing.table_routes(ip, conf.gateways.get(ip.address.family), present, addresses, index)
        filled += [routing.FillTable(table=table, routes=routes, netns=netns)] if routes else []
        led.append(routing.RouteBySource(source=str(ip.address.host()), table=table, netns=netns))
        moved.update(dict.fromkeys(body for body in present if routing.fits(body, ip.address, addresses)))
    hinted = routing.hints(ips, index) if conf.hints else []
    taken = [body for body in moved if not (conf.hints and routing.stays(body, hinted))]
    main: list[Op] = []
    if taken:
        main.append(routing.EmptyTable(table=inet.RT_TABLE_MAIN, routes=taken, netns=netns))
    if hinted:
        main.append(routing.FillTable(table=inet.RT_TABLE_MAIN, routes=hinted, netns=netns))
    return filled + led + main


def delete(call: Call) -> None:
    """Remove rules and tables, whatever the configuration now says."""
    call.finish_delete(call.run_all(Call.undo_recorded, delete_unrecorded))


def delete_unrecorded(call: Call) -> None:
    """The Go plugin's rules and routes, and ours whose record is lost: they are known by the addresses."""
    if call.is_recorded or not call.kernel.has_container:
        return
    from cni_py.interface.source_routing import delete_by_source
    from cni_py.kernel import inet

    side = call.kernel.container
    link = side.link(call.ifname)
    index = link.index if link is not None else 0
    held = inet.addresses(side)
    sources = {Address(addr.address.packed, 0).host() for addr in held if index and addr.index == index}
    earlier = known_result(call.conf)
    elsewhere = {addr.address.packed for addr in held if addr.index != index}
    for ip in own_ips(earlier, call.ifname) if earlier is not None else ():
        if ip.address.packed not in elsewhere:
            sources.add(ip.address.host())
    delete_by_source(side, sources, index, netconf.optional_integer(call.conf.raw, "table"))


def check(call: Call) -> None:
    """Compare rules and routes with the kernel."""
    SbrConf(call).check_add()
    earlier = prev_result(call.conf)
    record = records.load(call.key, call.plugin)
    if record is not None:
        from cni_py.attachment import engine

        call.check_plan(engine.readable(record.ops))
    elif earlier is not None:
        check_rules(call, own_ips(earlier, call.ifname))


def check_rules(call: Call, ips: "list[IPConfig]") -> None:
    """CniError for an address without a rule, after an ADD that left no record: the Go plugin's."""
    from cni_py.kernel import rules

    led = {rule.source for rule in rules.rules(call.kernel.container)} if ips else set()
    lacking = [str(ip.address.host()) for ip in ips if ip.address.host() not in led]
    if lacking:
        raise CniError(f"the container has no rule for packets from {', '.join(lacking)}")


def gc(call: Call) -> None:
    """Undo stale attachments by their records."""
    call.finish_delete(collect_garbage(call))


def status(call: Call) -> None:
    """Whether an ADD can be served now."""
    from cni_py.kernel import rules

    try:
        SbrConf(call).check_add()
    except CniError as error:
        raise PluginNotAvailable(error.msg, error.details) from error
    try:
        rules.rules(call.kernel.host)
    except OSError as error:
        raise PluginNotAvailable("this kernel cannot route by source", str(error.strerror)) from error


PLUGIN = Plugin("sbr", add=add, delete=delete, check=check, gc=gc, status=status)

"""vrf: puts the container's interface into a VRF, which has a routing table of its own. Chained behind a plugin that made it.

    ADD    the plan -> result: prevResult
    DEL    undoes the record; without one, takes the interface out of the VRF, and removes the VRF with its last interface
    CHECK  VRF, interface, addresses and routes of the ADD's record against the kernel; without a record, VRF and interface
    GC     attachments of this network that the runtime no longer knows
    STATUS that the kernel has VRFs, and that the configuration can be used

What ADD makes, all of it in the container: the VRF `vrfname` unless it is there, with the routing table `table` or the first
free one from 1 on; then the interface is put into it, and its routes of the table main into the VRF's (interface/vrf.py says
what the kernel loses thereby).

Tables are chosen under a lock of the container's namespace. Example configuration: conf/vrf.conflist.
"""

from cni_py import version
from cni_py.attachment import records
from cni_py.attachment.call import Call, Plugin, collect_garbage
from cni_py.errors import CniError, InvalidNetworkConfig, PluginNotAvailable
from cni_py.protocol import netconf
from cni_py.protocol.result import prev_result

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_py.attachment.engine import Op
    from cni_py.kernel.rtnl import Link, Rtnl
    from cni_py.protocol.result import Result

FIRST_TABLE = 1  # the first that is given to a VRF; the Go plugin's, too
TABLE_MAX = (1 << 32) - 1


class VrfConf:
    """The keys of the configuration. `table` 0: that of the VRF, or a free one."""

    __slots__ = ("name", "table")

    def __init__(self, call: Call) -> None:
        self.name = netconf.string(call.conf.raw, "vrfname")
        self.table = netconf.integer(call.conf.raw, "table")

    def check(self) -> None:
        """InvalidNetworkConfig for what only a DEL passes over."""
        if not self.name:
            raise InvalidNetworkConfig("configuration is expected to have a valid vrf name: vrfname")
        netconf.check_ifname(self.name, "vrfname")
        if not 0 <= self.table <= TABLE_MAX:
            raise InvalidNetworkConfig(f"table: {self.table} is no table (they are 1 to {TABLE_MAX})")


def add(call: Call) -> "Result":
    """Put the interface into the VRF."""
    conf = VrfConf(call)
    conf.check()
    earlier = needed_result(call)
    _ = call.kernel.container_fd  # raises where there is no namespace
    call.begin()
    if call.dry_run:
        call.apply(plan(call, conf))
        return earlier
    from cni_py.interface import tables

    with tables.lock(call.kernel):
        call.apply(plan(call, conf))
    return earlier


def needed_result(call: Call) -> "Result":
    """prevResult. InvalidNetworkConfig where there is none."""
    earlier = prev_result(call.conf)
    if earlier is None:
        raise InvalidNetworkConfig("missing prevResult from earlier plugin: vrf must be called as chained plugin")
    return earlier


def plan(call: Call, conf: VrfConf) -> "list[Op]":
    """The operations, in order. CniError for an interface that is missing or has a master, and for another VRF of that name."""
    from cni_py.interface import tables, vrf

    side, netns = call.kernel.container, call.kernel.container_cookie
    link = side.link(call.ifname)
    if link is None and not call.dry_run:  # in a dry run the plugin before has not made it
        raise CniError(f"could not get link by name {call.ifname}: the container has no such interface")
    if link is not None and link.master:
        master = side.link(link.master)
        raise CniError(f"interface {call.ifname} has already a master set: {master.name if master else link.master}")
    found = named_vrf(side, conf.name)
    if found is None:
        table = conf.table or tables.free(side, FIRST_TABLE, 1)[0]
    else:
        table = tables.of_vrf(found)
        if conf.table not in (0, table):
            raise CniError(f"VRF {conf.name} already exist with different routing table {table}")
    return [
        vrf.AddVrf(name=conf.name, table=table, netns=netns),
        vrf.JoinVrf(
            ifname=call.ifname,
            name=conf.name,
            table=table,
            addresses=vrf.addresses_at_stake(side, link) if link is not None else [],
            routes=vrf.routes_at_stake(side, link) if link is not None else [],
            netns=netns,
        ),
    ]


def named_vrf(side: "Rtnl", name: str) -> "Link | None":
    """The VRF of that name; None where there is none. CniError where it is an interface of another kind."""
    link = side.link(name)
    if link is not None and link.kind != "vrf":
        raise CniError(f"Netlink {name} is not a VRF: an interface of the container has that name")
    return link


def delete(call: Call) -> None:
    """Take the interface out of the VRF, whatever the configuration now says."""
    call.finish_delete(call.run_all(Call.undo_recorded, delete_unrecorded))


def delete_unrecorded(call: Call) -> None:
    """What the Go plugin made, or we, with a record that is lost: the VRF is the interface's, if it is called as configured."""
    if call.is_recorded or not call.kernel.has_container:
        return
    side = call.kernel.container
    link = side.link(call.ifname)
    master = side.link(link.master) if link is not None and link.master else None
    name = VrfConf(call).name
    if link is None or master is None or master.kind != "vrf" or name not in ("", master.name):
        return
    from cni_py.interface import tables, vrf

    with tables.lock(call.kernel, needed=False):
        vrf.leave(side, link, master)
        vrf.delete_empty(side, master.name)


def check(call: Call) -> None:
    """Compare VRF, interface, addresses and routes with the kernel."""
    conf = VrfConf(call)
    conf.check()
    needed_result(call)
    from cni_py.interface import tables

    record = records.load(call.key, call.plugin)
    if record is not None:
        from cni_py.attachment import engine

        call.check_plan(engine.readable(record.ops))
    side = call.kernel.container
    found = named_vrf(side, conf.name)
    if found is None:
        raise CniError(f"Link not found: the container has no VRF {conf.name}")
    if conf.table not in (0, tables.of_vrf(found)):
        raise CniError(f"VRF {conf.name} has the routing table {tables.of_vrf(found)}, not {conf.table}")
    link = side.link(call.ifname)
    if link is None or link.master != found.index:
        raise CniError(f"failed to find {call.ifname} associated to vrf {conf.name}")


def gc(call: Call) -> None:
    """Undo stale attachments by their records."""
    call.finish_delete(collect_garbage(call))


def status(call: Call) -> None:
    """Whether an ADD can be served now."""
    from cni_py.kernel import rtnl

    try:
        VrfConf(call).check()
    except CniError as error:
        raise PluginNotAvailable(error.msg, error.details) from error
    if not rtnl.has_kind(call.kernel.host, "vrf"):
        raise PluginNotAvailable("this kernel has no VRFs", "it lacks CONFIG_NET_VRF (module vrf)")


PLUGIN = Plugin(
    "vrf",
    add=add,
    delete=delete,
    check=check,
    gc=gc,
    status=status,
    versions=version.spoken_by("vrf"),
)

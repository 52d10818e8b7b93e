"""Write attachment records for what the Go plugins made, so that our plugins can take over their running containers.

A DEL of ours works without a record as long as the runtime knows the result and the namespace exists. With a record it works
without both, and GC knows the attachment. A record lists what the kernel shows: the result in libcni's cache says where to look,
and an operation that CHECK would not find is left out.
"""

from collections.abc import Callable, Iterable, Iterator

from cni_py.addr import ip_text
from cni_py.attachment import records
from cni_py.attachment.call import Call
from cni_py.attachment.engine import Op
from cni_py.attachment.locks import attachment_lock
from cni_py.attachment.naming import Attachment
from cni_py.attachment.records import Record
from cni_py.errors import CniError, os_error
from cni_py.ports import chains
from cni_py.protocol import conflist
from cni_py.protocol.cache import Entry
from cni_py.protocol.netconf import NetConf, boolean, string
from cni_py.protocol.result import Result, prev_result
from cni_py.restore.outcome import Outcome

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_py.protocol.gojson import Encodable


class Adopted(Outcome):
    """Which operations were recorded for one plugin's part of an attachment."""

    __slots__ = ()

    def to_json(self) -> "dict[str, Encodable]":
        return {**super().to_json(), "adopted": self.done, "error": "; ".join(self.errors)}


def adopt_all(entries: Iterable[Entry], *, dry_run: bool = False) -> Iterator[Adopted]:
    """Write the missing records for the attachments in libcni's cache; with `dry_run` only say which.

    Errors are in the outcomes: a broken attachment does not keep the others from being adopted.
    """
    for entry in entries:
        try:
            network = conflist.parse(entry.config, "the cached configuration")
        except CniError as error:
            unknown = Adopted(Attachment(*entry.key), "")
            unknown.errors.append(str(error))
            yield unknown
            continue
        for plugin in network.members:
            kind = string(plugin, "type")
            if kind not in OPERATIONS:
                continue  # DEL of the other plugins finds everything without a record
            found = Adopted(Attachment(*entry.key), kind)
            try:
                request = conflist.request(network, plugin, entry.capability_args, entry.result)
                _adopt(_call(entry, kind, NetConf.parse(request)), found, dry_run=dry_run)
            except CniError as error:
                found.errors.append(str(error))
            except OSError as error:
                found.errors.append(str(os_error("cannot ask the kernel", error)))
            yield found


def _call(entry: Entry, plugin: str, conf: NetConf) -> Call:
    """The call as CHECK would get it."""
    return Call("CHECK", plugin, conf, container_id=entry.container_id, netns=entry.known_netns, ifname=entry.ifname)


def _adopt(call: Call, found: Adopted, *, dry_run: bool) -> None:
    earlier = prev_result(call.conf)
    if earlier is None:
        found.skipped = "the cache has no result of it"
        return
    if not call.kernel.has_container:
        found.skipped = "its network namespace is gone: GC removes what is left of it"
        return
    with attachment_lock(call.key, call.plugin):
        if records.load(call.key, call.plugin) is not None:
            found.skipped = "it has a record already"
            return
        ops = [op for op in OPERATIONS[call.plugin](call, earlier) if _is_there(op, call)]
        if not ops:
            found.skipped = "the kernel has nothing of it"
            if call.plugin == "portmap" and chains.of_go_tables(call):
                found.skipped = "the Go plugins' nftables table has its ports: a DEL finds them there without a record"
            return
        found.done = [op.describe() for op in ops]
        if not dry_run:
            _write(call, [*_listed(call, earlier), *ops])


def _is_there(op: Op, call: Call) -> bool:
    try:
        return op.check(call.kernel) is None
    except CniError:
        return False


def _write(call: Call, ops: list[Op]) -> None:
    record = Record(call.key, call.plugin)
    record.netns = call.netns
    record.container_cookie = call.kernel.container_cookie
    record.host_cookie = call.kernel.host_cookie
    record.ops = [op.to_json() for op in ops]
    record.save()
    record.finish()


def _listed(call: Call, earlier: Result) -> list[Op]:
    """Enter the container in the index of published ports, as an ADD of portmap does; the operation is recorded, too."""
    if call.plugin != "portmap":
        return []
    from cni_py.ports.index import ListPublication
    from cni_py.ports.mapping import container_addresses

    addresses = container_addresses(earlier, call.ifname)
    op = ListPublication(addresses=[ip_text(address.packed) for address in addresses])
    op.apply(call.kernel)
    return [op]


def of_pair(call: Call, earlier: Result) -> list[Op]:
    """bridge, ptp: the veth pair, and masquerading."""
    from cni_py.interface.common import AddVeth

    host, inside = call.kernel.host, call.kernel.container.link(call.ifname)
    listed = [host.link(interface.name) for interface in earlier.interfaces if not interface.sandbox]
    ends = [link for link in listed if link is not None and link.kind == "veth"]
    pair: list[Op] = [
        AddVeth(name=end.name, ifname=call.ifname, mtu=end.mtu, host_mac=end.mac, container_mac=inside.mac)
        for end in ends
        if inside is not None and inside.link == end.index and end.link == inside.index
    ]
    if not boolean(call.conf.raw, "ipMasq") or not earlier.ips:
        return pair
    from cni_py.iptables.masquerade import MasqueradeByIptables

    return [*pair, MasqueradeByIptables(addresses=[str(ip.address) for ip in earlier.ips])]


def of_portmap(call: Call, earlier: Result) -> list[Op]:
    """portmap: the published ports."""
    from cni_py.ports import by_iptables
    from cni_py.ports.config import PortmapConf
    from cni_py.ports.mapping import container_addresses

    return by_iptables.publish(PortmapConf(call.conf), container_addresses(earlier, call.ifname))


def of_firewall(call: Call, earlier: Result) -> list[Op]:
    """firewall: what firewalld has bound; else the rules for the container's addresses, and its bridge's policy."""
    from cni_py.firewalld import sources
    from cni_py.iptables.forward import PassForwarded
    from cni_py.plugins.firewall_conf import FIREWALLD, FirewallConf

    conf = FirewallConf(call)
    packed = [ip.address.packed for ip in earlier.ips]
    bound = sources.bound(packed, conf.zone, here=conf.asked != FIREWALLD) if conf.may_be_firewalld else []
    if bound:
        return [sources.BindSource(source=source, zone=conf.zone) for source in bound]
    addresses = [str(ip.address) for ip in earlier.ips]
    policy = conf.policy if conf.has_policy and conf.bridge else ""
    return [
        PassForwarded(
            addresses=addresses,
            admin_chain=conf.admin_chain,
            bridge=conf.bridge if policy else "",
            policy=policy,
            always=True,
        )
    ]


def of_bandwidth(call: Call, earlier: Result) -> list[Op]:
    """bandwidth: the limits, and the ifb."""
    from cni_py.plugins import bandwidth
    from cni_py.plugins.bandwidth_conf import BandwidthConf

    conf = BandwidthConf(call.conf)
    if conf.ingress is None and conf.egress is None:
        return []
    conf.check()
    name, mtu = bandwidth.host_end(call, earlier)
    return [op for op in bandwidth.plan(call, conf, name, mtu, bandwidth.shared_ifb_name(call)) if op.owned]


OPERATIONS: dict[str, Callable[[Call, Result], list[Op]]] = {
    "bandwidth": of_bandwidth,
    "bridge": of_pair,
    "firewall": of_firewall,
    "portmap": of_portmap,
    "ptp": of_pair,
}

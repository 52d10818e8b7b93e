"""Operations of the firewall plugin: what a host's FORWARD rules must let pass, and which bridges are kept apart."""

import errno

from cni_py import files
from cni_py.attachment import records
from cni_py.attachment.context import Kernel
from cni_py.attachment.engine import Op
from cni_py.attachment.locks import nftables_lock
from cni_py.attachment.naming import is_vlan_gateway
from cni_py.errors import InvalidNetworkConfig, os_error, warn
from cni_py.files import make_folder, run_dir
from cni_py.kernel.nf_tables import BRIDGE, INET, Change, Element, NftUnavailable, concat, ifname_key
from cni_py.kernel.rtnl import check_name
from cni_py.kernel.sysctl import bridged_packets_pass_ip_rules
from cni_py.lean import os
from cni_py.nftables import ruleset
from cni_py.nftables.elements import commit, put, take

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from cni_py.nftables.bridge_users import Users
    from cni_py.protocol.result import Result

PLUGIN = "firewall"  # whose records they are
ISOLATED = "isolated"  # a set of the bridge family
SETS = ("policed", "same_bridge")
# of rmdir: gone, in use, no folder at all, or on a file system that takes nothing
HARMLESS = (errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR, errno.ELOOP, errno.EROFS)
BRIDGES = ("bridge", "openvswitch")  # kinds of link whose ports are containers
POLICIES = ("same-bridge", "isolated")


def refuse_without_bridge(kernel: Kernel, policy: str, names: "Sequence[str]") -> None:
    """InvalidNetworkConfig when the first of the host's interfaces in a prevResult is no bridge; one that is not there may be."""
    for name in names[:2]:
        try:
            check_name(name)
        except OSError as error:
            raise InvalidNetworkConfig(f'prevResult names an interface that cannot be one: "{name}"') from error
    link = kernel.host.link(names[0]) if names else None
    if not names or (link is not None and link.kind not in BRIDGES):
        found = f'its "{names[0]}" is none' if names else "it names no interface of the host"
        raise InvalidNetworkConfig(
            f'ingressPolicy "{policy}" is about the containers of a bridge, and prevResult has no bridge: {found}',
            'make sure to chain "firewall" behind "bridge", or leave ingressPolicy out',
        )


def routed_by(host_side: "Sequence[str]") -> str:
    """Which of the host's interfaces in a prevResult the host routes to the container by: "" when it names none.

    The bridge plugin names its bridge first, and last the interface that has the gateway in a VLAN, where there is one.
    """
    gateways = [name for name in host_side[2:] if is_vlan_gateway(name, host_side[0])]
    return "".join(gateways[:1] or host_side[:1])


def bridges_of(earlier: "Result") -> list[str]:
    """What a policy of the container may be of: the first interface, as with the Go plugin, and routed_by()."""
    host_side = [interface.name for interface in earlier.interfaces if not interface.sandbox]
    first = [interface.name for interface in earlier.interfaces[:1]]
    return list(dict.fromkeys(name for name in (*first, routed_by(host_side)) if name))


class KeepApart(Op):
    """Isolate bridges from each other (same-bridge), and containers of one bridge from each other (isolated).

    In a VLAN `bridge` is the bridge's interface there, which what is routed comes and goes by (interface/vlan_gateway.py).

    Published ports stay reachable. The elements of a bridge are shared by its containers. A folder has a file for each: while
    there are others the elements stay. When it is empty, which may be a loss, the bridge's ports in the kernel decide.
    """

    bridge: str
    policy: str
    nft_family = INET
    owned = True
    restorable = True
    line = "host: nft: bridge {bridge} is kept apart from other such bridges (ingressPolicy {policy})"
    deed = "keep bridge {bridge} apart from others (nftables)"

    def elements(self) -> "list[tuple[str, Element]]":
        """Sets, and the elements in them: for every policy, then for this one alone."""
        key = ifname_key(self.bridge)
        comment = f"firewall {self.bridge}"
        found = [("policed", Element(key, None, comment))]
        if self.policy == "same-bridge":
            found.append(("same_bridge", Element(concat(key, key), None, comment)))
        return found

    def folder(self, kernel: Kernel, policy: str) -> str:
        """Where the containers of the bridge are listed."""
        return f"{run_dir()}/policies/{kernel.host_cookie}/{policy}-{self.bridge.encode().hex()}"

    def apply(self, kernel: Kernel) -> bool:
        with nftables_lock():
            self._join(kernel)
            return put_shared(kernel, self.elements())

    def _join(self, kernel: Kernel) -> None:
        folder = self.folder(kernel, self.policy)
        make_folder(folder)
        try:
            os.close(os.open(f"{folder}/{kernel.key.hex}", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        except FileExistsError:
            pass  # whatever it is: the name counts
        except OSError as error:
            raise os_error(f"cannot write to {folder}", error) from error

    def undo(self, kernel: Kernel) -> None:
        self.withdraw(kernel, lambda _: False)

    def withdraw(self, kernel: Kernel, is_gone: "Callable[[str], bool]") -> None:
        """Let the container leave; the elements go with the last. `is_gone` as in leave_stale()."""
        if self.policy not in POLICIES or not 0 < len(self.bridge.encode()) < 16:
            return  # a damaged record
        from cni_py.nftables.bridge_users import Users

        users = Users(kernel, self.bridge, is_gone)
        other = KeepApart(bridge=self.bridge, policy=POLICIES[1 - POLICIES.index(self.policy)])
        with nftables_lock():
            strike(f"{self.folder(kernel, self.policy)}/{kernel.key.hex}")
            if self.is_held(kernel, users):
                return
            every, *own = self.elements()
            try:
                remove_shared(kernel, own if other.is_held(kernel, users) else [*own, every])
            except NftUnavailable:
                return  # then nothing of ours can be there

    def is_held(self, kernel: Kernel, users: "Users") -> bool:
        """Whether another container on the bridge needs the policy, or may. The folder is gone where none does."""
        folder = self.folder(kernel, self.policy)
        if set(files.listed(folder)) - {kernel.key.hex} or users.need(self):
            return True
        for path in (folder, os.path.dirname(folder), os.path.dirname(os.path.dirname(folder))):
            try:
                os.rmdir(path)
            except OSError as error:
                if error.errno not in HARMLESS:
                    raise
        return False

    def check(self, kernel: Kernel) -> str | None:
        for set_name, element in self.elements():
            if not kernel.nft.get(set_name, (element.key,)):
                return f"nftables set {set_name} has lost {self.bridge}"
        return None


def put_shared(kernel: Kernel, elements: "Sequence[tuple[str, Element]]") -> bool:
    """Put in those that lack of elements that are nobody's own, under the lock. False when all are there already."""
    ruleset.ensure_table(kernel.nft)
    lacking = [(name, element) for name, element in elements if not kernel.nft.get(name, (element.key,))]
    if lacking:
        changes = [Change(True, name, [element]) for name, element in lacking]
        commit(kernel, changes, ruleset.policy_chain)
    return bool(lacking)


def remove_shared(kernel: Kernel, elements: "Sequence[tuple[str, Element]]") -> None:
    """Take them out, under the lock: at once, since a second transaction would wait for the first one's to be freed."""
    found = [(name, list(kernel.nft.get(name, (element.key,)).values())) for name, element in elements]
    kernel.nft.transaction([Change(False, name, there) for name, there in found if there])


class IsolatePort(Op):
    """What another isolated port of the bridge sends does not reach this one, whatever it is.

    No IP rule sees that unless br_netfilter is on. The bridge family has no conntrack: it drops, whoever began.
    """

    name: str
    nft_family = BRIDGE
    owned = True
    restorable = True
    line = "host: nft: no frame from other isolated ports to {name}"
    deed = "isolate bridge port {name} (nftables)"

    def element(self, kernel: Kernel) -> Element:
        """The one in the set."""
        return Element(ifname_key(self.name), None, kernel.key.comment)

    def apply(self, kernel: Kernel) -> bool:
        try:
            return put(kernel, ISOLATED, self.element(kernel), family=BRIDGE)
        except NftUnavailable as error:
            warn(f"containers on the bridge of {self.name} reach each other unless br_netfilter is on: {error}")
            return False

    def undo(self, kernel: Kernel) -> None:
        take(kernel, ISOLATED, ifname_key(self.name), BRIDGE)

    def check(self, kernel: Kernel) -> str | None:
        try:
            if kernel.nft.get(ISOLATED, (ifname_key(self.name),), BRIDGE):
                return None
        except NftUnavailable:  # as apply() has said
            return None
        if bridged_packets_pass_ip_rules(4) and records.load(kernel.key, PLUGIN) is None:
            return None  # made by the Go plugin, which relies on br_netfilter
        return f"nftables set {ISOLATED} of table bridge cni_py has lost {self.name}"


def policies(kernel: Kernel) -> "Iterator[tuple[KeepApart, str]]":
    """The policies of bridges that have a folder, and the folder."""
    top = f"{run_dir()}/policies/{kernel.host_cookie}"
    for folder in files.listed(top):
        policy, _, name = folder.rpartition("-")
        try:
            yield KeepApart(bridge=bytes.fromhex(name).decode(), policy=policy), f"{top}/{folder}"
        except ValueError:
            continue  # nothing of ours


def forget_policies(kernel: Kernel, bridges: "Sequence[str]") -> None:
    """DEL without a record: the container leaves its bridge and all whose lists have it, and its port is no isolated one."""
    found = [op for op, folder in policies(kernel) if os.path.lexists(f"{folder}/{kernel.key.hex}")]
    try:
        for bridge in bridges:
            if 0 < len(bridge.encode()) < 16 and kernel.nft.get("policed", (ifname_key(bridge),)):
                found += [KeepApart(bridge=bridge, policy=policy) for policy in POLICIES]
    except NftUnavailable:
        return  # then nothing of ours can be there
    for op in found:
        op.undo(kernel)
    IsolatePort(name=kernel.key.host_veth).undo(kernel)


def leave_stale(kernel: Kernel, is_gone: "Callable[[str], bool]") -> None:
    """GC: let those leave the bridges' lists whose record is lost and who have no port there; what nobody needs goes.

    `is_gone` says whether the runtime has no such attachment any more, by the alias of a port.
    """
    from cni_py.nftables import bridge_users

    for op, folder in list(policies(kernel)):
        if not os.path.isdir(folder):
            strike(folder)
        for hexed in files.listed(folder):
            if not bridge_users.has_record(hexed) and not bridge_users.has_port(kernel, op.bridge, hexed, is_gone):
                strike(f"{folder}/{hexed}")
    for op in in_force(kernel):
        op.withdraw(kernel, is_gone)


def in_force(kernel: Kernel) -> list[KeepApart]:
    """What the elements in the kernel say, both policies of each bridge."""
    try:
        comments = {element.comment.partition(" ") for name in SETS for element in kernel.nft.dump(name)}
    except NftUnavailable:
        return []
    bridges = sorted(bridge for whose, _, bridge in comments if whose == PLUGIN and bridge)
    return [KeepApart(bridge=bridge, policy=policy) for bridge in bridges for policy in POLICIES]


def strike(path: str) -> None:
    """Remove an entry of a folder, whatever it is; one that cannot be removed is left to GC."""
    for remove_it in (os.unlink, os.rmdir):
        try:
            remove_it(path)
        except OSError:
            continue
        return

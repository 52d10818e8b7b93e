"""Operations on nftables: elements of the constant tables in kernel/nftables.py, each with its attachment in its comment."""

import errno

from cni_py import heirs, portclaims
from cni_py.addr import Address, mac_text, parse_address, parse_ip
from cni_py.engine import Op
from cni_py.errors import CniError, InvalidNetworkConfig, os_error, warn
from cni_py.kernel import nftrules
from cni_py.kernel.nftables import BRIDGE, INET, Change, Element, NftUnavailable, concat, ifname_key
from cni_py.locks import nftables_lock
from cni_py.portclaims import Claimant, Draft
from cni_py.portmappings import Mapping, condition_id, parse_mappings, vetted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from cni_py.kernel.conntrack import Flow
    from cni_py.kernel.context import Kernel
    from cni_py.records import Attachment


def masquerade(addresses: "Iterable[Address]") -> list[Op]:
    """What bridge's ipMasq needs for the container's addresses."""
    return [Masquerade(address=str(address)) for address in addresses]


def spoof_check(host_veth: str, mac: bytes) -> list[Op]:
    """What bridge's macspoofchk needs."""
    return [CheckSource(name=host_veth, mac=mac)]


def commit(kernel: "Kernel", changes: "Sequence[Change]", chains: "Callable[[], str]") -> None:
    """Send a transaction; when a chain is not there (or somebody flushed the table), make what lacks and send it again."""
    try:
        kernel.nft.transaction(changes)
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise
        from cni_py.kernel import libnftables

        kernel.nft.current.clear()
        for family in {change.family for change in changes}:
            nftrules.ensure_table(kernel.nft, family)
        text = chains()
        if text:
            libnftables.run(text)
        kernel.nft.transaction(changes)


def put(kernel: "Kernel", set_name: str, element: Element, chain: str = "", family: int = INET) -> bool:
    """Put in one element of our own, in place of one that another attachment left. False when it is there already."""
    with nftables_lock():
        nftrules.ensure_table(kernel.nft, family)
        before = kernel.nft.get(set_name, (element.key,), family).get(element.key)
        if before == element:
            return False
        changes = [Change(False, set_name, [before], family)] if before is not None else []
        commit(kernel, [*changes, Change(True, set_name, [element], family)], lambda: chain)
    return True


def take(kernel: "Kernel", set_name: str, key: bytes, family: int = INET) -> None:
    """Take out one element if it is our own."""
    with nftables_lock():
        try:
            found = kernel.nft.get(set_name, (key,), family).get(key)
        except NftUnavailable:
            return  # then nothing of ours can be there
        if found is not None and found.comment[: heirs.HEX] == kernel.key.hex:
            kernel.nft.transaction([Change(False, set_name, [found], family)])


def sweep(
    kernel: "Kernel", network: str, valid: "Iterable[Attachment]", *sets: tuple[str, int], only: str = ""
) -> None:
    """GC: take out the elements of attachments of `network` that are not valid, record or not, from `sets` of a table.

    With `only` (DEL, whose record is lost) those of one attachment, by its hex.
    """
    living = {key.hex for key in valid}
    if only and not _is_there(kernel, {family for _, family in sets}):
        return  # not even a lock file is made
    with nftables_lock():
        changes = []
        try:
            for set_name, family in sets:
                stale = [
                    element
                    for element in kernel.nft.dump(set_name, family)
                    if (
                        element.comment[: heirs.HEX] == only
                        if only
                        else portclaims.network_of(element) == network and element.comment[: heirs.HEX] not in living
                    )
                ]
                if stale:
                    changes.append(Change(False, set_name, stale, family))
        except NftUnavailable:
            return  # then nothing of ours can be there
        _remove(kernel, changes)


def _is_there(kernel: "Kernel", families: "Iterable[int]") -> bool:
    """Whether one of our tables is there."""
    try:
        return any(kernel.nft.has_table(family) for family in families)
    except NftUnavailable:
        return False


def sweep_ports(kernel: "Kernel", network: str, valid: "Iterable[Attachment]", only: str = "") -> None:
    """GC: the same for published ports; with `only` those of one attachment, by its hex."""
    living = {key.hex for key in valid}
    with nftables_lock():
        draft = Draft(kernel.nft)
        try:
            evicted = {only} if only else portclaims.holders_in(draft, network) - living
            for hexed in evicted:
                portclaims.evict(draft, hexed)
        except NftUnavailable:
            return  # then nothing of ours can be there
        waiting = [heir for hexed in evicted for heir in heirs.waiting_at(hexed) if heir[0].hex not in evicted]
        for key, conditions, text in waiting:
            _promote(draft, Claimant(key, conditions), text)
        try:
            commit(kernel, draft.changes(), lambda: "".join(mapping_chains(*heir[1:]) for heir in waiting))
        except OSError as error:
            raise os_error("cannot remove elements of the nftables table cni_py", error) from error
        for hexed in evicted:
            heirs.forget_heirs(hexed)
    forget_flows(kernel, draft.taken_out(), added=False)


def sweep_one(kernel: "Kernel", hexed: str, *sets: str, family: int = INET) -> None:
    """Take out the elements of one attachment, by its hex, from sets of a table. It looks through all of them."""
    changes = []
    with nftables_lock():
        try:
            for name in sets:
                own = [one for one in kernel.nft.dump(name, family) if one.comment[: heirs.HEX] == hexed]
                changes += [Change(False, name, own, family)] if own else []
        except NftUnavailable:
            return  # then nothing of ours can be there
        _remove(kernel, changes)


def sweep_chains(kernel: "Kernel") -> None:
    """GC: remove the chains, and maps, of subnets and conditions that no element leads to any more.

    Not at the DEL of the last container: the next would have to make them anew, which costs more than all else of an ADD.
    """
    with nftables_lock():
        try:
            chains = kernel.nft.chains()
        except NftUnavailable:
            return  # then nothing of ours can be there
        for name in chains:
            if name.startswith(nftrules.MADE_WHEN_NEEDED):
                kernel.nft.remove_unused(name, nftrules.maps_of(name))


def _remove(kernel: "Kernel", changes: "Sequence[Change]") -> None:
    try:
        kernel.nft.transaction(changes)
    except OSError as error:
        raise os_error("cannot remove elements of the nftables table cni_py", error) from error


class Masquerade(Op):
    """What the container sends out of its subnet leaves with the host's address."""

    address: str
    owned = True
    line = "host: nft: what {address} sends out of its subnet is masqueraded"
    deed = "masquerade what {address} sends (nftables)"

    def __init__(self, **values: object) -> None:
        super().__init__(**values)
        parse_address(self.address)  # ValueError: a damaged record

    def element(self, kernel: "Kernel") -> tuple[str, Element]:
        """The map, and the element in it."""
        address = parse_address(self.address)
        name = nftrules.chain_name("outside", address)
        return f"masquerade{address.family}", Element(address.packed, name, kernel.key.comment)

    def apply(self, kernel: "Kernel") -> bool:
        set_name, element = self.element(kernel)
        return put(kernel, set_name, element, nftrules.outside_chain(parse_address(self.address)))

    def undo(self, kernel: "Kernel") -> None:
        set_name, element = self.element(kernel)
        take(kernel, set_name, element.key)

    def check(self, kernel: "Kernel") -> str | None:
        set_name, element = self.element(kernel)
        found = kernel.nft.get(set_name, (element.key,)).get(element.key)
        return None if found == element else f"nftables map {set_name} does not masquerade {self.address}"


class CheckSource(Op):
    """Frames from the container with another MAC than its own are dropped.

    Those to link-local groups (LLDP) come by no chain of the bridge family, and the bridge would still learn from them that
    the MAC of another container is here (br_handle_frame(), net/bridge/br_input.c): it is told not to.
    """

    name: str
    mac: bytes
    owned = True
    line = "host: nft: frames from {name} are dropped unless their source is {mac}"
    deed = "check the source of frames from {name} (nftables)"

    def elements(self, kernel: "Kernel") -> tuple[tuple[str, Element], ...]:
        """The set and the element in it, the permission first."""
        name = ifname_key(self.name)
        return (
            ("spoof_allowed", Element(concat(name, self.mac), None, kernel.key.comment)),
            ("spoof_checked", Element(name, None, kernel.key.comment)),
        )

    def apply(self, kernel: "Kernel") -> bool:
        new = [put(kernel, set_name, element, family=BRIDGE) for set_name, element in self.elements(kernel)]
        port = kernel.host.link(self.name)
        if port is not None and port.slave_kind == "bridge":
            from cni_py.kernel import linksettings

            linksettings.stop_link_local_learning(kernel.host, port.master)
        return any(new)

    def undo(self, kernel: "Kernel") -> None:
        for set_name, element in reversed(self.elements(kernel)):
            take(kernel, set_name, element.key, BRIDGE)

    def check(self, kernel: "Kernel") -> str | None:
        for set_name, element in self.elements(kernel):
            if not kernel.nft.get(set_name, (element.key,), BRIDGE):
                return f"nftables set {set_name} of table bridge cni_py has lost {self.name} {mac_text(self.mac)}"
        return None


class GuardAddress(Op):
    """Nobody beyond the container's own network reaches it but by what is published, or has been asked for by itself."""

    address: str
    owned = True
    line = "host: nft: {address} is closed to other networks, but for published ports"
    deed = "close {address} to other networks (nftables)"

    def element(self, kernel: "Kernel") -> tuple[str, Element]:
        """The set, and the element in it."""
        packed = parse_ip(self.address)
        return f"guarded{4 if len(packed) == 4 else 6}", Element(packed, None, kernel.key.comment)

    def apply(self, kernel: "Kernel") -> bool:
        return put(kernel, *self.element(kernel), nftrules.direct_access_chain())

    def undo(self, kernel: "Kernel") -> None:
        try:
            set_name, element = self.element(kernel)
        except ValueError:  # a damaged record: GC finds the element by its comment
            return
        take(kernel, set_name, element.key)

    def check(self, kernel: "Kernel") -> str | None:
        set_name, element = self.element(kernel)
        found = kernel.nft.get(set_name, (element.key,)).get(element.key)
        lost = f"nftables set {set_name} has lost {self.address}: others may reach it directly"
        return None if found == element else lost


SHOWN_MAX = 200  # characters of conditions that an error repeats
WHOSE = {  # values of PublishPorts.clients in words, with the container's addresses
    "subnet": "; clients in the subnet of {} and on the host's loopback are masqueraded",
    "all": "; all clients of {} are masqueraded",
    "none": "",
}


class PublishPorts(Op):
    """Host ports lead to the container.

    `ports` is the text of portmappings.Mapping, joined; `clients` says whose connections must be masqueraded for the
    answer to come back: "subnet" (and the host's loopback), "all" or "none", for each of the container's `addresses`.
    """

    ports: str
    addresses: str
    clients: str
    conditions4: str
    conditions6: str
    owned = True

    deed = "publish {ports} (nftables)"

    def describe(self) -> str:
        where = "".join(f", for IPv{n} if {text}" for n, text in self.conditions().items() if text)
        whose = WHOSE.get(self.clients, "").format(self.addresses)
        return f"host: nft: publish {self.ports}{where}{whose}"

    def conditions(self) -> dict[int, str]:
        """By family."""
        return {4: self.conditions4, 6: self.conditions6}

    def chains(self) -> str:
        """The chains that our elements jump to."""
        inside = [nftrules.inside_chain(parse_address(address)) for address in self.addresses.split()]
        return mapping_chains(self.conditions(), self.ports) + "".join(inside)

    def hairpins(self, comment: str) -> "list[tuple[str, Element]]":
        """The elements that masquerade clients, with their maps."""
        found = []
        for text in self.addresses.split() if self.clients != "none" else ():
            address = parse_address(text)
            chain = "masquerade_all" if self.clients == "all" else nftrules.chain_name("inside", address)
            found.append((f"hairpin{address.family}", Element(address.packed, chain, comment)))
        return found

    def apply(self, kernel: "Kernel") -> bool:
        mappings = parse_mappings(self.ports)
        with nftables_lock():
            nftrules.ensure_table(kernel.nft)
            try:
                changed = self._publish(kernel, mappings, Draft(kernel.nft, blind=True))
            except OSError as error:
                if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                    raise
                changed = self._publish(kernel, mappings, Draft(kernel.nft))
        forget_flows(kernel, mappings, added=True)
        return changed

    def _publish(self, kernel: "Kernel", mappings: list[Mapping], draft: Draft) -> bool:
        who = Claimant(kernel.key, self.conditions())
        waiting: dict[str, list[Mapping]] = {}
        portclaims.read_ahead(draft, who, mappings)
        for mapping in mappings:
            holder = portclaims.obtain(draft, who, mapping)
            if holder:
                waiting.setdefault(holder, []).append(mapping)
        for set_name, element in self.hairpins(who.comment):
            draft.put(set_name, element)
        changes = draft.changes()
        for holder, parts in waiting.items():
            heirs.wait_for(holder, who.key, who.conditions, ", ".join(map(str, parts)))
        try:
            commit(kernel, changes, self.chains)
        except CniError as error:
            if self.conditions4 or self.conditions6:
                why = error.details.partition("\n")[
                    0
                ]  # what follows is our own text, with a caret in a wrong line of it
                texts = " and ".join(f'"{text[:SHOWN_MAX]}"' for text in self.conditions().values() if text)
                raise InvalidNetworkConfig("nftables does not take the conditions", f"{texts}: {why}") from error
            raise
        return bool(changes or waiting)

    def undo(self, kernel: "Kernel") -> None:
        try:
            mappings = parse_mappings(self.ports)
            self.hairpins("")
        except ValueError:  # a damaged record
            sweep_ports(kernel, kernel.key.network, [], kernel.key.hex)
            return
        try:
            with nftables_lock():
                self._withdraw(kernel, mappings)
        except NftUnavailable:
            return  # then nothing of ours can be there
        forget_flows(kernel, mappings, added=False)

    def _withdraw(self, kernel: "Kernel", mappings: list[Mapping], *, bequeath: bool = True) -> None:
        draft = Draft(kernel.nft)
        who = Claimant(kernel.key, self.conditions())
        portclaims.read_ahead(draft, who, mappings)
        others: set[str] = set()
        for mapping in mappings:
            others |= portclaims.release(draft, who, mapping)
        for set_name, element in self.hairpins(who.comment):
            if who.owns(draft.get(set_name, element.key)):
                draft.remove(set_name, element.key)
        waiting = heirs.waiting_for(kernel.key) if bequeath else []
        for key, conditions, text in waiting:
            _promote(draft, Claimant(key, conditions), text)
        try:  # the heirs' chains: one that only waited never needed its own
            commit(kernel, draft.changes(), lambda: "".join(mapping_chains(*heir[1:]) for heir in waiting))
        except (CniError, OSError) as error:
            if not waiting:
                raise
            warn(f"nobody takes over the ports of {kernel.key.label}: {error}")
            self._withdraw(kernel, mappings, bequeath=False)  # what is to go must go
            return
        heirs.forget_heirs(kernel.key.hex)
        for holder in others:
            heirs.stop_waiting(holder, kernel.key)

    def check(self, kernel: "Kernel") -> str | None:
        draft = Draft(kernel.nft)
        who = Claimant(kernel.key, self.conditions())
        mappings = parse_mappings(self.ports)
        portclaims.read_ahead(draft, who, mappings)
        for mapping in mappings:
            lost = portclaims.lacking(draft, who, mapping)
            if lost:
                return f"host port {lost} is not published: {mapping}"
        for set_name, element in self.hairpins(who.comment):
            if draft.get(set_name, element.key) != element:
                return f"nftables map {set_name} has lost the container's address"
        return None


def mapping_chains(conditions: dict[int, str], ports: str) -> str:
    """Text for the chains that mappings need, from words that may come from a file and are vetted again."""
    texts = {}
    try:
        mappings = parse_mappings(ports)
    except ValueError:  # a damaged file
        return ""
    for mapping in mappings:
        family, condition = mapping.family, mapping.condition(conditions.get(mapping.family, ""))
        name = condition_id(family, condition)
        words = vetted([condition], f"conditionsV{family}")
        if mapping.share:
            texts["shared", family, name] = nftrules.shared_chain(family, name or str(family), words)
        elif condition:
            texts["", family, name] = nftrules.conditions_chain(family, name, words)
    return "".join(texts.values())


def _promote(draft: Draft, heir: Claimant, text: str) -> None:
    """The heir gets what it waits for, or goes on waiting for another attachment of its container that holds it."""
    waiting: dict[str, list[str]] = {}
    try:
        mappings = parse_mappings(text)
    except ValueError:  # a damaged file
        return
    for mapping in mappings:
        try:
            holder = portclaims.obtain(draft, heir, mapping)
        except CniError as error:  # a third party was quicker: this DEL must not fail for it
            warn(f"{heir.key.label} does not get {mapping}: {error}")
            continue
        if holder:
            waiting.setdefault(holder, []).append(str(mapping))
    for holder, parts in waiting.items():
        heirs.wait_for(holder, heir.key, heir.conditions, ", ".join(parts))


def forget_flows(kernel: "Kernel", mappings: "Sequence[Mapping]", *, added: bool) -> None:
    """Forget the UDP flows that would go on as if the mappings had not been added, or not removed.

    That is a help, not a condition: what fails is said on stderr.
    """
    for family in (4, 6):
        concerned = [mapping for mapping in mappings if mapping.protocol == "udp" and mapping.family == family]
        if concerned:
            try:
                _forget_flows(kernel, concerned, added=added)
            except OSError as error:
                warn(f"cannot look through the tracked UDP flows: {error}")


def _forget_flows(kernel: "Kernel", mappings: "Sequence[Mapping]", *, added: bool) -> None:
    from cni_py.kernel.conntrack import forget_udp

    by_port = {port: mapping for mapping in mappings if mapping.host_ip is None for port in mapping.ports}
    by_address = {(mapping.host_ip, mapping.first): mapping for mapping in mappings if mapping.host_ip is not None}
    own: set[bytes] = set()

    def wrong(flow: "Flow") -> bool:
        mapping = by_address.get((flow.dst, flow.dst_port)) or by_port.get(flow.dst_port)
        if mapping is None:
            return False
        if not added:
            return flow.replier == mapping.container_ip
        if not own:
            own.update(entry.address.packed for entry in kernel.host.addresses())
        if mapping.share and flow.replier not in own and flow.replier != flow.dst:
            return False  # another container that has the port too
        # a flow to an address that is not the host's is merely forwarded: not ours
        return flow.replier != mapping.container_ip and (flow.dst in own or flow.dst[:1] == b"\x7f")

    ports = by_port.keys() | {port for _, port in by_address}
    forget_udp(len(mappings[0].container_ip), ports, wrong)

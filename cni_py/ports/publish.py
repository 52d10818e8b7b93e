"""Publish ports by elements of the nftables maps, and close a container's address to other networks."""

import errno

from cni_py.addr import by_family, parse_address, parse_ip
from cni_py.attachment.engine import Op, split_texts
from cni_py.attachment.locks import nftables_lock
from cni_py.errors import CniError, InvalidNetworkConfig, IOFailure, warn
from cni_py.kernel.nf_tables import INET, Element, NftUnavailable
from cni_py.nftables import ruleset
from cni_py.nftables.elements import SHOWN_MAX, commit, put, take
from cni_py.ports import chains, claims
from cni_py.ports.claims import Claimant
from cni_py.ports.draft import Draft
from cni_py.ports.flows import forget_flows
from cni_py.ports.mapping import MASQUERADED, Mapping, parse_mappings, separated

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_py.attachment.context import Kernel


class GuardAddress(Op):
    """Drop what comes from outside the container's network, except published ports and replies to the container's own
    connections.
    """

    address: str
    nft_family = INET
    owned = True
    restorable = True
    line = "host: nft: {address} is closed to other networks, but for published ports"
    deed = "close {address} to other networks (nftables)"

    def element(self, kernel: "Kernel") -> tuple[str, Element]:
        """The set, and the element in it."""
        packed = parse_ip(self.address)
        return f"guarded{4 if len(packed) == 4 else 6}", Element(packed, None, kernel.key.comment)

    def apply(self, kernel: "Kernel") -> bool:
        return put(kernel, *self.element(kernel), ruleset.direct_access_chain())

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


class PublishPorts(Op):
    """Host ports lead to the container.

    `ports` are texts of mapping.Mapping; `clients` says whose connections must be masqueraded for the
    answer to come back: "subnet" (and the host's loopback), "all" or "none", for each of the container's `addresses`.
    """

    ports: list[str]
    addresses: list[str]
    clients: str
    conditions4: str
    conditions6: str
    nft_family = INET
    owned = True
    restorable = True
    deed = "publish {ports} (nftables)"

    @classmethod
    def translated(cls, fields: "dict[str, object]") -> "dict[str, object]":
        return separated(split_texts(fields, "addresses"), "ports")

    def validate(self) -> None:
        parse_mappings(self.ports)  # ValueError
        by_family(self.addresses)

    def shown(self) -> "dict[str, object]":
        return {**super().shown(), "ports": ", ".join(self.ports)}

    def describe(self) -> str:
        where = "".join(f", for IPv{n} if {text}" for n, text in self.conditions().items() if text)
        whose = MASQUERADED.get(self.clients, "").format(" ".join(self.addresses))
        return f"host: nft: publish {', '.join(self.ports)}{where}{whose}"

    def conditions(self) -> dict[int, str]:
        """By family."""
        return {4: self.conditions4, 6: self.conditions6}

    def chains(self, kernel: "Kernel") -> str:
        """Text for the chains that our elements jump to."""
        from cni_py.ports import successors

        inside = [ruleset.inside_chain(parse_address(address)) for address in self.addresses]
        return successors.mapping_chains(kernel, self.conditions(), parse_mappings(self.ports)) + "".join(inside)

    def hairpins(self, comment: str) -> "list[tuple[str, Element]]":
        """The elements that masquerade clients, with their maps."""
        found = []
        for text in self.addresses if self.clients != "none" else ():
            address = parse_address(text)
            chain = "masquerade_all" if self.clients == "all" else ruleset.chain_name("inside", address)
            found.append((f"hairpin{address.family}", Element(address.packed, chain, comment)))
        return found

    def apply(self, kernel: "Kernel") -> bool:
        mappings = parse_mappings(self.ports)
        chains.clear_ports(kernel, mappings)
        with nftables_lock():
            ruleset.ensure_table(kernel.nft)
            draft = Draft(kernel.nft, blind=True)
            draft.blind = not claims.meets_interval(draft, mappings)
            try:
                changed = self._publish(kernel, mappings, draft)
            except OSError as error:
                # EEXIST: a key that is there. ENOTEMPTY: an interval that overlaps one that is there (nft_rbtree.c)
                if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                    raise
                changed = self._publish(kernel, mappings, Draft(kernel.nft))
        forget_flows(kernel, mappings, added=True)
        return changed

    def _publish(self, kernel: "Kernel", mappings: list[Mapping], draft: Draft) -> bool:
        who = Claimant(kernel.key, self.conditions())
        waiting: dict[str, list[Mapping]] = {}
        claims.read_ahead(draft, who, mappings)
        for mapping in mappings:
            holder = claims.obtain(draft, who, mapping)
            if holder:
                waiting.setdefault(holder, []).append(mapping)
        for set_name, element in self.hairpins(who.comment):
            draft.put(set_name, element)
        changes = draft.changes()
        if waiting:
            from cni_py.ports import successors
        for holder, parts in waiting.items():
            successors.wait_for(holder, successors.Heir(who.key, who.conditions, parts))
        try:
            commit(kernel, changes, lambda: self.chains(kernel))
        except CniError as error:
            if (self.conditions4 or self.conditions6) and not isinstance(error, IOFailure):
                # What follows is our own text, with a caret in a wrong line of it
                why = error.details.partition("\n")[0]
                texts = " and ".join(f'"{text[:SHOWN_MAX]}"' for text in self.conditions().values() if text)
                raise InvalidNetworkConfig("nftables does not take the conditions", f"{texts}: {why}") from error
            raise
        return bool(changes or waiting)

    def undo(self, kernel: "Kernel") -> None:
        mappings = parse_mappings(self.ports)
        try:
            with nftables_lock():
                self._withdraw(kernel, mappings)
        except NftUnavailable:
            return  # then nothing of ours can be there
        forget_flows(kernel, mappings, added=False)

    def _withdraw(self, kernel: "Kernel", mappings: list[Mapping], *, bequeath: bool = True) -> None:
        from cni_py.ports import successors

        draft = Draft(kernel.nft)
        who = Claimant(kernel.key, self.conditions())
        claims.read_ahead(draft, who, mappings)
        others: set[str] = set()
        for mapping in mappings:
            others |= claims.release(draft, who, mapping)
        for set_name, element in self.hairpins(who.comment):
            if who.owns(draft.get(set_name, element.key)):
                draft.remove(set_name, element.key)
        waiting = successors.waiting_at(kernel.key.hex) if bequeath else []
        for heir in waiting:
            successors.promote(draft, heir)
        try:  # the heirs' chains: one that only waited never needed its own
            commit(kernel, draft.changes(), lambda: successors.chains_of(kernel, waiting))
        except (CniError, OSError) as error:
            if not waiting:
                raise
            warn(f"nobody takes over the ports of {kernel.key.label}: {error}")
            self._withdraw(kernel, mappings, bequeath=False)  # what is to go must go
            return
        successors.forget_heirs(kernel.key.hex)
        for holder in others:
            successors.stop_waiting(holder, kernel.key)

    def check(self, kernel: "Kernel") -> str | None:
        draft = Draft(kernel.nft)
        who = Claimant(kernel.key, self.conditions())
        mappings = parse_mappings(self.ports)
        claims.read_ahead(draft, who, mappings)
        for mapping in mappings:
            lost = claims.lacking(draft, who, mapping)
            if lost:
                return f"host port {lost} is not published: {mapping}"
        for set_name, element in self.hairpins(who.comment):
            if draft.get(set_name, element.key) != element:
                return f"nftables map {set_name} has lost the container's address"
        return None

"""Operation of the firewall plugin: a container's address is a source of one of firewalld's zones."""

from cni_py.addr import Address, parse_address
from cni_py.attachment import records
from cni_py.attachment.context import Kernel
from cni_py.attachment.engine import Op, listed
from cni_py.errors import CniError, warn
from cni_py.firewalld import zones
from cni_py.firewalld.bus import BusError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

PLUGIN = "firewall"  # whose records they are


class BindSource(Op):
    """An address, as firewalld's source with the length of its family: 192.0.2.2/32, as the Go plugin has it.

    firewalld may be away by the time of undo() and check(): then it filters nothing, and has forgotten what was bound.
    """

    source: str
    zone: str
    owned = True
    restorable = True
    line = "host: firewalld: {source} is a source of the zone {zone}"
    deed = "bind {source} to firewalld's zone {zone}"

    def validate(self) -> None:
        parse_address(self.source)  # ValueError
        if not zones.is_zone(self.zone):
            raise ValueError(f"zone is none: {self.zone!r}")

    def apply(self, kernel: Kernel) -> bool:
        with zones.needed() as firewalld:
            return firewalld.bind(self.zone, self.source)

    def undo(self, kernel: Kernel) -> None:
        self.release()

    def release(self) -> None:
        """Undo apply(), whoever did it. NoAnswer."""
        try:
            with zones.needed() as firewalld:
                firewalld.release(self.zone, self.source)
        except zones.NotRunning:
            return
        except BusError as error:  # a DEL that fails would keep the container's address reserved
            warn(f"{self.source} may be left in firewalld's zone {self.zone}: {error}")

    def check(self, kernel: Kernel) -> str | None:
        try:
            with zones.needed() as firewalld:
                (there,) = firewalld.bound(self.zone, [self.source])
        except zones.NotRunning:
            return None
        return None if there else f"firewalld's zone {self.zone} has lost {self.source}"


def bound(addresses: "Iterable[bytes]", zone: str, *, here: bool) -> list[str]:
    """Those of the addresses that are sources of the zone. Where that cannot be learnt, there are none, and a warning.

    `here`: see zones.found().
    """
    if not zones.is_zone(zone):
        return []
    sources = [source_of(ip) for ip in addresses]
    try:
        daemon = zones.found(here=here)
        if daemon is None:
            return []
        with daemon:
            return [source for source, there in zip(sources, daemon.bound(zone, sources), strict=True) if there]
    except CniError as error:
        warn(f"whether firewalld's zone {zone} has the container's addresses is not known: {error}")
        return []


def forget_sources(addresses: "Iterable[bytes]", zone: str, *, here: bool) -> None:
    """DEL without a record: release these addresses, which the Go plugin may have bound, or an ADD whose record is lost.

    What a living attachment of ours has meanwhile stays. CniError when firewalld does not answer any more.
    """
    found = bound(addresses, zone, here=here)
    taken = sources_in_use() if found else ()
    for source in found:
        if source not in taken:
            BindSource(source=source, zone=zone).release()


def source_of(ip: bytes) -> str:
    """An address of 4 or 16 bytes as the source that it is for firewalld."""
    return str(Address(ip, 8 * len(ip)))


def sources_in_use() -> "set[str]":
    """Those that records name."""
    return {op.source for record in records.all_records(PLUGIN) for op in listed(record, BindSource)}

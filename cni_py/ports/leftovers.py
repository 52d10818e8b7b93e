"""Published ports whose container is gone: they would lead to the next container that gets the address.

What an earlier attachment left, because its network was renamed or portmap was taken out of the list, is found by the index in
index.py. It is removed in three cases:

    of_interface     DEL of the same container and interface, under any name of the network
    of_addresses     ADD that gives the address to somebody else, unless the earlier attachment still has it
    of_network       GC of a network whose list may not have portmap any more

A container with several networks has several interfaces: what another interface of it publishes stays.
"""

from cni_py import files
from cni_py.addr import ip_text, parse_ip
from cni_py.attachment import engine, holders, naming, records
from cni_py.attachment.call import Call
from cni_py.attachment.context import Kernel
from cni_py.attachment.locks import Lock
from cni_py.errors import CniError, TryAgainLater
from cni_py.ipam import leaving
from cni_py.kernel import netns
from cni_py.kernel.nf_tables import NftUnavailable
from cni_py.lean import os
from cni_py.ports import chains, index, successors

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from cni_py.attachment.naming import Attachment
    from cni_py.ports.publication import Publication

PLUGIN = "portmap"
BUSY_S = 0.05  # somebody who works on a publication at this moment ends its call, or is alive


def of_interface(call: Call) -> None:
    """DEL: everything that the container's interface publishes; portmap's own DEL takes care of its own attachment.

    Where the DEL has found its own attachment, another of the same interface has a DEL of its own to come, unless it is dead.
    """
    listed = index.holders(naming.interface_name(call.key), call.kernel)
    _withdraw_all(call, [one for one in listed if _goes_with(call, one)], "")


def _goes_with(call: Call, publication: "Publication") -> bool:
    if publication.hex == call.key.hex:
        return call.plugin != PLUGIN
    if call.record is None:
        return True
    record = holders.record_of(publication.hex)
    return record is None or holders.is_dead(record)


def of_network(call: Call, valid: "Iterable[Attachment]") -> None:
    """GC: everything that attachments of the network publish that are not valid."""
    living = {key.hex for key in valid}
    listed = [one for one in index.all_holders() if one.key is not None and one.key.network == call.conf.name]
    _withdraw_all(call, [one for one in listed if one.key is not None and one.key.ifname and one.hex not in living], "")


def of_go(call: Call) -> None:
    """DEL: what the Go plugins made for the container, which their rules do not tell apart by interface.

    That is what leads to the addresses of this interface; everything where they are not known and the container is gone.
    """
    listed = index.of_go(call.key, call.kernel)
    known = set(map(ip_text, leaving.known_addresses(call))) if listed else set()
    for one in listed:
        gone = one.addresses & known if known else one.addresses if leaving.is_gone(call) else set()
        if gone:
            packed = {parse_ip(text) for text in gone}
            if one.key is not None:
                chains.forget_chains(call.kernel, one.key, packed.__contains__)
            index.reduce(one, gone)


def of_addresses(call: Call, addresses: "Sequence[bytes]") -> None:
    """ADD: everything that leads to the addresses, but for what is published by an attachment that has them."""
    for text in map(ip_text, addresses):
        listed = index.holders(text, call.kernel)
        _withdraw_all(call, [one for one in listed if not _has_address(call, one, text)], text)


def _withdraw_all(call: Call, listed: "Sequence[Publication]", address: str) -> None:
    failures = []
    for publication in listed:
        if _is_of_another_host(call, publication):
            continue
        try:
            locked = call.outer is not None and publication.hex == call.key.hex
            failures += withdraw(publication, address, locked=locked)
        except CniError as error:
            failures.append(str(error))
    if failures:
        whose = "a stranger" if call.verb == "GC" else call.key.label
        raise CniError(f"cannot take away published ports that would lead to {whose}", "; ".join(failures))


def _is_of_another_host(call: Call, publication: "Publication") -> bool:
    """Whether its record says that it was made in another network namespace: the folder may be shared."""
    record = holders.record_of(publication.hex)
    return record is not None and record.host_cookie not in (0, call.kernel.host_cookie)


def _has_address(call: Call, publication: "Publication", address: str) -> bool:
    """Whether the attachment that publishes for the address lives, and still has it.

    One without a record is a leftover: the address would not have been given to somebody else. portmap does not give addresses
    away: it believes the result it was given where the container really has the address.
    """
    key = publication.key
    if key is not None and call.plugin == PLUGIN and key.hex == call.key.hex:
        return True  # what portmap is about to replace
    record = holders.record_of(publication.hex)
    if record is None or holders.is_dead(record):
        return False
    if call.plugin == PLUGIN and not holds(call.netns, call.ifname, address, unseen=False):
        return True
    return holds(record.netns, record.key.ifname, address, unseen=True)


def holds(path: str, ifname: str, address: str, *, unseen: bool) -> bool:
    """Whether an interface of a namespace has the address; `unseen` where that cannot be seen."""
    from cni_py.kernel import inet
    from cni_py.kernel.rtnl import Rtnl

    try:
        fd = netns.open_netns(path)
    except (OSError, CniError):
        return unseen
    side = Rtnl(fd)
    try:
        link = side.link(ifname)
        held = inet.addresses(side, link.index) if link is not None else []
        return parse_ip(address) in [entry.address.packed for entry in held]
    except OSError:
        return unseen
    finally:
        side.close()
        os.close(fd)


def withdraw(publication: "Publication", address: str = "", *, locked: bool = False) -> list[str]:
    """Take away all that the attachment publishes; returns failures in words. Of what Go made, what leads to `address`.

    Nothing is done where another call works on it: a DEL removes it, and an ADD is alive. `locked`: this call, of a chain, holds
    its lock.
    """
    if locked:
        return _withdraw(publication, address)
    try:
        path = files.lock_path(f"attachment-{publication.hex}-{records.file_of(publication.hex, PLUGIN)}")
        lock = Lock(path, f"attachment {publication.hex}", BUSY_S, remove=True).__enter__()
    except TryAgainLater:
        return []
    except CniError:  # /run is full or read-only: that must not keep a DEL from its work
        return _withdraw(publication, address)
    try:
        return _withdraw(publication, address)
    finally:
        lock.__exit__(None, None, None)


def _withdraw(publication: "Publication", address: str) -> list[str]:
    key = publication.key or naming.Attachment("", "", "")
    record = holders.record_of(publication.hex)
    if record is None and publication.key is not None:
        record = records.load(publication.key, PLUGIN)  # damaged: it goes, too
    kernel = Kernel(key, record.netns if record is not None else "")
    failures: list[str] = []
    try:
        damaged = record is None or not engine.is_whole(record)
        if record is not None:
            failures += engine.undo_record(record, kernel)
        if damaged:
            withdraw_unrecorded(kernel, publication.hex)
        if publication.key is not None:
            gone = {parse_ip(text) for text in ([address] if address and not key.ifname else publication.addresses)}
            chains.forget_chains(kernel, key, gone.__contains__)
    finally:
        kernel.leave()
    if not failures:
        index.reduce(publication, [address] if address and not key.ifname else publication.addresses)
    return failures


def withdraw_unrecorded(kernel: Kernel, hexed: str) -> None:
    """Take away what an attachment publishes by nftables and portfwd, found by its comments. It looks through all ports."""
    from cni_py.nftables import elements
    from cni_py.ports import relay

    successors.sweep_ports(kernel, "", [], hexed)
    elements.sweep_one(kernel, hexed, "guarded4", "guarded6")
    relay.forget(hexed)


def withdraw_lost(call: Call, addresses: "Collection[bytes]", *, certain: bool) -> None:
    """DEL of an attachment whose record is damaged (`certain`) or not there: take away what it publishes all the same.

    A DEL that comes twice, or of a container that never published, must not look through all ports of the host: without a
    record the index, or the attachment's element for one of its `addresses`, has to say that there is something.
    """
    name = naming.interface_name(call.key)
    listed = index.holders(name, call.kernel) if files.may_be_published(name) else []
    own = [one for one in listed if one.hex == call.key.hex]
    if certain or own or _has_element(call, addresses):
        withdraw_unrecorded(call.kernel, call.key.hex)
        for one in own:
            index.forget(one)


def _has_element(call: Call, addresses: "Collection[bytes]") -> bool:
    try:
        for family, length in ((4, 4), (6, 16)):
            keys = [ip for ip in addresses if len(ip) == length]
            for set_name in (f"hairpin{family}", f"guarded{family}") if keys else ():
                found = call.kernel.nft.get(set_name, keys).values()
                if any(element.comment[: holders.HEX] == call.key.hex for element in found):
                    return True
    except NftUnavailable:
        pass
    return False

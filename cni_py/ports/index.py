"""Who publishes ports for an address, and for a container's interface: an index on disk, beside the attachment records.

    /run/cni-py/published/192.0.2.5/<hex of the attachment>    by address
    /run/cni-py/published/<digest>/<hex of the attachment>     by containerID and ifname, whatever the network is called

The two are one file, which names the attachment. With it the ADD that gets an address, and the DEL of a container whose network
has been renamed, find what an earlier attachment left published without looking through all published ports.

An index that is not there (the first call of a boot, records of an earlier version, somebody emptied /run/cni-py) is made from
the records, and from the comments in nftables, iptables and portfwd: so it also knows what is published by attachments whose
record is lost, and by the Go plugins.
"""

import errno

from cni_py import files
from cni_py.addr import parse_ip
from cni_py.attachment import naming
from cni_py.attachment.engine import Op, split_texts
from cni_py.attachment.naming import Attachment
from cni_py.errors import CniError, os_error
from cni_py.lean import os
from cni_py.ports.publication import Publication, is_address
from cni_py.protocol import gojson

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from cni_py.attachment.context import Kernel

ENTRY_MAX = 1 << 16  # bytes that are read of an entry
HEX = 16
# gone; another attachment is listed there, too; nothing can be taken out
HARMLESS = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENOTEMPTY, errno.EROFS)


class ListPublication(Op):
    """The index names the attachment. First of what portmap makes, last of what it takes away."""

    addresses: list[str]
    owned = True
    line = "disk: /run/cni-py/published lists the attachment under {addresses}"

    def validate(self) -> None:
        for text in self.addresses:
            parse_ip(text)  # ValueError

    @classmethod
    def translated(cls, fields: "dict[str, object]") -> "dict[str, object]":
        return split_texts(fields, "addresses")  # the version before: "192.0.2.2 2001:db8::2"

    def apply(self, kernel: "Kernel") -> bool:
        if not os.path.isdir(files.published_dir()):
            build(kernel)
        try:
            write(files.published_dir(), Publication(kernel.key.hex, kernel.key, self.addresses))
        except OSError as error:
            raise os_error("cannot write the index of published ports in /run/cni-py/published", error) from error
        for one in of_go(kernel.key, kernel):  # which we have taken over
            if one.key is not None and one.key.network == kernel.key.network:
                reduce(one, self.addresses)
        return True

    def undo(self, kernel: "Kernel") -> None:
        forget(Publication(kernel.key.hex, kernel.key, self.addresses))


def holders(name: str, kernel: "Kernel") -> list[Publication]:
    """Who is listed under an address, or under records.interface_name(). The index is made if it is not there."""
    top = files.published_dir()
    if not os.path.isdir(top):
        return [found for found in build(kernel).values() if name in found.names]
    return _entries(f"{top}/{name}")


def of_go(key: Attachment, kernel: "Kernel") -> list[Publication]:
    """What Go made for the container in any network."""
    name = naming.interface_name(Attachment("", key.container_id, ""))
    return holders(name, kernel) if files.may_be_published(name) else []


def reduce(publication: Publication, gone: "Iterable[str]") -> None:
    """Let the entry list the attachment for those of its addresses alone that are not gone. OSError."""
    forget(publication)
    rest = publication.addresses.difference(gone)
    if rest and os.path.isdir(files.published_dir()):
        write(files.published_dir(), Publication(publication.hex, publication.key, rest))


def all_holders() -> list[Publication]:
    """Everything that is listed: for GC."""
    top = files.published_dir()
    found: dict[str, Publication] = {}
    for name in _names(top):
        for one in _entries(f"{top}/{name}"):
            found.setdefault(one.hex, one).addresses.update({*one.addresses, *([name] if is_address(name) else [])})
    return list(found.values())


def sweep(network: str, valid: "Iterable[Attachment]") -> None:
    """GC: take attachments of `network` that are not valid out of the index."""
    living = {key.hex for key in valid} | {Attachment(network, key.container_id, "").hex for key in valid}
    for one in all_holders():
        if one.key is not None and one.key.network == network and one.hex not in living:
            forget(one)


def forget(publication: Publication) -> None:
    """Take the attachment out of the index. On a disk that is read-only it stays, which is harmless. OSError."""
    for name in publication.names:
        folder = f"{files.published_dir()}/{name}"
        for remove, path in ((files.remove_file, f"{folder}/{publication.hex}"), (os.rmdir, folder)):
            try:
                remove(path)
            except OSError as error:
                if error.errno not in HARMLESS:
                    raise


def write(top: str, publication: Publication) -> None:
    """List the attachment below `top`. OSError."""
    names = publication.names
    first = f"{top}/{names[0]}/{publication.hex}" if names else ""
    for name in names:
        folder, path = f"{top}/{name}", f"{top}/{name}/{publication.hex}"
        files.make_folders(folder, 0o700)
        files.remove_file(path)
        if path != first and _linked(first, path):
            continue
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
            file.write(gojson.encode(_fields(publication), None).encode())


def _linked(first: str, path: str) -> bool:
    """Make the second name of a file; False where the file system has no hard links."""
    try:
        os.link(first, path)
    except OSError as error:
        if error.errno in (errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK):
            return False
        raise
    return True


def _fields(publication: Publication) -> "dict[str, gojson.Encodable]":
    key = publication.key
    named: dict[str, gojson.Encodable] = {}
    if key is not None:
        named = {"network": key.network, "containerID": key.container_id, "ifname": key.ifname}
    return {**named, "addresses": sorted(publication.addresses)}


def _entries(folder: str) -> list[Publication]:
    return [_read(folder, name) for name in _names(folder) if len(name) == HEX]


def _names(folder: str) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def _read(folder: str, hexed: str) -> Publication:
    """An entry; of one that is damaged (a call was killed while writing it) its own name and its folder's are left."""
    where = {os.path.basename(folder)} if is_address(os.path.basename(folder)) else set()
    try:
        fd = os.open(f"{folder}/{hexed}", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(fd, "rb") as file:
            fields = gojson.decode(file.read(ENTRY_MAX))
    except (OSError, CniError):
        return Publication(hexed, None, where)
    if not isinstance(fields, gojson.Object):
        return Publication(hexed, None, where)
    names = [fields.get(name) for name in ("network", "containerID", "ifname")]
    key = Attachment(*map(str, names)) if all(isinstance(name, str) for name in names) else None
    listed = fields.get("addresses")
    texts = (
        {text for text in listed if isinstance(text, str) and is_address(text)} if isinstance(listed, list) else set()
    )
    return Publication(hexed, key if key is not None and key.hex == hexed else None, where | texts)


def build(kernel: "Kernel") -> dict[str, Publication]:
    """Make the index, unless another call has. Returns it, by hex: where it cannot be written it serves this call alone."""
    from cni_py.attachment.locks import Lock
    from cni_py.ports import survey

    found = survey.survey(kernel)
    top = files.published_dir()
    try:
        with Lock(files.lock_path("published"), "the index of published ports", remove=True):
            if os.path.isdir(top):
                return found
            files.make_folders(f"{top}.new", 0o700)  # or what a killed call had of it
            for one in found.values():
                write(f"{top}.new", one)
            os.rename(f"{top}.new", top)
    except (OSError, CniError):
        pass  # /run is full or read-only: the next call tries again
    return found

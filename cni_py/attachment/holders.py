"""Holders of host ports: the record of an attachment that is known by its hex, and whether its namespace is gone.

A path that leads nowhere, or elsewhere, proves nothing: the name of a namespace may be removed while processes run in it. So
the kernel is asked, too: for the host's end of the veth pair, or by the namespace's number for the interface inside.
"""

from cni_py import files
from cni_py.attachment import naming, records
from cni_py.errors import InvalidNetns
from cni_py.kernel import netns
from cni_py.lean import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_py.attachment.records import Record

PLUGIN = "portmap"  # whose records say whether a holder lives
HEX = naming.HEX


def record_of(hexed: str) -> "Record | None":
    """The portmap record of the attachment; None when there is none that can be read."""
    key = records.key_of(f"{files.run_dir()}/attachments/{hexed}", PLUGIN)
    return records.load(key, PLUGIN) if key is not None else None


def is_dead(record: "Record", wait_s: float = 0.0) -> bool:
    """Whether the attachment's namespace is gone: its path is missing, or is no namespace, or is another one by its cookie; and
    the host has no interface that leads to it, nor a number for a namespace with its interface.

    `wait_s`: how long to wait for the end of a namespace that has lost its name, since its last process may be about to end.
    """
    if is_at_path(record):
        return False
    from cni_py.kernel.rtnl import wait

    return wait(lambda: not is_elsewhere(record), wait_s)


def is_at_path(record: "Record") -> bool:
    """Whether the namespace is at the recorded path, or may be, since we may not look."""
    try:
        fd = netns.open_netns(record.netns)
    except FileNotFoundError:
        return False
    except InvalidNetns as error:
        return isinstance(error.__cause__, PermissionError)
    try:
        return record.container_cookie in (0, netns.cookie(fd))
    finally:
        os.close(fd)


def is_elsewhere(record: "Record") -> bool:
    """Whether the kernel shows an interface of the attachment that tells of the namespace. Never an error."""
    from cni_py.kernel import nsid
    from cni_py.kernel.rtnl import Rtnl

    key = record.key
    side = Rtnl()
    try:
        outside = side.link(key.host_veth)
        # A namespace that is ending has no number any more.
        if outside is not None and outside.alias.startswith(key.hex) and outside.netns_id >= 0:
            return True
        for one in records.of_attachment(key):
            if one.number >= 0 and (one.host_cookie, one.container_cookie) == (side.cookie, record.container_cookie):
                inside = nsid.link(side, one.number, key.ifname)
                macs = {fields.get("mac") for fields in one.ops if isinstance(fields, dict)}
                if inside is not None and (inside.alias.startswith(key.hex) or inside.mac.hex() in macs):
                    return True
        return False
    except OSError:
        return False
    finally:
        side.close()

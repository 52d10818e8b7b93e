"""Holders of host ports: the record of an attachment that is known by its hex, and whether its namespace is gone."""

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


def is_dead(record: "Record") -> bool:
    """Whether the attachment's namespace is gone: its path is missing, or is no namespace, or is another one by its cookie."""
    try:
        fd = netns.open_netns(record.netns)
    except FileNotFoundError:
        return True
    except InvalidNetns as error:
        return not isinstance(error.__cause__, PermissionError)  # it may live: we may not look
    try:
        return record.container_cookie not in (0, netns.cookie(fd))
    finally:
        os.close(fd)

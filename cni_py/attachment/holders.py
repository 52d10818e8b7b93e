"""Holders of host ports as their records show them: whether one is dead, and who of the same container waits for its ports.

An heir is a file in the folder of the holder's record, /run/cni-py/attachments/<hex of the holder>/heirs/<hex of the heir>,
written and read under the nft lock.
"""

import os

from cni_py import files
from cni_py.attachment import naming, records
from cni_py.errors import CniError, InvalidNetns
from cni_py.kernel import netns
from cni_py.protocol import gojson

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_py.attachment.naming import Attachment
    from cni_py.attachment.records import Record

PLUGIN = "portmap"  # whose records say whether a holder lives
HEX = 16  # digits that name an attachment, in comments and files


def record_of(hexed: str) -> "Record | None":
    """The portmap record of the attachment, None when there is none that can be read."""
    folder = f"{files.run_dir()}/attachments/{hexed}"
    for suffix in (".adding", ".json"):
        key = key_in(fields_in(f"{folder}/{PLUGIN}{suffix}"))
        if key is not None and key.hex == hexed:
            return records.load(key, PLUGIN)
    return None


def fields_in(path: str) -> gojson.Object:
    """What a file of ours says; nothing when it cannot be read."""
    try:
        fields = gojson.decode(files.read(path))
    except (OSError, CniError):
        return gojson.Object()
    return fields if isinstance(fields, gojson.Object) else gojson.Object()


def key_in(fields: gojson.Object) -> "Attachment | None":
    names = [fields.get(name) for name in ("network", "containerID", "ifname")]
    return naming.Attachment(*map(str, names)) if all(isinstance(name, str) for name in names) else None


def is_dead(record: "Record") -> bool:
    """Whether the attachment's namespace is gone: nothing at its path, or not a namespace, or another one."""
    try:
        fd = netns.open_netns(record.netns)
    except FileNotFoundError:
        return True
    except InvalidNetns as error:
        return not isinstance(error.__cause__, PermissionError)  # what we may not look at may live
    try:
        return record.container_cookie not in (0, netns.cookie(fd))
    finally:
        os.close(fd)

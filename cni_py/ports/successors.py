"""Who of a container takes a host port over when its holder goes.

A file in the folder of the holder's record, /run/cni-py/attachments/<hex of the holder>/heirs/<hex of the successor>, written and
read under the lock of nftables.
"""

import os

from cni_py import files
from cni_py.attachment.holders import HEX, record_of
from cni_py.attachment.records import fields_in, named_in
from cni_py.protocol import gojson

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from cni_py.attachment.naming import Attachment


def wait_for(holder: str, who: "Attachment", conditions: dict[int, str], text: str) -> None:
    """Make `who` an heir of `holder`: `text` is what it will claim."""
    folder = f"{files.run_dir()}/attachments/{holder}/heirs"
    files.make_folder(folder)
    fields: dict[str, gojson.Encodable] = {
        "network": who.network,
        "containerID": who.container_id,
        "ifname": who.ifname,
        "ports": text,
        "conditions4": conditions.get(4, ""),
        "conditions6": conditions.get(6, ""),
    }
    files.write(f"{folder}/{who.hex}", gojson.encode(fields, None).encode())


def wait_too(holder: str, who: "Attachment") -> None:
    """Make `who` an heir of `holder` for what portfwd serves, unless it is one already."""
    if not os.path.exists(f"{files.run_dir()}/attachments/{holder}/heirs/{who.hex}"):
        wait_for(holder, who, {}, "")


def stop_waiting(holder: str, who: "Attachment") -> None:
    """`who` is no heir of `holder` any more; that it never was is as good."""
    _unlink(f"{files.run_dir()}/attachments/{holder}/heirs", who.hex)


def waiting_for(holder: "Attachment") -> "list[tuple[Attachment, dict[int, str], str]]":
    """Who waits for the ports of `holder`, first come first, each with its conditions and the text of its mappings.

    One that has no record any more was DELeted, and is left out.
    """
    return waiting_at(holder.hex)


def waiting_at(holder: str) -> "list[tuple[Attachment, dict[int, str], str]]":
    """The same by the holder's hex."""
    folder = f"{files.run_dir()}/attachments/{holder}/heirs"
    try:
        names = [name for name in os.listdir(folder) if len(name) == HEX]
    except OSError:
        return []
    found = []
    for name in sorted(names, key=lambda name: _mtime(f"{folder}/{name}")):
        fields = fields_in(f"{folder}/{name}")
        key = named_in(fields)
        if key is not None and key.hex == name and record_of(name) is not None:
            conditions = {family: str(fields.get(f"conditions{family}", "")) for family in (4, 6)}
            found.append((key, conditions, str(fields.get("ports", ""))))
    return found


def _mtime(path: str) -> int:
    try:
        return os.stat(path, follow_symlinks=False).st_mtime_ns
    except OSError:
        return 0  # gone since


def has_heirs(holder: "Attachment") -> bool:
    """Whether somebody waits, or waited."""
    return os.path.isdir(f"{holder.folder}/heirs")


def forget_heirs(holder: str) -> None:
    """Remove the folder of heirs of a holder, by its hex."""
    folder = f"{files.run_dir()}/attachments/{holder}/heirs"
    try:
        names = os.listdir(folder)
    except OSError:
        return
    for name in names:
        _unlink(folder, name)


def _unlink(folder: str, name: str) -> None:
    """Remove a file, its folder with the last one, and that of the attachment if nothing else is in it."""
    remove: Callable[[str], None] = os.unlink
    for path in (f"{folder}/{name}", folder, os.path.dirname(folder)):
        try:
            remove(path)
        except OSError:
            pass  # gone, or other files are still in it
        remove = os.rmdir

"""Leases on disk, so that they outlive the daemon: a file for each attachment, in a folder for each socket.

    /var/lib/cni-py/dhcp/run-cni-dhcp.sock/<hex of the attachment>.json
    /var/lib/cni-py/dhcp/run-cni-dhcp.sock/lock       held while a daemon runs

Times are of the clock that counts since the boot, suspended or not (CLOCK_BOOTTIME). No namespace outlives a boot, so a file of
an earlier one only tells which lease may be given back.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cni_py import files
from cni_py.addr import ip_text, parse_ip
from cni_py.attachment.naming import Attachment, boot_id
from cni_py.dhcp.machine import NEVER, Identity, Lease

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Kept:
    """A lease, and where it serves. `space`: device and inode of the namespace; `cookie`: 0 before Linux 5.14."""

    key: Attachment
    netns: str
    space: str
    cookie: int
    index: int
    identity: Identity
    lease: Lease


class Store:
    """The folder of one daemon. OSError; BlockingIOError while another one has it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        files.make_folders(str(folder), 0o700)
        self._lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def save(self, kept: Kept) -> None:
        """Write a lease, atomically. OSError."""
        files.write(str(self._path(kept.key)), json.dumps(to_json(kept, boot_id()), indent=1).encode())

    def remove(self, key: Attachment) -> None:
        """Forget a lease. OSError."""
        files.remove_file(str(self._path(key)))

    def all(self) -> Iterator[tuple[Kept, bool]]:
        """Every lease, and whether it is of this boot. A file that is damaged is passed over, and removed."""
        for path in sorted(self.folder.glob("*.json")):
            try:
                fields = json.loads(files.read(str(path)))
                yield from_json(fields), fields["boot"] == boot_id()
            except (OSError, ValueError, KeyError, TypeError, AttributeError):
                files.remove_file(str(path))

    def _path(self, key: Attachment) -> Path:
        return self.folder / f"{key.hex}.json"


def to_json(kept: Kept, boot: str) -> dict[str, Any]:
    """The file."""
    lease, identity = kept.lease, kept.identity
    return {
        "schema": SCHEMA,
        "network": kept.key.network,
        "containerID": kept.key.container_id,
        "ifname": kept.key.ifname,
        "netns": kept.netns,
        "space": kept.space,
        "cookie": kept.cookie,
        "index": kept.index,
        "boot": boot,
        "identity": {
            "mac": identity.mac.hex(),
            "client": identity.client.hex(),
            "provided": as_hex(identity.provided),
            "requested": list(identity.requested),
            "broadcast": identity.broadcast,
        },
        "address": ip_text(lease.address),
        "server": ip_text(lease.server),
        "serverMac": lease.server_mac.hex(),
        "options": as_hex(lease.options),
        "begun": lease.begun,
        **{name: None if time == NEVER else time for name, time in times(lease).items()},
    }


def times(lease: Lease) -> dict[str, float]:
    """When it is to be renewed, and ends."""
    return {"renewal": lease.renewal, "rebinding": lease.rebinding, "expiry": lease.expiry}


def as_hex(options: Any) -> dict[str, str]:
    """Options, for JSON."""
    return {str(code): value.hex() for code, value in options.items()}


def from_json(fields: dict[str, Any]) -> Kept:
    """A file. ValueError, KeyError, TypeError or AttributeError when it is damaged."""
    if fields["schema"] != SCHEMA:
        raise ValueError("of another version")
    about = fields["identity"]
    identity = Identity(
        *(bytes.fromhex(about["mac"]), bytes.fromhex(about["client"]), options_of(about["provided"])),
        *(tuple(int(code) for code in about["requested"]), bool(about["broadcast"])),
    )
    ends = (NEVER if fields[name] is None else float(fields[name]) for name in ("renewal", "rebinding", "expiry"))
    address, server, mac = parse_ip(fields["address"]), parse_ip(fields["server"]), bytes.fromhex(fields["serverMac"])
    lease = Lease(address, server, mac, options_of(fields["options"]), float(fields["begun"]), *ends)
    key = Attachment(str(fields["network"]), str(fields["containerID"]), str(fields["ifname"]))
    place = str(fields["netns"]), str(fields["space"]), int(fields["cookie"]), int(fields["index"])
    return Kept(key, *place, identity, lease)


def options_of(texts: dict[str, str]) -> dict[int, bytes]:
    """Options, from JSON."""
    return {int(code): bytes.fromhex(value) for code, value in texts.items()}

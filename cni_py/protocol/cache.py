"""libcni's cache: the configuration and result of each ADD, for later CHECKs, DELs and GCs (libcni/api.go, "cniCacheV1").

    /var/lib/cni/results/<network>-<containerID>-<ifname>     0600 in a folder of mode 0700

All runtimes of a host use one folder, so that cni-py-exec can DEL the ADD of another runtime, and the other way round.
"""

import base64
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cni_py import files
from cni_py.errors import CniError, DecodingFailure, os_error
from cni_py.lean import os
from cni_py.protocol import netconf
from cni_py.protocol.gojson import Object, decode, encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_py.protocol.gojson import Encodable

RESULTS_DIR = Path("/var/lib/cni/results")
KIND = "cniCacheV1"


@dataclass(frozen=True, slots=True)
class Entry:
    """One attachment: its configuration list, the runtime's arguments, and the result of the chain."""

    network: str
    container_id: str
    ifname: str
    config: bytes = b""
    netns: str = ""
    cni_args: Sequence[tuple[str, str]] = ()
    capability_args: Object = field(default_factory=Object)
    result: Object | None = None

    @property
    def key(self) -> tuple[str, str, str]:
        """The names that identify an attachment."""
        return (self.network, self.container_id, self.ifname)

    @property
    def known_netns(self) -> str:
        """The container's namespace, or "": libcni before 1.2 (containerd 1.6) wrote it only into the result."""
        interfaces = netconf.objects(self.result or Object(), "interfaces")
        own = [netconf.string(link, "sandbox") for link in interfaces if netconf.string(link, "name") == self.ifname]
        return self.netns or next(filter(None, own), "")

    def path(self, folder: Path) -> Path:
        """Its file. Two keys can have the same one, as in libcni, since names may contain hyphens."""
        return folder / "-".join(self.key)

    def to_json(self) -> "dict[str, Encodable]":
        """The file's content, in the order of libcni; empty fields left out as it does."""
        fields: dict[str, Encodable] = {
            "kind": KIND,
            "containerId": self.container_id,
            "config": base64.b64encode(self.config).decode(),
            "ifName": self.ifname,
            "networkName": self.network,
        }
        optional: dict[str, Encodable] = {
            "netns": self.netns,
            "cniArgs": [list(pair) for pair in self.cni_args],
            "capabilityArgs": self.capability_args,
            "result": self.result,
        }
        return fields | {name: value for name, value in optional.items() if value}


def save(entry: Entry, folder: Path = RESULTS_DIR) -> None:
    """Write the entry, atomically and to the disk: it outlives a boot. CniError."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd, new = tempfile.mkstemp(dir=folder, prefix=".new-")  # 0600
        try:
            with open(fd, "wb") as file:
                file.write(encode(entry.to_json(), None).encode())
                file.flush()
                os.fsync(fd)
            os.replace(new, entry.path(folder))
        except BaseException:
            os.unlink(new)
            raise
    except OSError as error:
        raise os_error(f"cannot write the cache entry {entry.path(folder)}", error) from error


def load(network: str, container_id: str, ifname: str, folder: Path = RESULTS_DIR) -> Entry | None:
    """The attachment's entry, None when there is none. CniError when its file cannot be read."""
    wanted = Entry(network, container_id, ifname)
    path = wanted.path(folder)
    try:
        entry = _parse(files.read(str(path)), wanted)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise os_error(f"cannot read the cache entry {path}", error) from error
    except (CniError, ValueError) as error:
        raise DecodingFailure(f"the cache entry {path} is damaged", str(error)) from error
    return entry if entry.key == wanted.key else None


def remove(entry: Entry, folder: Path = RESULTS_DIR) -> None:
    """Remove the entry, if there is one. CniError."""
    try:
        entry.path(folder).unlink(missing_ok=True)
    except OSError as error:
        raise os_error(f"cannot remove the cache entry {entry.path(folder)}", error) from error


def attachments(network: str, folder: Path = RESULTS_DIR) -> list[Entry]:
    """All entries of a network, by name. CniError if one cannot be read: GC would remove an attachment that is in use."""
    if not folder.is_dir():
        return []
    found = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or not path.name.startswith(f"{network}-"):
            continue
        try:
            found.append(_parse(files.read(str(path)), None))
        except FileNotFoundError:
            continue
        except (OSError, CniError, ValueError) as error:
            raise DecodingFailure(f"the cache entry {path} is damaged", str(error)) from error
    return [entry for entry in found if entry.network == network]


def everything(folder: Path = RESULTS_DIR) -> list[Entry]:
    """All entries that can be read, of all networks."""
    found = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        try:
            found.append(_parse(files.read(str(path)), None))
        except (OSError, CniError, ValueError):
            continue
    return found


def _parse(text: bytes, wanted: Entry | None) -> Entry:
    """The entry. A file without `kind` is a bare result, as libcni before 0.8 wrote it: only its name says whose it is."""
    raw = decode(text)
    if not isinstance(raw, Object):
        raise DecodingFailure("a JSON object was expected")
    kind = netconf.string(raw, "kind")
    if not kind and wanted is not None:
        return Entry(*wanted.key, result=raw)
    if kind != KIND:
        raise DecodingFailure(f'kind is "{kind}", not {KIND}')
    return Entry(
        network=netconf.string(raw, "networkName"),
        container_id=netconf.string(raw, "containerId"),
        ifname=netconf.string(raw, "ifName"),
        config=base64.b64decode(netconf.string(raw, "config"), validate=True),
        netns=netconf.string(raw, "netns"),
        cni_args=_pairs(netconf.lookup(raw, "cniArgs")),
        capability_args=netconf.child(raw, "capabilityArgs") or Object(),
        result=netconf.child(raw, "result"),
    )


def _pairs(value: object) -> list[tuple[str, str]]:
    pairs = value if isinstance(value, list) else []
    return [(str(pair[0]), str(pair[1])) for pair in pairs if isinstance(pair, list) and len(pair) == 2]

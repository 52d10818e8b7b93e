"""Attachment records: the operations of each plugin for an attachment, written before the first of them is applied and removed
after the last is undone.

    /run/cni-py/attachments/<hex>/<plugin>.adding   an ADD is under way, or was killed
    /run/cni-py/attachments/<hex>/<plugin>.json     the ADD succeeded
    /run/cni-py/attachments/<hex>/chain.json        the same of all plugins of a list that one process runs (plugins/chain)
    /run/cni-py/published/                          which attachments publish ports for an address: see ports/index
    /run/cni-py/lock/                               locks

<hex> is the first quarter of the SHA-256 of network \\0 containerID \\0 ifname. /run is a tmpfs: records end with the boot, as
do the kernel objects they describe. With its record a DEL or GC needs no namespace, no prevResult and no cache of libcni.
"ops" are the operations that a DEL undoes. "shared" are those on what attachments share (the bridge, its address) or on a part of
an owned object (the port), which no DEL undoes: `cni-py restore` applies them again.
In chain.json each operation names its plugin, under the key "plugin". load() gives a plugin its part of that file where it has
none of its own, so that a network can change between a list and a chain while containers run.

Who owns an element of nftables is said by the record, not by the element's comment: when a key is added again, the kernel
keeps the comment of the first time.
"""

from cni_py import files
from cni_py.attachment.naming import HEX, Attachment
from cni_py.errors import CniError, os_error, warn
from cni_py.lean import os
from cni_py.protocol import gojson, netconf
from cni_py.protocol.netconf import CHAIN

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_py.attachment.context import Kernel

SCHEMA = 1
PART_OF = "plugin"  # of an operation in that record: the plugin of the list that has made it
SUFFIXES = (".adding.tmp", ".adding", ".json")  # of a record on disk; the first is half written


def attachment_in(comment: str) -> "tuple[str, Attachment | None]":
    """The hex in a comment or alias of ours, and the attachment; None for one whose text was cut (COMMENT_MAX)."""
    hexed, _, label = comment.partition(" ")
    names = label.split("/")
    key = Attachment(*names) if len(names) == 3 else None
    return hexed[:HEX], key if key is not None and key.hex == hexed else None


class Record:
    """What one plugin made for one attachment. `file`: whose file it is in, its own or CHAIN's; so also whose lock guards it."""

    __slots__ = (
        "container_cookie",
        "container_file",
        "damage",
        "done",
        "file",
        "host_cookie",
        "key",
        "netns",
        "number",
        "ops",
        "plugin",
        "shared",
    )

    def __init__(self, key: Attachment, plugin: str) -> None:
        self.key = key
        self.plugin = plugin
        self.file = plugin
        self.netns = ""
        self.container_cookie = 0
        self.container_file = ""  # device:inode of the namespace, where the kernel has no cookies
        self.damage = ""  # why the file could not be read
        self.number = -1  # by which the host knows the namespace (kernel/nsid); -1: not asked for, or refused
        self.host_cookie = 0
        self.ops: list[gojson.Encodable] = []
        self.shared: list[gojson.Encodable] = []
        self.done = False

    def is_of(self, kernel: "Kernel") -> bool | None:
        """Whether `kernel` has the container's namespace of the ADD; None when the record does not know that namespace."""
        if self.container_cookie:
            return kernel.container_cookie == self.container_cookie
        if self.container_file:
            return kernel.container_file == self.container_file
        return None

    def number_on(self, host_cookie: int) -> int:
        """`number`, if it is the host's whose namespace has that cookie; else -1, which numbers no namespace there."""
        return self.number if host_cookie and self.host_cookie == host_cookie else -1

    @property
    def path(self) -> str:
        """The path without .adding or .json."""
        return f"{self.key.folder}/{self.file}"

    def save(self) -> None:
        """Write the record as `.adding`, atomically."""
        path = self.path + ".adding"
        text = gojson.encode(self._fields(), None).encode()
        try:
            files.make_folder(self.key.folder)
            try:
                files.write(path, text)
            except FileNotFoundError:  # a GC has removed the folder, which was empty, between the two calls
                files.make_folder(self.key.folder)
                files.write(path, text)
        except OSError as error:
            raise os_error(f"cannot write the attachment record {path}", error) from error

    def finish(self) -> None:
        """The ADD has succeeded: from now on only DEL and GC remove the record."""
        os.rename(self.path + ".adding", self.path + ".json")
        self.done = True

    def remove(self) -> None:
        """Remove the file, and the attachment's folder if it was the last one in it. Of a part: take it out of the file.

        A file that cannot be removed (a read-only file system) is a warning, not an error: its operations are undone, and
        undoing them again does nothing.
        """
        if self.file != self.plugin:
            self._take_out()
            return
        for suffix in SUFFIXES:
            try:
                files.remove_file(self.path + suffix)
            except OSError as error:
                warn(f"cannot remove the attachment record {self.path}{suffix}: {error.strerror}")
        try:
            os.rmdir(self.key.folder)
        except OSError:
            pass  # another plugin has a record in it, or there is no folder

    def part(self, plugin: str) -> "Record | None":
        """What one plugin of the list has made; None if that is nothing. Of a damaged or empty record every plugin has a part.

        An operation that names no plugin is of a damaged record, too: it is in every part.
        """
        ops = [fields for fields in self.ops if part_of(fields) in (plugin, "")]
        if self.ops and not ops:
            return None
        found = Record(self.key, plugin)
        for name in ("file", "netns", "container_cookie", "container_file", "damage", "host_cookie", "number", "done"):
            setattr(found, name, getattr(self, name))
        found.ops = ops
        found.shared = [fields for fields in self.shared if part_of(fields) in (plugin, "")]
        return found

    def _take_out(self) -> None:
        """Write the file without this part. One that is damaged stays: a GC, or the DEL of the whole chain, removes it."""
        whole = own(self.key, self.file)
        if whole is None or whole.damage:
            return
        left = [fields for fields in whole.ops if part_of(fields) != self.plugin]
        whole.shared = [fields for fields in whole.shared if part_of(fields) != self.plugin]
        whole.keep(left if any(map(part_of, left)) else [])

    def keep(self, ops: "list[gojson.Encodable]") -> None:
        """Write the file with these operations alone; remove it if there are none. A disk that refuses it is a warning."""
        self.ops = ops
        if not ops:
            self.remove()
            return
        path = self.path + (".json" if self.done else ".adding")
        try:
            files.write(path, gojson.encode(self._fields(), None).encode())
        except OSError as error:
            warn(f"cannot write what is left of the attachment record {path}: {error.strerror}")

    def _fields(self) -> "dict[str, gojson.Encodable]":
        return {
            "schema": SCHEMA,
            "network": self.key.network,
            "containerID": self.key.container_id,
            "ifname": self.key.ifname,
            "netns": self.netns,
            "netnsCookie": self.container_cookie,
            "hostCookie": self.host_cookie,
            **({"netnsFile": self.container_file} if self.container_file else {}),
            **({"netnsId": self.number} if self.number >= 0 else {}),
            "ops": self.ops,
            **({"shared": self.shared} if self.shared else {}),
        }


def part_of(fields: object) -> str:
    """The plugin that an operation in the record of a chain belongs to; "" if it names none."""
    return str(fields.get(PART_OF, "")) if isinstance(fields, dict) else ""


def load(key: Attachment, plugin: str) -> Record | None:
    """The record of one plugin, or its part of the chain's; None when there is neither."""
    record = own(key, plugin)
    if record is None and plugin != CHAIN:
        whole = own(key, CHAIN)
        record = whole.part(plugin) if whole is not None else None
    return record


def at(folder: str, plugin: str) -> Record | None:
    """The plugin's own record in a folder of records, whoever it is of; None if there is none that can be read.

    Each file is read once: for who looks at all records.
    """
    try:
        text = files.read(f"{folder}/{plugin}.json")
    except OSError:
        text = b""
    try:
        fields = gojson.decode(text) if text else None
    except CniError:
        fields = None
    key = named_in(fields) if isinstance(fields, gojson.Object) else None
    if key is None or key.folder != folder or os.path.lexists(f"{folder}/{plugin}.adding"):
        key = key_in(folder, plugin)
        return load(key, plugin) if key is not None else None
    record = Record(key, plugin)
    record.done = True
    if not _take(record, fields):
        record.damage = f"{record.path}.json: not a record of schema {SCHEMA}"
    return record


def own(key: Attachment, plugin: str) -> Record | None:
    """The record in the plugin's own file: the unfinished one if there is one, else the finished one, else None.

    A file that cannot be read still tells that there was an ADD: its record has `damage`, and no operations.
    """
    record = Record(key, plugin)
    for suffix in (".adding", ".json"):
        try:
            text = files.read(record.path + suffix)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            record.damage = f"{record.path}{suffix}: {error.strerror}"
        else:
            if not _fill(record, text):
                record.damage = f"{record.path}{suffix}: not a record of schema {SCHEMA}"
        record.done = suffix == ".json"
        return record
    return None


def _fill(record: Record, text: bytes) -> bool:
    """Fill the record from its JSON; False when `text` is no record."""
    try:
        return _take(record, gojson.decode(text))
    except CniError:
        return False


def _take(record: Record, fields: object) -> bool:
    """Fill the record from an object of JSON; False when it is none of a record."""
    try:
        if not isinstance(fields, gojson.Object) or netconf.integer(fields, "schema") != SCHEMA:
            return False
        record.netns = netconf.string(fields, "netns")
        record.container_cookie = netconf.integer(fields, "netnsCookie")
        record.container_file = netconf.string(fields, "netnsFile")
        record.host_cookie = netconf.integer(fields, "hostCookie")
        record.number = netconf.integer(fields, "netnsId") if "netnsId" in fields else -1
        ops = netconf.values(fields, "ops")
        record.ops = list(ops) if ops is not None else []
        record.shared = list(netconf.values(fields, "shared") or ())
    except CniError:
        return False
    return True


def remove_halves(key: Attachment, plugin: str) -> None:
    """For an attachment without a record: remove half of a file, if a call was killed while it wrote the first one."""
    if own(key, CHAIN) is None:
        try:
            files.remove_file(Record(key, CHAIN).path + SUFFIXES[0])
        except OSError:
            pass  # a GC removes it
    Record(key, plugin).remove()


def keys_of(network: str, plugin: str) -> list[Attachment]:
    """The attachments of `network` that `plugin` has a record of."""
    return [record.key for record in all_records(plugin) if record.key.network == network]


def of_attachment(key: Attachment) -> list[Record]:
    """The records of all plugins of one attachment."""
    try:
        names = os.listdir(key.folder)
    except OSError:
        return []
    plugins = {name.rpartition(".")[0] for name in names if name.endswith(SUFFIXES[1:])}
    return [record for plugin in plugins if (record := load(key, plugin)) is not None]


def all_records(plugin: str) -> list[Record]:
    """Every readable record of `plugin`, finished or not, whatever its network."""
    top = files.run_dir() + "/attachments"
    found = []
    try:
        folders = os.listdir(top)
    except (FileNotFoundError, NotADirectoryError):
        return []
    for folder in folders:
        key = key_of(f"{top}/{folder}", plugin)
        record = load(key, plugin) if key is not None else None
        if record is not None:
            found.append(record)
    return found


def key_in(folder: str, plugin: str) -> Attachment | None:
    """The attachment that the plugin's record in `folder` names. None if there is none, or if it is of another folder."""
    for suffix in (".json", ".adding"):
        key = named_in(fields_in(f"{folder}/{plugin}{suffix}"))
        if key is not None and key.folder == folder:
            return key
    return None


def key_of(folder: str, plugin: str) -> Attachment | None:
    """The same, also by the record of a chain, of which the plugin may have a part."""
    return key_in(folder, plugin) or key_in(folder, CHAIN)


def file_of(hexed: str, plugin: str) -> str:
    """Whose file a record of the plugin is in, so whose lock guards it: CHAIN if the attachment has but that one."""
    names = files.listed(f"{files.run_dir()}/attachments/{hexed}")
    kinds = {name.partition(".")[0] for name in names}
    return CHAIN if CHAIN in kinds and plugin not in kinds else plugin


def fields_in(path: str) -> gojson.Object:
    """The JSON object in a file of ours; an empty one when the file cannot be read."""
    try:
        fields = gojson.decode(files.read(path))
    except (OSError, CniError):
        return gojson.Object()
    return fields if isinstance(fields, gojson.Object) else gojson.Object()


def named_in(fields: gojson.Object) -> Attachment | None:
    """The attachment that a file of ours is about."""
    names = [fields.get(name) for name in ("network", "containerID", "ifname")]
    return Attachment(*map(str, names)) if all(isinstance(name, str) for name in names) else None

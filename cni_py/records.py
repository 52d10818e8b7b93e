"""Attachment records: what each plugin made for an attachment, written before the first effect, removed after the last.

    /run/cni-py/attachments/<hex>/<plugin>.adding   an ADD is under way, or was killed
    /run/cni-py/attachments/<hex>/<plugin>.json     the ADD succeeded
    /run/cni-py/published/                          which attachments publish ports for an address: see portindex
    /run/cni-py/lock/                               locks

<hex> is the first half of the SHA-256 of network \\0 containerID \\0 ifname. /run is a tmpfs: records end with the boot, as
do the kernel objects they describe. With them DEL and GC need neither a namespace nor a prevResult nor libcni's cache.
The record, not a comment in the kernel, says who owns what: the kernel keeps the first comment when a key is added again.
"""

import errno
import os

from cni_py import jsontext, netconf
from cni_py.errors import CniError, os_error, warn
from cni_py.sha import sha256

SCHEMA = 1
HEX = 16  # digits that name an attachment, in comments and files
TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_py.kernel.context import Kernel

S_IFMT, S_IFREG = 0o170000, 0o100000  # inode(7)
FILE_MAX = 16 << 20  # bytes; the record of 60,000 published ports has 6 MB
SUFFIXES = (".adding.tmp", ".adding", ".json")  # what a record can be on disk
COMMENT_MAX = 128  # NFTNL_UDATA_COMMENT_MAXLEN, libnftnl; also far below IFALIASZ (256, linux/if.h)


def run_dir() -> str:
    """Where records and locks live: /run/cni-py, or the user's own runtime directory without root."""
    own = os.environ.get("XDG_RUNTIME_DIR") if os.geteuid() != 0 else ""
    return f"{own or '/run'}/cni-py"  # one that is set and empty is none (XDG Base Directory Specification)


def lock_path(name: str) -> str:
    """The path of a lock file; whoever locks it makes its folder."""
    return f"{run_dir()}/lock/{name}"


def read(path: str, *, follow: bool = False) -> bytes:
    """What an ordinary file of at most FILE_MAX bytes contains. OSError for everything else.

    Opening a FIFO waits for its writer and /dev/zero has no end, so what is not an ordinary file is not read. A symlink is
    only followed (`follow`) where an administrator may have made one.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (0 if follow else os.O_NOFOLLOW))
    with open(fd, "rb", buffering=0) as file:
        status = os.fstat(fd)
        if status.st_mode & S_IFMT != S_IFREG:
            raise OSError(errno.EINVAL, "not an ordinary file")
        if status.st_size > FILE_MAX:
            raise OSError(errno.EFBIG, f"larger than {FILE_MAX >> 20} MiB")
        return file.read(FILE_MAX) or b""


def write(path: str, text: bytes) -> None:
    """Write a file of mode 0600 in place of the one at `path`, whole or not at all. OSError.

    What is at the temporary name was left by a call that was killed, whatever it is: it goes, and is never opened.
    """
    temporary = path + ".tmp"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        fd = os.open(temporary, flags, 0o600)
    except FileExistsError:
        os.unlink(temporary)
        fd = os.open(temporary, flags, 0o600)
    with open(fd, "wb") as file:
        file.write(text)
    os.rename(temporary, path)


def make_folder(path: str) -> None:
    """mkdir -p, mode 0700. CniError."""
    try:
        make_folders(path, 0o700)
    except OSError as error:
        raise os_error(f"cannot make the folder {path}", error) from error


def make_folders(path: str, mode: int) -> None:
    """mkdir -p that gives every new folder the mode: os.makedirs leaves those above to the umask, which may be 0. OSError."""
    if os.path.isdir(path):
        return
    head = os.path.dirname(path.rstrip("/"))
    if head and head != path:
        make_folders(head, mode)
    try:
        os.mkdir(path, mode)
    except FileExistsError:
        if not os.path.isdir(path):
            raise


def published_dir() -> str:
    """The index of published ports."""
    return run_dir() + "/published"


def may_be_published(name: str) -> bool:
    """Whether the index of published ports lists an address, or an interface_name(). True also where there is no index yet.

    Two stat calls where nothing is listed: every ADD and DEL asks.
    """
    top = published_dir()
    return os.path.isdir(f"{top}/{name}") or not os.path.isdir(top)


class Attachment:
    """One interface of one container in one network, and every name derived from it."""

    __slots__ = ("container_id", "hex", "ifname", "network")

    def __init__(self, network: str, container_id: str, ifname: str) -> None:
        self.network = network
        self.container_id = container_id
        self.ifname = ifname
        self.hex: str = sha256(os.fsencode(f"{network}\0{container_id}\0{ifname}")).hexdigest()[:16]

    @property
    def label(self) -> str:
        """network/containerID/ifname, for people."""
        return f"{self.network}/{self.container_id}/{self.ifname}"

    @property
    def comment(self) -> str:
        """What every object of ours in the kernel carries; code matches the 16 hex digits alone."""
        text = f"{self.hex} {self.label}".encode("utf-8", "replace")  # an interface name need not be UTF-8
        return text[:COMMENT_MAX].decode("utf-8", "ignore")

    @property
    def host_veth(self) -> str:
        """The name of the host's end of the pair."""
        return "veth" + self.hex[:8]

    @property
    def folder(self) -> str:
        """Where the records of this attachment are."""
        return f"{run_dir()}/attachments/{self.hex}"

    def mac(self, end: str) -> bytes:
        """A locally administered MAC for one end ("host", "container").

        The same each time on one host, until its boot, so that a plan and the ADD after it agree; different on every host,
        so that two hosts on one segment do not collide.
        """
        return derived_mac(f"{self.hex}/{end}")


def derived_mac(seed: str) -> bytes:
    """02:xx:xx:xx:xx:xx from `seed`, this boot of this kernel, and the network namespace we run in.

    Several hosts may run on one kernel (kind, LXC, containerlab): no two network namespaces have one inode at the same time.
    """
    digest: bytes = sha256(f"{boot_id()}/{os.stat('/proc/self/ns/net').st_ino}/{seed}".encode()).digest()
    return b"\x02" + digest[:5]


def boot_id() -> str:
    """The kernel's id of this boot (proc_sys_kernel(5), random/boot_id)."""
    with open("/proc/sys/kernel/random/boot_id", "rb") as file:
        return file.read().decode().strip()


def attachment_in(comment: str) -> "tuple[str, Attachment | None]":
    """The hex and, where it is not cut, the attachment that a comment or an alias of ours names."""
    hexed, _, label = comment.partition(" ")
    names = label.split("/")
    key = Attachment(*names) if len(names) == 3 else None
    return hexed[:HEX], key if key is not None and key.hex == hexed else None


def interface_name(key: Attachment) -> str:
    """What the index of published ports calls a container's interface, whatever the network is called."""
    digest: str = sha256(os.fsencode(f"{key.container_id}\0{key.ifname}")).hexdigest()
    return digest[:16]


class Record:
    """What one plugin made for one attachment."""

    __slots__ = (
        "container_cookie",
        "container_file",
        "damage",
        "done",
        "host_cookie",
        "key",
        "netns",
        "ops",
        "plugin",
    )

    def __init__(self, key: Attachment, plugin: str) -> None:
        self.key = key
        self.plugin = plugin
        self.netns = ""
        self.container_cookie = 0
        self.container_file = ""  # device:inode of the namespace, where the kernel has no cookies
        self.damage = ""  # why it could not be read
        self.host_cookie = 0
        self.ops: list[jsontext.Encodable] = []
        self.done = False

    def is_of(self, kernel: "Kernel") -> bool | None:
        """Whether the container's namespace of `kernel` is the one of the ADD; None when the record does not tell."""
        if self.container_cookie:
            return kernel.container_cookie == self.container_cookie
        if self.container_file:
            return kernel.container_file == self.container_file
        return None

    @property
    def path(self) -> str:
        """The path without .adding or .json."""
        return f"{self.key.folder}/{self.plugin}"

    def save(self) -> None:
        """Write the record as `.adding`, atomically."""
        path = self.path + ".adding"
        text = jsontext.encode(self._fields(), None).encode()
        try:
            make_folder(self.key.folder)
            try:
                write(path, text)
            except FileNotFoundError:  # a GC has removed the folder, which was empty
                make_folder(self.key.folder)
                write(path, text)
        except OSError as error:
            raise os_error(f"cannot write the attachment record {path}", error) from error

    def finish(self) -> None:
        """The ADD has succeeded: the record is now one that only DEL and GC remove."""
        os.rename(self.path + ".adding", self.path + ".json")
        self.done = True

    def remove(self) -> None:
        """Forget this plugin's part, and the attachment's folder with the last one.

        A file that cannot be removed (a read-only file system) is no reason to fail: what it lists is undone, and to undo
        it once more does nothing.
        """
        for suffix in SUFFIXES:
            try:
                remove_file(self.path + suffix)
            except OSError as error:
                warn(f"cannot remove the attachment record {self.path}{suffix}: {error.strerror}")
        try:
            os.rmdir(self.key.folder)
        except OSError:
            pass  # another plugin's record is still there, or the folder never was

    def _fields(self) -> "dict[str, jsontext.Encodable]":
        return {
            "schema": SCHEMA,
            "network": self.key.network,
            "containerID": self.key.container_id,
            "ifname": self.key.ifname,
            "netns": self.netns,
            "netnsCookie": self.container_cookie,
            "hostCookie": self.host_cookie,
            **({"netnsFile": self.container_file} if self.container_file else {}),
            "ops": self.ops,
        }


def remove_file(path: str) -> None:
    """rm -f, also of an empty folder that somebody put there. OSError."""
    try:
        os.unlink(path)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except IsADirectoryError:
        os.rmdir(path)


def load(key: Attachment, plugin: str) -> Record | None:
    """The record of one plugin: the unfinished one if there is one, else the finished one, else None.

    One that cannot be read still says that something was made: it has `damage`, and no operations.
    """
    record = Record(key, plugin)
    for suffix in (".adding", ".json"):
        try:
            text = read(record.path + suffix)
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
    """Take what `text` says; False when it is no record."""
    try:
        fields = jsontext.decode(text)
        if not isinstance(fields, jsontext.Object) or netconf.integer(fields, "schema") != SCHEMA:
            return False
        record.netns = netconf.string(fields, "netns")
        record.container_cookie = netconf.integer(fields, "netnsCookie")
        record.container_file = netconf.string(fields, "netnsFile")
        record.host_cookie = netconf.integer(fields, "hostCookie")
        ops = netconf.values(fields, "ops")
        record.ops = list(ops) if ops is not None else []
    except CniError:
        return False
    return True


def keys_of(network: str, plugin: str) -> list[Attachment]:
    """The attachments of `network` of which `plugin` has a record: what GC looks at."""
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
    top = run_dir() + "/attachments"
    found = []
    try:
        folders = os.listdir(top)
    except (FileNotFoundError, NotADirectoryError):
        return []
    for folder in folders:
        key = key_in(f"{top}/{folder}", plugin)
        record = load(key, plugin) if key is not None else None
        if record is not None:
            found.append(record)
    return found


def key_in(folder: str, plugin: str) -> Attachment | None:
    """The attachment whose records are in `folder`, checked against the folder's name."""
    for suffix in (".json", ".adding"):
        try:
            fields = jsontext.decode(read(f"{folder}/{plugin}{suffix}"))
            if isinstance(fields, jsontext.Object):
                key = Attachment(*(netconf.string(fields, name) for name in ("network", "containerID", "ifname")))
                return key if key.folder == folder else None
        except (OSError, CniError):
            continue
    return None

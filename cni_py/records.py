"""Attachment records: what each plugin made for an attachment, written before the first effect, removed after the last.

    /run/cni-py/attachments/<hex>/<plugin>.adding   an ADD is under way, or was killed
    /run/cni-py/attachments/<hex>/<plugin>.json     the ADD succeeded
    /run/cni-py/lock/                               locks

<hex> is the first half of the SHA-256 of network \\0 containerID \\0 ifname. /run is a tmpfs: records end with the boot, as
do the kernel objects they describe. With them DEL and GC need neither a namespace nor a prevResult nor libcni's cache.
The record, not a comment in the kernel, says who owns what: the kernel keeps the first comment when a key is added again.
"""

import os

from cni_py import jsontext, netconf
from cni_py.errors import CniError, os_error
from cni_py.sha import sha256

SCHEMA = 1
COMMENT_MAX = 128  # NFTNL_UDATA_COMMENT_MAXLEN, libnftnl; also far below IFALIASZ (256, linux/if.h)


def run_dir() -> str:
    """Where records and locks live: /run/cni-py, or the user's own runtime directory without root."""
    own = os.environ.get("XDG_RUNTIME_DIR") if os.geteuid() != 0 else ""
    return f"{own or '/run'}/cni-py"  # one that is set and empty is none (XDG Base Directory Specification)


def lock_path(name: str) -> str:
    """The path of a lock file; its folder exists afterwards."""
    folder = run_dir() + "/lock"
    make_folder(folder)
    return f"{folder}/{name}"


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

        The same each time on one boot of one host, so that a plan and the ADD after it agree; different on every host,
        so that two hosts on one segment do not collide.
        """
        return derived_mac(f"{self.hex}/{end}")


def derived_mac(seed: str) -> bytes:
    """02:xx:xx:xx:xx:xx from `seed` and this boot of this host."""
    digest: bytes = sha256(f"{boot_id()}/{seed}".encode()).digest()
    return b"\x02" + digest[:5]


def boot_id() -> str:
    """The kernel's id of this boot (proc_sys_kernel(5), random/boot_id)."""
    with open("/proc/sys/kernel/random/boot_id", "rb") as file:
        return file.read().decode().strip()


class Record:
    """What one plugin made for one attachment."""

    __slots__ = ("container_cookie", "done", "host_cookie", "key", "netns", "ops", "plugin")

    def __init__(self, key: Attachment, plugin: str) -> None:
        self.key = key
        self.plugin = plugin
        self.netns = ""
        self.container_cookie = 0
        self.host_cookie = 0
        self.ops: list[jsontext.Encodable] = []
        self.done = False

    @property
    def path(self) -> str:
        """The path without .adding or .json."""
        return f"{self.key.folder}/{self.plugin}"

    def save(self) -> None:
        """Write the record as `.adding`, atomically."""
        make_folder(self.key.folder)
        path = self.path + ".adding"
        try:
            fd = os.open(path + ".tmp", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            with open(fd, "wb") as file:
                file.write(jsontext.encode(self._fields(), None).encode())
            os.rename(path + ".tmp", path)
        except OSError as error:
            raise os_error(f"cannot write the attachment record {path}", error) from error

    def finish(self) -> None:
        """The ADD has succeeded: the record is now one that only DEL and GC remove."""
        os.rename(self.path + ".adding", self.path + ".json")
        self.done = True

    def remove(self) -> None:
        """Forget this plugin's part, and the attachment's folder with the last one."""
        for suffix in (".adding.tmp", ".adding", ".json"):
            try:
                os.unlink(self.path + suffix)
            except FileNotFoundError:
                pass
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
            "ops": self.ops,
        }


def load(key: Attachment, plugin: str) -> Record | None:
    """The record of one plugin: the unfinished one if there is one, else the finished one, else None."""
    record = Record(key, plugin)
    for suffix in (".adding", ".json"):
        try:
            with open(record.path + suffix, "rb") as file:
                text = file.read()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise os_error(f"cannot read the attachment record {record.path}{suffix}", error) from error
        record.done = suffix == ".json"
        _fill(record, text)
        return record
    return None


def _fill(record: Record, text: bytes) -> None:
    """Take what can be read from `text`; a damaged record still says that something was made."""
    try:
        fields = jsontext.decode(text)
        if not isinstance(fields, jsontext.Object) or netconf.integer(fields, "schema") != SCHEMA:
            return
        record.netns = netconf.string(fields, "netns")
        record.container_cookie = netconf.integer(fields, "netnsCookie")
        record.host_cookie = netconf.integer(fields, "hostCookie")
        ops = netconf.lookup(fields, "ops")
        record.ops = list(ops) if isinstance(ops, list) else []
    except CniError:
        return


def keys_of(network: str, plugin: str) -> list[Attachment]:
    """The attachments of `network` of which `plugin` has a record: what GC looks at."""
    return [record.key for record in all_records(plugin) if record.key.network == network]


def all_records(plugin: str) -> list[Record]:
    """Every readable record of `plugin`, finished or not, whatever its network."""
    top = run_dir() + "/attachments"
    found = []
    try:
        folders = os.listdir(top)
    except FileNotFoundError:
        return []
    for folder in folders:
        key = _key_in(f"{top}/{folder}", plugin)
        record = load(key, plugin) if key is not None else None
        if record is not None:
            found.append(record)
    return found


def _key_in(folder: str, plugin: str) -> Attachment | None:
    """The attachment whose records are in `folder`, checked against the folder's name."""
    for suffix in (".json", ".adding"):
        try:
            with open(f"{folder}/{plugin}{suffix}", "rb") as file:
                fields = jsontext.decode(file.read())
            if isinstance(fields, jsontext.Object):
                key = Attachment(*(netconf.string(fields, name) for name in ("network", "containerID", "ifname")))
                return key if key.folder == folder else None
        except (OSError, CniError):
            continue
    return None

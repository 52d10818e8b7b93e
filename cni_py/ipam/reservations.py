"""host-local's directory of reservations: who holds which address. On disk, and shared with the Go plugin.

    <dataDir>/<network>/lock                 flock(2), held by us and by the Go plugin during every read and change
    <dataDir>/<network>/192.0.2.7            containerID CRLF ifname (before 2019: containerID); made with O_EXCL, fsync'ed
    <dataDir>/<network>/last_reserved_ip.0   the address that range set 0 gave out last
    <run>/host-local/<dev>-<inode>/          our index of that directory; can be deleted at any time

We put no file of our own into the directory, since the Go plugin opens every file in it.

**Cost.** The Go plugin reads every reservation in each call. We ask the index, in which one symlink per holder names its
addresses. The index is trusted only while the directory is as our last change left it. Each change of ours ends by setting
the directory's mtime to the clock's nanosecond; any later change, by anyone, sets another mtime. (The kernel's own times
move in ticks of some milliseconds, so a file made within the tick of our change would not show.) Before a reservation is
acted upon, the index is compared with the file. A free address is found by asking for the names after last_reserved_ip,
not by listing.

**Reclaim.** A network namespace ends with the kernel that made it, so a reservation of an earlier boot serves nobody. The
proof is a stamp in the file's extended attribute `user.cni_py.boot`: machine id and boot id of a boot during which this
file existed. We set it when we reserve, and on files of the Go plugin when we first see them. A file whose stamp names
another boot of this machine is dead, whoever wrote it: both programs make a reservation with O_EXCL and never rewrite one,
so an attachment of this boot has a file of this boot. No clock is asked. Where the proof is missing the reservation stays:
no extended attributes, no stamp yet, a stamp of another machine (shared storage), the same boot id (hibernation). The dead
are removed when the index is made anew. The first ADD, DEL or GC of a boot makes it, as the index is on a tmpfs; so a
trusted index has none. The address of an empty file counts as free: its writer died between creating and writing it, or
the power failed. Under the lock nobody else is between the two.
"""

import errno
import time

from cni_py import files
from cni_py.addr import ip_text, parse_ip
from cni_py.attachment import naming
from cni_py.attachment.engine import Op
from cni_py.attachment.locks import Lock
from cni_py.errors import InvalidNetworkConfig, IOFailure, os_error
from cni_py.lean import os
from cni_py.protocol import netconf
from cni_py.protocol.gojson import Object
from cni_py.sha import sha256

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

    from cni_py.attachment.context import Kernel
    from cni_py.protocol.netconf import NetConf

DATA_DIR = "/var/lib/cni/networks"
STAMP = "user.cni_py.boot"
CURSOR = "last_reserved_ip."
OPERATOR = b"operator: "  # how the content of `cni-py ipam reserve` begins: no container ID has a space, and a GC passes it over
MACHINE_ID = "/etc/machine-id"  # machine-id(5)
HELD: "dict[str, Pool]" = {}  # by directory: the pools that this process has locked, for flock(2) would wait for ourselves
DEPTH_MAX = 8  # folders within folders
CONTENT_MAX = 4096  # bytes; a container ID is a file name elsewhere (NAME_MAX 255)
# Others may write into the directory: a symlink is not followed, and a FIFO is not waited for.
SAFELY = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


def directory_of(conf: "NetConf") -> str:
    """<dataDir>/<network>. InvalidNetworkConfig for a dataDir with a NUL; the network's name has been checked (no slash)."""
    data_dir = netconf.string(conf.ipam or Object(), "dataDir") or DATA_DIR
    if "\0" in data_dir:
        raise InvalidNetworkConfig("dataDir is not a path: it has a null byte in it")
    return f"{data_dir}/{conf.name}"


def reserved(conf: "NetConf", container_id: str, ifname: str) -> set[bytes]:
    """The addresses that the network's directory has for an attachment; nothing is locked or changed. CniError."""
    with Pool(directory_of(conf), look=True) as pool:
        names = pool.of_attachment(container_id, ifname)[1]
    return {parse_ip(name) for name in names if is_address(name)}


def holder(container_id: str, ifname: str = "") -> bytes:
    """The content of an attachment's reservations; without `ifname` in the form that the Go plugin wrote before 2019."""
    return os.fsencode(f"{container_id}\r\n{ifname}").strip()


def this_boot() -> str:
    """The stamp of this boot, <machine id>/<boot id>; "" where the kernel does not tell the boot id."""
    try:
        boot = naming.boot_id()
    except OSError:
        return ""
    try:
        with open(MACHINE_ID, encoding="utf-8") as file:
            return f"{file.read(64).strip()}/{boot}"
    except (OSError, ValueError):
        return f"/{boot}"


def is_over(stamp: str, now: str) -> bool:
    """Whether `stamp` names another boot than `now`, of the same machine."""
    machine, slash, boot = stamp.partition("/")
    this_machine, _, this = now.partition("/")
    return bool(slash and boot and this) and machine == this_machine and boot != this


def replace_link(path: str, target: str) -> None:
    """Make `path` a symlink to `target`, which is a value and no path; "" removes it. OSError.

    A symlink is read and made in one system call each, so that it is never seen half written.
    """
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    if target:
        os.symlink(target, path)


class DirectoryLock(Lock):
    """The lock file of a network, with the mode the Go plugin gives it."""

    __slots__ = ()

    def _open(self) -> int:
        return os.open(self.path, os.O_RDWR | os.O_CREAT | SAFELY, 0o750)


class Index:
    """Our index: for each holder one symlink with the names of its reservations. `directory`: a descriptor of the real thing."""

    __slots__ = ("boot", "folder")

    def __init__(self, directory: int, boot: str) -> None:
        status = os.fstat(directory)
        self.folder = f"{files.run_dir()}/host-local/{status.st_dev:x}-{status.st_ino:x}"
        self.boot = boot

    def is_current(self, directory: int) -> bool:
        """Whether the directory has not changed since close()."""
        try:
            return os.readlink(self.folder + "/state") == self._state(os.fstat(directory))
        except OSError:
            return False

    def get(self, who: bytes) -> list[str]:
        """The names of the holder's reservations (addresses as text); none for an unknown holder."""
        try:
            return os.readlink(self._entry(who)).split("/")
        except OSError:
            return []

    def put(self, who: bytes, names: list[str]) -> None:
        """Write the holder's `names`, none to remove the holder. OSError."""
        replace_link(self._entry(who), "/".join(names))

    def rewrite(self, found: "dict[bytes, list[str]]") -> None:
        """Replace all entries by what a scan found. OSError."""
        files.make_folders(self.folder, 0o700)
        for name in os.listdir(self.folder):
            os.unlink(f"{self.folder}/{name}")
        for who, names in found.items():
            self.put(who, names)

    def close(self, directory: int) -> None:
        """Give the directory an mtime that no later change will have, and remember it. OSError."""
        now = time.time_ns()
        os.utime(directory, ns=(now, now))
        status = os.fstat(directory)
        # Some file systems keep coarser times, in which two changes may be alike: there the index is never current.
        fine = status.st_mtime_ns == now
        replace_link(self.folder + "/state", self._state(status) if fine else "")

    def _state(self, status: os.stat_result) -> str:
        return f"{self.boot} {status.st_mtime_ns} {status.st_ctime_ns}"

    def _entry(self, who: bytes) -> str:
        return f"{self.folder}/{sha256(who).hexdigest()[:32]}"


class Pool:
    """`with Pool(directory) as pool:` the reservations of a network, locked. CniError when the directory cannot be used.

    `make` creates the directory; without it a missing one is an empty pool. `look` changes nothing, and takes the lock only
    together with `make`. To enter the pool of a directory that is held gives that pool.
    """

    __slots__ = ("_changed", "_dead", "_depth", "_found", "_index", "_lock", "boot", "directory", "fd", "look", "make")

    def __init__(self, directory: str, *, make: bool = False, look: bool = False) -> None:
        self.directory = directory
        self.make = make
        self.look = look
        self.fd = -1  # of the directory; -1: there is none
        self.boot = ""
        self._depth = 0
        self._lock: Lock | None = None
        self._index: Index | None = None  # None: cannot be trusted, `_found` is what counts
        self._found: dict[bytes, list[str]] = {}
        self._dead: set[str] = set()
        self._changed = False

    def __enter__(self) -> "Pool":
        pool = HELD.get(self.directory, self)
        if pool._depth == 0:
            try:
                pool._open()
            except OSError as error:
                pool._close()
                raise os_error(f"cannot use the IPAM directory {self.directory}", error) from error
            except BaseException:
                pool._close()
                raise
            HELD[self.directory] = pool
        pool._depth += 1
        return pool

    def __exit__(
        self, kind: "type[BaseException] | None", error: "BaseException | None", trace: "TracebackType | None"
    ) -> None:
        pool = HELD[self.directory]
        pool._depth -= 1
        if pool._depth == 0:
            del HELD[self.directory]
            pool._close()
            if isinstance(error, OSError):
                raise os_error(f"cannot use the IPAM directory {self.directory}", error) from error

    def is_free(self, ip: bytes) -> bool:
        """Whether nobody has reserved `ip`. An empty file, or one of an earlier boot, counts as free; anything else does not."""
        name = ip_text(ip)
        if self.fd < 0 or name in self._dead:
            return True
        try:
            status = os.stat(name, dir_fd=self.fd, follow_symlinks=False)
        except FileNotFoundError:
            return True
        return files.is_ordinary(status) and status.st_size == 0

    def of_attachment(self, container_id: str, ifname: str) -> "tuple[bytes, list[str]]":
        """The content and the names of an attachment's reservations; of those in the old form if it has no others."""
        for who in (holder(container_id, ifname), holder(container_id)):
            names = self._names(who)
            if self._index and not all(self._read(name)[0] == who for name in names):
                self._scan()  # somebody edited a reservation in place
                names = self._names(who)
            if names:
                return who, names
        return who, []

    def holder_of(self, ip: bytes) -> bytes:
        """The content of the reservation of an address, b"" when there is none."""
        return self._read(ip_text(ip))[0]

    def by_holder(self) -> "dict[bytes, list[str]]":
        """All reservations, read anew: content -> names."""
        if self.fd >= 0:
            self._scan()
        return dict(self._found)

    def listed(self) -> "Iterator[tuple[str, bytes, bool]]":
        """Every reservation, read anew: the address, the content, whether it is of an earlier boot. Nothing is written."""
        for name in self._walk(self.fd, "") if self.fd >= 0 else ():
            if is_address(name):
                yield name, *self._read(name)

    def is_of_another_machine(self, name: str) -> bool:
        """Whether the reservation's stamp names another machine, or none and another boot: the directory is shared."""
        try:
            stamp = os.getxattr(f"/proc/self/fd/{self.fd}/{name}", STAMP).decode("utf-8", "replace")
        except OSError:
            return False
        machine = stamp.partition("/")[0]
        return bool(machine and self.boot) and machine != self.boot.partition("/")[0]

    def cursor(self, number: int) -> bytes | None:
        """The address that range set `number` gave out last; None when that is not known."""
        try:
            return parse_ip(self._read(f"{CURSOR}{number}")[0].decode("utf-8", "replace"))
        except ValueError:
            return None

    def move_cursor(self, number: int, address: str) -> None:
        """Write down the address that set `number` gave out last.

        One write(2), then the truncation. Killed between the two it leaves an address followed by the end of a longer one,
        which is an address, too, or none: either only changes which address comes next.
        """
        self._changed = True
        fd = os.open(f"{CURSOR}{number}", os.O_WRONLY | os.O_CREAT | SAFELY, 0o600, dir_fd=self.fd)
        try:
            os.write(fd, address.encode())
            os.ftruncate(fd, len(address))
        finally:
            os.close(fd)

    def reserve(self, address: str, who: bytes) -> None:
        """Make the reservation, and wait until it is on the disk. FileExistsError when somebody has it."""
        # First the index: of_attachment() notices a name too many, but not one that is missing.
        self._remember(who, [*self._names(who), address])
        try:
            fd = self._create(address)
        except FileExistsError:
            if not self.is_free(parse_ip(address)):
                raise
            os.unlink(address, dir_fd=self.fd)  # an empty file, whose writer died: see the module's docstring
            fd = self._create(address)
        self._changed = True
        try:
            os.write(fd, who)
            self._stamp(fd)
            os.fsync(fd)
            os.fsync(self.fd)  # the directory: the name is not on the disk with the file (fsync(2))
        except BaseException:
            os.unlink(address, dir_fd=self.fd)
            raise
        finally:
            os.close(fd)

    def release(self, who: bytes, names: list[str]) -> None:
        """Delete those of the reservations `names` that are `who`'s."""
        for name in names:
            if self._read(name)[0] == who:
                os.unlink(name, dir_fd=self.fd)
                self._changed = True
        if names and self.fd >= 0:
            self._remember(who, [name for name in self._names(who) if name not in names])

    def _create(self, name: str) -> int:
        return os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | SAFELY, 0o600, dir_fd=self.fd)

    def _open(self) -> None:
        if self.make:
            try:
                files.make_folders(self.directory, 0o755)
            except OSError as error:
                raise IOFailure(f"mkdir {self.directory}: {error.strerror}") from error
        elif not os.path.isdir(self.directory):
            return
        if self.make or not self.look:
            what = f"the IPAM directory {self.directory}"
            lock = DirectoryLock(self.directory + "/lock", what, needed=self.make)
            self._lock = lock.__enter__()
        self.fd = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self.boot = this_boot()
        index = Index(self.fd, self.boot)
        if index.is_current(self.fd):
            self._index = index
        else:
            self._scan()

    def _close(self) -> None:
        try:
            if self._changed and self._index:
                self._try_index(self._index.close, self.fd)
        finally:
            self._index, self._found, self._changed = None, {}, False
            fd, self.fd = self.fd, -1
            lock, self._lock = self._lock, None
            if fd >= 0:
                os.close(fd)
            if lock is not None:
                lock.__exit__(None, None, None)

    def _names(self, who: bytes) -> list[str]:
        return self._index.get(who) if self._index else self._found.get(who, [])

    def _remember(self, who: bytes, names: list[str]) -> None:
        if self._index:
            self._try_index(self._index.put, who, names)
        else:
            self._found[who] = names

    def _try_index(self, action: "Callable[..., None]", *values: object) -> None:
        """Write the index. Where that fails this call goes on without it, and the next does not find it current."""
        try:
            action(*values)
        except OSError:
            self._index = None

    def _scan(self) -> None:
        """Read every reservation, stamp those without a stamp, delete the dead, and make the index anew."""
        self._index, self._found, self._dead = None, {}, set()
        flat = True
        for name in self._walk(self.fd, ""):
            flat = flat and "/" not in name
            if name == "lock" or name.startswith(CURSOR) or name.endswith("/"):
                continue
            content, is_dead = self._read(name, stamp=not self.look)
            if is_dead and is_address(name):
                self._dead.add(name)
            elif content:
                self._found.setdefault(content, []).append(name)
        if self.look:
            return
        try:
            for name in self._dead:
                os.unlink(name, dir_fd=self.fd)
            self._dead = set()
        except OSError:
            return  # a read-only file system: the dead count as free, and the next call scans again
        if flat:
            self._index, self._changed = Index(self.fd, self.boot), True
            self._try_index(self._index.rewrite, self._found)

    def _walk(self, fd: int, prefix: str) -> "Iterator[str]":
        """The names of the files in the directory and (as in the Go plugin) in folders below it; a folder's ends in a slash.

        Not deeper than DEPTH_MAX, as each level holds a descriptor.
        """
        with os.scandir(fd) as entries:
            found = sorted((entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries)
        for name, is_folder in found:
            yield f"{prefix}{name}/" if is_folder else prefix + name
            if is_folder and prefix.count("/") < DEPTH_MAX:
                below = os.open(prefix + name, os.O_RDONLY | os.O_DIRECTORY | SAFELY, dir_fd=self.fd)
                try:
                    yield from self._walk(below, f"{prefix}{name}/")
                finally:
                    os.close(below)

    def _read(self, name: str, *, stamp: bool = False) -> tuple[bytes, bool]:
        """The content of a file, stripped, and whether the file is dead. (b"", False) for what is no regular file.

        With `stamp` a reservation that has no stamp gets one.
        """
        if self.fd < 0:
            return b"", False
        try:
            fd = os.open(name, os.O_RDONLY | SAFELY, dir_fd=self.fd)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ELOOP, errno.ENXIO):  # gone; a symlink; a socket
                return b"", False
            raise
        try:
            if not files.is_ordinary(os.fstat(fd)):
                return b"", False
            content = os.read(fd, CONTENT_MAX).strip()
            if content.startswith(OPERATOR):  # not an attachment's: it outlives the boot
                return content, False
            return content, self._is_dead(fd, stamp and is_address(name))
        finally:
            os.close(fd)

    def _is_dead(self, fd: int, stamp: bool) -> bool:
        try:
            return is_over(os.getxattr(fd, STAMP).decode("utf-8", "replace"), self.boot)
        except OSError:
            if stamp:
                self._stamp(fd)
            return False

    def _stamp(self, fd: int) -> None:
        """Note in the file that it existed in this boot. Where there are no extended attributes it is never reclaimed."""
        if self.boot:
            try:
                os.setxattr(fd, STAMP, self.boot.encode())
            except OSError:
                pass


def is_address(name: str) -> bool:
    """Whether a file's name is that of a reservation: an address in its canonical form."""
    try:
        return ip_text(parse_ip(name)) == name
    except ValueError:
        return False


class ReserveAddress(Op):
    """One address of a range set is reserved for the attachment until DEL, and the set's cursor is on it."""

    directory: str
    range_set: int
    address: str
    container_id: str
    ifname: str
    owned = True
    line = "host: reserve {address} for {container_id}/{ifname} in {directory}"
    deed = "reserve {address} in {directory}"

    def apply(self, kernel: "Kernel") -> None:
        with Pool(self.directory, make=True) as pool:
            pool.reserve(self.address, holder(self.container_id, self.ifname))
            pool.move_cursor(self.range_set, self.address)

    def undo(self, kernel: "Kernel") -> None:
        with Pool(self.directory) as pool:
            pool.release(holder(self.container_id, self.ifname), [self.address])

"""Host ports that stay: which number a name was given last, on disk, for when it comes again.

    <folder>/<name>.json     {"schema": 1, "ports": {"80/tcp": 40123}}, mode 0600 in a folder of 0700

The key says for which port of the container. What is remembered is a wish: whoever publishes looks whether the number is free.
NAMES_MAX names are kept, those that were used last. A file that cannot be understood is told on stderr and written anew.
"""

from cni_py import files
from cni_py.errors import CniError
from cni_py.lean import os
from cni_py.protocol import gojson, netconf

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

SCHEMA = 1
NAMES_MAX = 4096
SPARE = 256  # names forgotten in one go: the folder is not read for every new one
KEYS_MAX = 256  # of a name
FILE_MAX = 1 << 16  # bytes; KEYS_MAX keys have 6 KiB
NAME_MAX = 64
NAME_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")
PORT_MAX = 65535


def is_name(text: str) -> bool:
    """Whether it can be a sticky name, and so a file's: letters, digits, dots, dashes and underscores."""
    return bool(text) and len(text) <= NAME_MAX and NAME_CHARACTERS.issuperset(text) and text[0] not in "._-"


class Memory:
    """What is remembered in a folder, which is made when first needed. `say` is told of what is damaged."""

    __slots__ = ("_said", "_say", "folder")

    def __init__(self, folder: str, say: "Callable[[str], None]") -> None:
        self.folder = folder
        self._say = say
        self._said = ""

    def recall(self, name: str) -> dict[str, int]:
        """The ports of a name by key, those used last at the end; none for one that is not known."""
        path = self._path(name)
        try:
            text = files.read(path)
            return _ports(text)
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except OSError as error:
            self._complain(f"{path}, which remembers a sticky port, cannot be read: {error.strerror}")
        except (CniError, ValueError) as error:
            self._complain(f"{path}, which remembers a sticky port, is damaged and is written anew: {error}")
        return {}

    def _complain(self, text: str) -> None:
        if text != self._said:
            self._said = text
            self._say(text)

    def remember(self, name: str, ports: dict[str, int]) -> None:
        """These, and what is known of other keys of the name. OSError."""
        path = self._path(name)
        known = self.recall(name)
        after = {**{key: port for key, port in known.items() if key not in ports}, **ports}
        if after == known:
            try:
                os.utime(path)
                return
            except FileNotFoundError:
                pass
        files.make_folders(self.folder, 0o700)
        if not os.path.lexists(path):
            self._forget_oldest()
        kept = dict(list(after.items())[-KEYS_MAX:])
        content = gojson.encode({"schema": SCHEMA, "ports": {**kept}}, None).encode()
        temporary = f"{self.folder}/.{name}.{os.getpid()}.tmp"
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with open(fd, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(fd)
        os.rename(temporary, path)

    def _path(self, name: str) -> str:
        if not is_name(name):
            raise ValueError(f"{name!r} is no name")
        return f"{self.folder}/{name}.json"

    def _forget_oldest(self) -> None:
        """Make room for one more; what a process left that was killed while it wrote goes, too."""
        with os.scandir(self.folder) as entries:
            found = [entry.path for entry in entries]
        if len(found) < NAMES_MAX:
            return
        by_age = sorted(found, key=_last_used)
        for path in by_age[: len(found) - NAMES_MAX + SPARE]:
            try:
                os.unlink(path)
            except OSError:
                pass


def _last_used(path: str) -> float:
    try:
        return os.lstat(path).st_mtime
    except OSError:
        return 0.0


def _ports(text: bytes) -> dict[str, int]:
    """CniError or ValueError for what remember() did not write."""
    fields = gojson.decode(text) if len(text) <= FILE_MAX else None
    if not isinstance(fields, gojson.Object) or netconf.integer(fields, "schema") != SCHEMA:
        raise ValueError(f"not ports of schema {SCHEMA}")
    ports = netconf.child(fields, "ports")
    if ports is None:
        raise ValueError("it has no ports")
    found = {key: netconf.integer(ports, key) for key in ports}
    if not all(1 <= port <= PORT_MAX for port in found.values()):
        raise ValueError("not the numbers of ports")
    return found

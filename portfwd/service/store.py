"""Mappings on disk, which the service publishes again when it starts.

    /var/lib/cni-py/portfwd/mappings/<id>.json      mode 0600, in folders of 0700; written in full or not at all

Every stored mapping can be read again: one beyond the limits of load() or of an answer to `list` is refused. Mappings of people
survive a power loss. Mappings of a container or a process end at the latest with this boot, so their files have the boot's id and
are not synced.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import stat
from collections.abc import Mapping as Object
from collections.abc import Sequence

from cni_py import files
from cni_py.attachment import naming
from portfwd.errors import PortfwdError, Usage
from portfwd.mapping import Mapping
from portfwd.service.requests import LINE_MAX

log = logging.getLogger("portfwd")

SCHEMA = 1
SUFFIX = ".json"
# bytes of a file: compared with the request, escapes make a text three times as long, and indentation a list twice
SIZE_MAX = 4 * LINE_MAX
TOTAL_MAX = 32 << 20  # bytes of all
MAPPINGS_MAX = 65536
NAMED_MAX = 5  # mappings in a sentence


def state_dir() -> str:
    """The folder of the service's state, for root or for this user."""
    if os.geteuid() == 0 and not files.is_unmapped("/var/lib/cni-py"):
        return "/var/lib/cni-py/portfwd"
    home = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return f"{home}/cni-py/portfwd"


class Store:
    """The mapping files in a folder, which is made when first needed."""

    def __init__(self, state: str) -> None:
        self.state = state
        self.folder = f"{state}/mappings"
        self._boot = naming.boot_id()
        self._unforgotten: dict[str, Mapping] = {}  # mappings that have ended and are still on disk, by id
        self._sizes: dict[str, int] = {}
        self._total = 0

    def save(self, mappings: Sequence[Mapping], before: Object[str, Mapping] | None = None) -> None:
        """Write all mappings or none; `before` has those they replace, by id. Usage when they are too large; PortfwdError."""
        texts = [(mapping, self._text(mapping)) for mapping in mappings]
        self._refuse_too_much(texts)
        named: list[Mapping] = []
        try:
            self._put(texts, named)
        except OSError as error:
            self._put_back(named, before or {})
            raise PortfwdError(f"cannot keep mappings in {self.folder}", _unchanged(error)) from error

    def _put(self, texts: Sequence[tuple[Mapping, bytes]], named: list[Mapping]) -> None:
        """Write all under temporary names, then rename all; `named` gets those renamed. OSError.

        A full disk makes the writing fail, before any file is replaced.
        """
        try:
            files.make_folders(self.folder, 0o700)
            for mapping, text in texts:
                self._write(mapping, text)
            for mapping, text in texts:
                os.rename(self._temporary(mapping), self._path(mapping.id))
                named.append(mapping)
                self._note(mapping.id, len(text))
                self._unforgotten.pop(mapping.id, None)
            if any(not mapping.owner for mapping, _ in texts):
                self._sync()
        except OSError:
            for mapping, _ in texts:
                with contextlib.suppress(OSError):  # half a file takes space on a full disk
                    os.unlink(self._temporary(mapping))
            raise

    def _put_back(self, named: Sequence[Mapping], before: Object[str, Mapping]) -> None:
        """Restore the files that there were before."""
        self.forget_in_time([mapping for mapping in named if mapping.id not in before])
        old = [before[mapping.id] for mapping in named if mapping.id in before]
        try:
            if old:
                self._put([(mapping, self._text(mapping)) for mapping in old], [])
        except OSError as error:
            log.error("the files of %s could not be restored: %s", _listed(old), error)

    def _text(self, mapping: Mapping) -> bytes:
        content: dict[str, object] = {"schema": SCHEMA, "mapping": mapping.to_json()}
        if mapping.owner:
            content["boot"] = self._boot
        return json.dumps(content, indent=1).encode() + b"\n"

    def _refuse_too_much(self, texts: Sequence[tuple[Mapping, bytes]]) -> None:
        for mapping, text in texts:
            if len(text) > SIZE_MAX:
                raise Usage(f"mapping {mapping.id} is too large to be kept", f"{len(text)} bytes, {SIZE_MAX} at most")
        known = [mapping.id for mapping, _ in texts if mapping.id in self._sizes]
        total = self._total - sum(self._sizes[name] for name in known) + sum(len(text) for _, text in texts)
        count = len(self._sizes) - len(known) + len(texts)
        if total > TOTAL_MAX or count > MAPPINGS_MAX:
            raise Usage("this service cannot keep more mappings", f"{MAPPINGS_MAX} of together {TOTAL_MAX} bytes")

    def _note(self, name: str, size: int) -> None:
        """Keep count of a file's size in bytes; 0 when it is gone."""
        self._total += size - self._sizes.pop(name, 0)
        if size:
            self._sizes[name] = size

    def _write(self, mapping: Mapping, text: bytes) -> None:
        temporary = self._temporary(mapping)
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with open(fd, "wb") as file:
            file.write(text)
            file.flush()
            if not mapping.owner:
                os.fsync(fd)

    def forget(self, mappings: Sequence[Mapping]) -> None:
        """Remove the files of all mappings or none; a missing one is no error. PortfwdError."""
        try:
            self._forget(mappings)
        except OSError as error:
            raise PortfwdError(f"cannot remove mappings from {self.folder}", _unchanged(error)) from error

    def _forget(self, mappings: Sequence[Mapping]) -> None:
        gone: list[Mapping] = []
        try:
            for mapping in mappings:
                if self._remove(mapping):
                    gone.append(mapping)
                self._note(mapping.id, 0)
            if any(not mapping.owner for mapping in gone):
                self._sync()
        except OSError:
            self._put_back(gone, {mapping.id: mapping for mapping in gone})
            raise

    def _remove(self, mapping: Mapping) -> bool:
        """Remove a file; False when there is none: unlink(2) on a read-only disk says EROFS for a missing file, too."""
        path = self._path(mapping.id)
        try:
            os.lstat(path)
            os.unlink(path)
        except FileNotFoundError:
            return False
        return True

    def forget_in_time(self, mappings: Sequence[Mapping]) -> list[str]:
        """Remove each file now, or at a later retry(). Returns a note on those that stay."""
        why = ""
        for mapping in mappings:
            try:
                self._forget([mapping])
                self._unforgotten.pop(mapping.id, None)
            except OSError as error:
                self._unforgotten[mapping.id] = mapping
                why = error.strerror or str(error)
        left = [mapping for mapping in mappings if mapping.id in self._unforgotten]
        return [f"the files of {_listed(left)} stay in {self.folder} until they can be removed: {why}"] if left else []

    def retry(self) -> None:
        """Try again to remove files that stayed."""
        before = list(self._unforgotten.values())
        if before and not self.forget_in_time(before):
            log.info("removed the files of %s, which had stayed", _listed(before))

    def names(self) -> list[str]:
        """The names of the files. PortfwdError when the folder cannot be read."""
        try:
            return sorted(os.listdir(self.folder))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise PortfwdError(f"cannot read the mappings in {self.folder}", error.strerror or str(error)) from error

    def load(self) -> list[Mapping]:
        """All readable mappings, in the order of ids. Damaged files are logged and stay. PortfwdError."""
        found = []
        for name in self.names():
            if name.startswith(".") and name.endswith(".tmp"):  # a service was killed while writing
                with contextlib.suppress(OSError):
                    os.unlink(f"{self.folder}/{name}")
            if name.startswith(".") or not name.endswith(SUFFIX):
                continue
            try:
                mapping = self._read(name.removesuffix(SUFFIX))
            except (OSError, ValueError, RecursionError, PortfwdError) as error:
                log.error("%s/%s is damaged, and stays as it is: %s", self.folder, name, error)
                continue
            if mapping is not None:
                found.append(mapping)
        return found

    def _read(self, name: str) -> Mapping | None:
        """Read a mapping; None, with its file removed, when it ended with an earlier boot. ValueError, OSError, PortfwdError."""
        path = self._path(name)
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)  # nor wait for a FIFO
        with open(fd, "rb") as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise ValueError("it is not an ordinary file")
            text = file.read(SIZE_MAX + 1)
        content = json.loads(text.decode()) if len(text) <= SIZE_MAX else None
        self._note(name, len(text))
        if not isinstance(content, dict) or content.get("schema") != SCHEMA:
            raise ValueError(f"it is not an object of schema {SCHEMA}")
        mapping = Mapping.from_json(content.get("mapping"))
        if mapping.id != name:
            raise ValueError(f"it holds mapping {mapping.id}")
        if mapping.owner and content.get("boot") != self._boot:
            with contextlib.suppress(OSError):  # later, then
                os.unlink(path)
                self._note(name, 0)
            return None
        return mapping

    def _temporary(self, mapping: Mapping) -> str:
        return f"{self.folder}/.{mapping.id}.tmp"

    def _path(self, name: str) -> str:
        return f"{self.folder}/{name}{SUFFIX}"

    def _sync(self) -> None:
        """Bring renames and removals to the disk: they are content of the folder (fsync(2))."""
        fd = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _unchanged(error: OSError) -> str:
    return f"{error.strerror or error}; nothing was changed, and the command can be repeated"


def _listed(mappings: Sequence[Mapping]) -> str:
    names = [mapping.id for mapping in mappings]
    more = len(names) - NAMED_MAX
    return ", ".join(names[:NAMED_MAX]) + (f" and {more} more" if more > 0 else "")


def new_name() -> str:
    """An id for a mapping without one."""
    return f"m{os.urandom(4).hex()}"

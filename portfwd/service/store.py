"""Mappings on disk: what is published again when the service starts.

    /var/lib/cni-py/portfwd/mappings/<id>.json      mode 0600, in folders of 0700; written in full or not at all

What is accepted can be read again: whatever would be beyond the limits of load() or of an answer to `list` is refused. What
people publish survives a power loss. What belongs to a container or a process ends with them, at the latest with this boot: it
has the boot's id, and need not reach the disk at once.
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
SIZE_MAX = (
    4 * LINE_MAX
)  # bytes of a file: escapes make a text three times as long as in the request, spaces a list twice
TOTAL_MAX = 32 << 20  # bytes of all
MAPPINGS_MAX = 65536
NAMED_MAX = 5  # mappings in a sentence


def state_dir() -> str:
    """Where the service keeps its state, for root or for this user."""
    if os.geteuid() == 0:
        return "/var/lib/cni-py/portfwd"
    home = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return f"{home}/cni-py/portfwd"


class Store:
    """The mappings below a folder, which is made when first needed."""

    def __init__(self, state: str) -> None:
        self.state = state
        self.folder = f"{state}/mappings"
        self._boot = naming.boot_id()
        self._unforgotten: dict[str, Mapping] = {}  # what has ended and is still on disk, by id
        self._sizes: dict[str, int] = {}
        self._total = 0

    def save(self, mappings: Sequence[Mapping], before: Object[str, Mapping] | None = None) -> None:
        """Write all of them, in place of those `before`, by id. Usage when they are too large; PortfwdError: then none."""
        texts = [(mapping, self._text(mapping)) for mapping in mappings]
        self._refuse_too_much(texts)
        named: list[Mapping] = []
        try:
            self._put(texts, named)
        except OSError as error:
            self._put_back(named, before or {})
            raise PortfwdError(f"cannot keep mappings in {self.folder}", _unchanged(error)) from error

    def _put(self, texts: Sequence[tuple[Mapping, bytes]], named: list[Mapping]) -> None:
        """Write all, then name all, and tell which are named. OSError: a disk that is full refuses the first as a rule."""
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
                with contextlib.suppress(OSError):  # what is half written takes room on a disk that is full
                    os.unlink(self._temporary(mapping))
            raise

    def _put_back(self, named: Sequence[Mapping], before: Object[str, Mapping]) -> None:
        """What was on disk."""
        self.forget_in_time([mapping for mapping in named if mapping.id not in before])
        old = [before[mapping.id] for mapping in named if mapping.id in before]
        try:
            if old:
                self._put([(mapping, self._text(mapping)) for mapping in old], [])
        except OSError as error:
            log.error("the files of %s are not as they should be: %s", _listed(old), error)

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
        """0 for one that is gone."""
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
        """Remove all of them; one that is not there is well. PortfwdError: then none."""
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
        """False when it is not there, which unlink(2) does not tell on a disk that is read-only."""
        path = self._path(mapping.id)
        try:
            os.lstat(path)
            os.unlink(path)
        except FileNotFoundError:
            return False
        return True

    def forget_in_time(self, mappings: Sequence[Mapping]) -> list[str]:
        """Remove each of them, or else at a later retry(), since what it was for has ended. Sentences on those that stay."""
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
        """Remove what could not be removed before."""
        before = list(self._unforgotten.values())
        if before and not self.forget_in_time(before):
            log.info("removed the files that had stayed of %s", _listed(before))

    def names(self) -> list[str]:
        """What is in the folder. PortfwdError when that cannot be told."""
        try:
            return sorted(os.listdir(self.folder))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise PortfwdError(f"cannot read the mappings in {self.folder}", error.strerror or str(error)) from error

    def load(self) -> list[Mapping]:
        """All that can be read, by id. What is damaged is logged and stays; what another boot had ended with it. PortfwdError."""
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
                log.error("%s/%s is damaged, and is left as it is: %s", self.folder, name, error)
                continue
            if mapping is not None:
                found.append(mapping)
        return found

    def _read(self, name: str) -> Mapping | None:
        """None when it ended with its boot, and is removed. ValueError, OSError, PortfwdError."""
        path = self._path(name)
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)  # nor wait for a FIFO
        with open(fd, "rb") as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise ValueError("it is no ordinary file")
            text = file.read(SIZE_MAX + 1)
        content = json.loads(text.decode()) if len(text) <= SIZE_MAX else None
        self._note(name, len(text))
        if not isinstance(content, dict) or content.get("schema") != SCHEMA:
            raise ValueError(f"it is no object of schema {SCHEMA}")
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
        """Names reach the disk with their folder, fsync(2)."""
        fd = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _unchanged(error: OSError) -> str:
    return f"{error.strerror or error}; nothing was changed, and it can be repeated"


def _listed(mappings: Sequence[Mapping]) -> str:
    names = [mapping.id for mapping in mappings]
    more = len(names) - NAMED_MAX
    return ", ".join(names[:NAMED_MAX]) + (f" and {more} more" if more > 0 else "")


def new_name() -> str:
    """For a mapping to which nobody gave a name."""
    return f"m{os.urandom(4).hex()}"

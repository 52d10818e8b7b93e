"""Mappings on disk: what is published again when the service starts.

    /var/lib/cni-py/portfwd/mappings/<id>.json      mode 0600, in folders of 0700; written in full or not at all

What people publish survives a power loss. What belongs to a container or a process ends with them, at the latest with this
boot: it has the boot's id, and need not reach the disk at once.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import stat
from collections.abc import Iterable

from cni_py import records
from portfwd.errors import PortfwdError
from portfwd.mapping import Mapping

log = logging.getLogger("portfwd")

SCHEMA = 1
SUFFIX = ".json"
SIZE_MAX = 1 << 20  # bytes; no request that made one was longer


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
        self._boot = records.boot_id()

    def save(self, mappings: Iterable[Mapping]) -> None:
        """Write all of them, over what was there. PortfwdError; then some may be written."""
        lasting = False
        try:
            records.make_folders(self.folder, 0o700)
            for mapping in mappings:
                lasting = lasting or not mapping.owner
                self._write(mapping)
            if lasting:
                self._sync()
        except OSError as error:
            raise PortfwdError(f"cannot keep mappings in {self.folder}", error.strerror or str(error)) from error

    def _write(self, mapping: Mapping) -> None:
        content: dict[str, object] = {"schema": SCHEMA, "mapping": mapping.to_json()}
        if mapping.owner:
            content["boot"] = self._boot
        temporary = f"{self.folder}/.{mapping.id}.tmp"
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with open(fd, "wb") as file:
            file.write(json.dumps(content, indent=1).encode() + b"\n")
            file.flush()
            if not mapping.owner:
                os.fsync(fd)
        os.rename(temporary, self._path(mapping.id))

    def forget(self, mappings: Iterable[Mapping]) -> None:
        """Remove them; one that is not there is well. PortfwdError."""
        lasting = False
        try:
            for mapping in mappings:
                lasting = lasting or not mapping.owner
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self._path(mapping.id))
            if lasting:
                self._sync()
        except OSError as error:
            raise PortfwdError(f"cannot remove mappings from {self.folder}", error.strerror or str(error)) from error

    def load(self) -> list[Mapping]:
        """All that can be read, by id. What is damaged is logged and stays; what another boot had ended with it."""
        try:
            names = sorted(os.listdir(self.folder))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise PortfwdError(f"cannot read the mappings in {self.folder}", error.strerror or str(error)) from error
        found = []
        for name in names:
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
        if not isinstance(content, dict) or content.get("schema") != SCHEMA:
            raise ValueError(f"it is no object of schema {SCHEMA}")
        mapping = Mapping.from_json(content.get("mapping"))
        if mapping.id != name:
            raise ValueError(f"it holds mapping {mapping.id}")
        if mapping.owner and content.get("boot") != self._boot:
            os.unlink(path)
            return None
        return mapping

    def _path(self, name: str) -> str:
        return f"{self.folder}/{name}{SUFFIX}"

    def _sync(self) -> None:
        """Names reach the disk with their folder, fsync(2)."""
        fd = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

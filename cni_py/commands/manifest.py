"""The manifest of an installation, and how files are written and removed so that a runtime never finds half of one.

<bin-dir>/.cni-py/manifest.json      the written files with a hash of each, the folders that were made for them, and the
                                     sysctls of forwarding that were off at the first install
<bin-dir>/.cni-py/scripts/<plugin>   the launcher in Python, beside a compiled one
<bin-dir>/.cni-py/replaced/<plugin>  the plugin that was replaced, as a hard link: owner, mode and inode stay
"""

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from cni_py.commands.report import Failure

OURS = ".cni-py"  # the folder of manifest and replaced plugins, below bin-dir


@dataclass(frozen=True, slots=True)
class Target:
    """The folders of an installation. With `dry_run` steps are printed and not taken."""

    bin_dir: Path
    conf_dir: Path
    dry_run: bool

    @classmethod
    def of(cls, options: argparse.Namespace) -> "Target":
        return cls(options.bin_dir.absolute(), options.conf_dir.absolute(), options.dry_run)

    @property
    def folder(self) -> Path:
        """Our folder below bin-dir."""
        return self.bin_dir / OURS

    @property
    def manifest(self) -> Path:
        """The path of the manifest."""
        return self.folder / "manifest.json"

    @property
    def scripts(self) -> Path:
        """Where the launchers in Python are that compiled ones start."""
        return self.folder / "scripts"

    def replaced(self, path: Path) -> Path:
        """Where the plugin is kept that was at `path`."""
        return self.folder / "replaced" / path.name

    def say(self, step: str) -> None:
        """Print a step, which begins with its verb."""
        print(f"would {step}" if self.dry_run else step)


@dataclass(slots=True)
class Manifest:
    """The written files (path -> SHA-256 in hex) and the folders that were made for them."""

    path: Path
    files: dict[str, str] = field(default_factory=dict)
    folders: list[str] = field(default_factory=list)
    off: list[str] = field(default_factory=list)  # keys below /proc/sys/net that were 0 at the first install

    @classmethod
    def read(cls, path: Path) -> "Manifest":
        """The manifest at `path`, an empty one if there is none. Failure if it is damaged."""
        try:
            found = json.loads(path.read_text())
            files = {str(name): str(value) for name, value in found["files"].items()}
            off = [str(key) for key in found.get("off", [])]
            return cls(path, files, [str(folder) for folder in found["folders"]], off)
        except FileNotFoundError:
            return cls(path)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise Failure(f"{path} is damaged ({error!r}): repair it, or remove it and install again") from error

    def save(self) -> None:
        fields = {"files": self.files, "folders": self.folders, "off": self.off}
        write(self.path, (json.dumps(fields, indent=2) + "\n").encode(), 0o644)

    def make_folder(self, folder: Path) -> None:
        """Make a folder, and note which parts of the path are new."""
        missing = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        self.folders += [str(path) for path in reversed(missing)]

    def put(self, path: Path, text: bytes, mode: int) -> None:
        """Write a file that uninstall will remove; the manifest is written first."""
        self.files[str(path)] = digest(text)
        self.save()
        write(path, text, mode)

    def has_unchanged(self, path: Path) -> bool:
        """Whether we wrote the file, perhaps by another name of its folder, and it is unchanged."""
        place = os.path.realpath(path)
        return digest(contents(path)) in [text for name, text in self.files.items() if os.path.realpath(name) == place]


@contextlib.contextmanager
def alone(target: Target) -> Iterator[None]:
    """Let one command at a time work on a bin-dir: others wait."""
    if target.dry_run:
        yield
        return
    fd = os.open(target.bin_dir, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def contents(path: Path) -> bytes:
    """The bytes of a file; empty if there is none."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


def link(path: Path, place: Path) -> None:
    """Make `place` a hard link to `path`, a file or symbolic link, in place of what is there. Atomic."""
    new = place.with_name(f".{place.name}.new")
    new.unlink(missing_ok=True)
    os.link(path, new, follow_symlinks=False)
    os.replace(new, place)
    new.unlink(missing_ok=True)  # rename(2) does nothing if both names are hard links to the same file


def write(path: Path, text: bytes, mode: int) -> None:
    """Write a file whole or not at all, also when the machine loses power (fsync)."""
    fd, new = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with open(fd, "wb") as file:
            os.fchmod(fd, mode)
            file.write(text)
            file.flush()
            os.fsync(fd)
        os.replace(new, path)
    except BaseException as error:
        os.unlink(new)
        if isinstance(error, OSError) and error.filename is None:  # write(2), fsync(2): a full disk
            error.filename = str(path)
        raise


def digest(text: bytes) -> str:
    """SHA-256 in hex."""
    return hashlib.sha256(text).hexdigest()

"""`cni-py install` and `cni-py uninstall`: executables where a runtime finds them.

    <bin-dir>/<plugin>                   the launcher, the same bytes under every name
    <bin-dir>/.cni-py/manifest.json      what was written, with a hash of each file, and which folders were made
    <bin-dir>/.cni-py/replaced/<plugin>  the plugin that was there before, the file itself
    <conf-dir>/10-cni-py.conflist        only where there was no network configuration at all

A file is written beside its place and renamed, so that a runtime never finds half of one. What is replaced is kept, and the
manifest tells what will be there, before that: either command may be interrupted anywhere, and repeated. Uninstalling takes
away only what is still as it was installed.
"""

import argparse
import compileall
import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

import cni_py
from cni_py.commands.report import FAILED, LACKING, Failure
from cni_py.run import MODULES

BIN_DIR = Path("/opt/cni/bin")
CONF_DIR = Path("/etc/cni/net.d")
CONFLIST = "10-cni-py.conflist"
CONF_SUFFIXES = (".conf", ".conflist", ".json")  # what libcni takes for a configuration
OURS = ".cni-py"  # the folder of manifest and replaced plugins, below bin-dir
START = b"from cni_py.run import main"  # a line of every launcher that was ever installed
SHEBANG_MAX = 127  # bytes; BINPRM_BUF_SIZE of older kernels, linux/binfmts.h
NOT_ALLOWED = (errno.EACCES, errno.EPERM, errno.EROFS)

INSTALL_HELP = """\
Write one executable for each plugin into the runtime's plugin directory, keeping any that it replaces, and a first
network configuration where there is none.

examples:
  cni-py install
  cni-py install --bin-dir /usr/lib/cni --dry-run
  cni-py install --bin-dir ./bin --conf-dir ./net.d
"""
UNINSTALL_HELP = """\
Take away what `cni-py install` wrote and put back the plugins that it replaced. Files that were changed since are left alone
and named.

examples:
  cni-py uninstall
  cni-py uninstall --bin-dir /usr/lib/cni --dry-run
"""


@dataclass(frozen=True, slots=True)
class Target:
    """Where to install, and whether to only say what would be done."""

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
        """The file that tells what was installed."""
        return self.folder / "manifest.json"

    def replaced(self, path: Path) -> Path:
        """Where the plugin is that we replaced by `path`."""
        return self.folder / "replaced" / path.name

    def say(self, step: str) -> None:
        print(f"would {step}" if self.dry_run else step)


@dataclass(slots=True)
class Manifest:
    """What was written: path -> SHA-256, and the folders that were made for it."""

    path: Path
    files: dict[str, str] = field(default_factory=dict)
    folders: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path) -> "Manifest":
        """An empty one where there is none yet."""
        try:
            found = json.loads(path.read_text())
            files = {str(name): str(value) for name, value in found["files"].items()}
            return cls(path, files, [str(folder) for folder in found["folders"]])
        except FileNotFoundError:
            return cls(path)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise Failure(f"{path} is damaged ({error!r}): put it right, or remove it and install again") from error

    def save(self) -> None:
        write(self.path, (json.dumps({"files": self.files, "folders": self.folders}, indent=2) + "\n").encode(), 0o644)

    def make_folder(self, folder: Path) -> None:
        """A folder, and note it if it was not there."""
        missing = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        self.folders += [str(path) for path in reversed(missing)]


def add_parsers(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """The two subcommands."""
    for name, run, help_text in (("install", install, INSTALL_HELP), ("uninstall", uninstall, UNINSTALL_HELP)):
        parser = commands.add_parser(
            name,
            help=help_text.split(".")[0].replace("\n", " "),
            description=help_text,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        add = parser.add_argument
        add("--bin-dir", type=Path, default=BIN_DIR, help="the runtime's plugins (default: %(default)s)")
        add("--conf-dir", type=Path, default=CONF_DIR, help="network configurations (default: %(default)s)")
        add("--dry-run", action="store_true", help="only say what would be done")
        parser.set_defaults(run=told(run))


def told(run: Callable[[argparse.Namespace], int]) -> Callable[[argparse.Namespace], int]:
    """`run` with what the system refuses as a sentence for the user."""

    def instead(options: argparse.Namespace) -> int:
        try:
            return run(options)
        except OSError as error:
            if error.errno in NOT_ALLOWED:
                advice = "run it as root, or name other folders (--bin-dir, --conf-dir)"
                raise Failure(f"{error.filename}: {error.strerror}; {advice}", LACKING) from error
            raise Failure(f"{error.filename}: {error.strerror}", FAILED) from error

    return instead


def launcher() -> bytes:
    """The executable, the same for every plugin: it finds out by its name which one it is.

    -I and -S keep the user's environment and the site module out, which also saves half the interpreter's start. The
    package's folder comes last on the path, so that nothing in it can stand in for a module of the standard library.
    """
    home = str(Path(cni_py.__file__).resolve().parent.parent)
    body = f"import sys\nsys.path.append({home!r})\n{START.decode()}\nmain()\n".encode()
    python = os.fsencode(sys.executable)
    if not python or b"\\" in python or b"\n" in python:
        raise Failure(f"no script can name this interpreter: {sys.executable!r}", LACKING)
    first = b"#!" + python + b" -IS"
    if not any(space in python for space in b" \t") and len(first) <= SHEBANG_MAX:
        return first + b"\n" + body
    # sh reads the quoted command, Python a string: for an interpreter that a #! line cannot name
    quoted = b"'" + python.replace(b"'", b"'\"'\"'") + b"'"
    return b"#!/bin/sh\n''':'\nexec " + quoted + b' -IS "$0" "$@"\n\'\'\'\n' + body


def install(options: argparse.Namespace) -> int:
    """Write the executables; 0 also when everything was there already."""
    target = Target.of(options)
    text = launcher()
    manifest = Manifest(target.manifest)
    if not target.dry_run:
        manifest.make_folder(target.replaced(Path()))
    with alone(target):
        before = Manifest.read(target.manifest)
        manifest.files, manifest.folders = before.files, before.folders + manifest.folders
        for plugin in sorted(MODULES):
            install_plugin(target, manifest, target.bin_dir / plugin, text)
        install_conflist(target, manifest)
    if not target.dry_run:
        compileall.compile_dir(Path(cni_py.__file__).parent, quiet=2)
    warn_of_writers()
    return 0


def install_plugin(target: Target, manifest: Manifest, path: Path, text: bytes) -> None:
    """One executable. A symbolic link is always somebody else's, even one to another plugin that is ours by now."""
    there = b"" if path.is_symlink() else contents(path)
    if there == text:
        target.say(f"leave {path} as it is: installed already")
    else:
        target.say(f"install {path}")
    if os.path.lexists(path) and START not in there:
        keep = target.replaced(path)
        target.say(f"keep the {path.name} that was there in {keep.parent}")
        if not target.dry_run:
            link(path, keep)
    if target.dry_run:
        return
    manifest.files[str(path)] = digest(text)
    manifest.save()
    if there != text:
        write(path, text, 0o755)


def install_conflist(target: Target, manifest: Manifest) -> None:
    """A first network, unless somebody has configured one: ours must never come before theirs in the runtime's order."""
    folder = target.conf_dir
    others = sorted(path.name for path in folder.iterdir() if path.suffix in CONF_SUFFIXES) if folder.is_dir() else []
    if others:
        target.say(f"leave {folder} as it is: it has a network already ({', '.join(others)})")
        return
    target.say(f"write {folder / CONFLIST}")
    if target.dry_run:
        return
    text = resources.files("cni_py.conf").joinpath("cni-py.conflist").read_bytes()
    manifest.make_folder(folder)
    manifest.files[str(folder / CONFLIST)] = digest(text)
    manifest.save()
    write(folder / CONFLIST, text, 0o644)


def warn_of_writers() -> None:
    """Runtimes run plugins as root: say so when somebody else may change what root would then run."""
    for path in (Path(sys.executable).resolve(), Path(cni_py.__file__).parent):
        state = path.stat()
        if os.geteuid() == 0 and (state.st_uid != 0 or state.st_mode & 0o022):
            print(f"cni-py install: {path} can be changed by others than root, who runs it now", file=sys.stderr)


def uninstall(options: argparse.Namespace) -> int:
    """Restore what was there; 1 when something had to be left."""
    target = Target.of(options)
    if not target.manifest.exists():
        raise Failure(f"nothing was installed in {target.bin_dir}: there is no {target.manifest}")
    with alone(target):
        manifest = Manifest.read(target.manifest)
        left = [path for path in sorted(manifest.files) if not take_back(target, manifest, Path(path))]
        if not left and not target.dry_run:
            shutil.rmtree(target.replaced(Path()))
            shutil.rmtree(target.folder)  # last, since the manifest is in it
            for folder in reversed(manifest.folders):
                with contextlib.suppress(OSError):  # somebody else uses it
                    os.rmdir(folder)
    return FAILED if left else 0


def take_back(target: Target, manifest: Manifest, path: Path) -> bool:
    """Put back or remove one file; False when it is not what we wrote and was left."""
    old = target.replaced(path)
    had_one = path.parent == target.bin_dir and os.path.lexists(old)
    there = os.path.lexists(path)
    is_back = had_one and there and os.path.samestat(path.lstat(), old.lstat())
    if there and not is_back and digest(contents(path)) != manifest.files[str(path)]:
        hint = f"; what was there before is {old}" if had_one else ""
        print(f"cni-py uninstall: {path} was changed since: left as it is{hint}", file=sys.stderr)
        return False
    if had_one:
        target.say(f"put back {path}")
    elif there:
        target.say(f"remove {path}")
    if not target.dry_run:
        if had_one:
            link(old, path)
        else:
            path.unlink(missing_ok=True)
        del manifest.files[str(path)]
        manifest.save()
    return True


@contextlib.contextmanager
def alone(target: Target) -> Iterator[None]:
    """One command at a time in a bin-dir."""
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
    """Of a file; empty when there is none."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


def link(path: Path, place: Path) -> None:
    """Make `place` a second name of the file `path`, or of the symbolic link, in the place of what is there."""
    new = place.with_name(f".{place.name}.new")
    new.unlink(missing_ok=True)
    os.link(path, new, follow_symlinks=False)
    os.replace(new, place)
    new.unlink(missing_ok=True)  # rename(2) does nothing when both names are of one file already


def write(path: Path, text: bytes, mode: int) -> None:
    """Write a whole file, durably, or none."""
    fd, new = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with open(fd, "wb") as file:
            os.fchmod(fd, mode)
            file.write(text)
            file.flush()
            os.fsync(fd)
        os.replace(new, path)
    except BaseException:
        os.unlink(new)
        raise


def digest(text: bytes) -> str:
    """SHA-256 in hex."""
    return hashlib.sha256(text).hexdigest()

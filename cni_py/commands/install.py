"""`cni-py install` and `cni-py uninstall`: executables where a runtime finds them.

    <bin-dir>/<plugin>                         the launcher, the same bytes under every name
    <bin-dir>/.cni-py/manifest.json            what was installed, with a hash of each file
    <bin-dir>/.cni-py/replaced/<plugin>        the plugin that was there before
    <conf-dir>/10-cni-py.conflist              only where there was no network configuration at all

A file is written beside its place and renamed, so that a runtime never finds half of one. Installing again is harmless;
uninstalling takes away only what is still as it was installed.
"""

import argparse
import compileall
import hashlib
import json
import os
import shutil
import sys
import tempfile
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import cni_py
from cni_py.commands.report import LACKING, Failure
from cni_py.run import MODULES

BIN_DIR = Path("/opt/cni/bin")
CONF_DIR = Path("/etc/cni/net.d")
CONFLIST = "10-cni-py.conflist"
OURS = ".cni-py"  # the folder of manifest and replaced plugins, below bin-dir
SHEBANG_MAX = 127  # bytes; BINPRM_BUF_SIZE of older kernels, linux/binfmts.h

INSTALL_HELP = """\
Write one executable for each plugin into the runtime's plugin directory, keeping a copy of any it replaces, and a first
network configuration where there is none.

examples:
  cni-py install
  cni-py install --bin-dir /usr/lib/cni --dry-run
  cni-py install --bin-dir ./bin --conf-dir ./net.d
"""
UNINSTALL_HELP = """\
Take away what `cni-py install` wrote and put back the plugins that it replaced. Files that were changed since are left alone
and named.
"""


@dataclass(frozen=True, slots=True)
class Target:
    """Where to install, and whether to only say what would be done."""

    bin_dir: Path
    conf_dir: Path
    dry_run: bool

    @property
    def folder(self) -> Path:
        """Our folder below bin-dir."""
        return self.bin_dir / OURS

    @property
    def manifest(self) -> Path:
        """What was installed."""
        return self.folder / "manifest.json"

    @property
    def replaced(self) -> Path:
        """Where the plugins are that we replaced."""
        return self.folder / "replaced"


def add_parsers(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """The two subcommands."""
    for name, run, help_text in (("install", install, INSTALL_HELP), ("uninstall", uninstall, UNINSTALL_HELP)):
        parser = commands.add_parser(
            name,
            help=help_text.split(".")[0].replace("\n", " "),
            description=help_text,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        parser.add_argument(
            "--bin-dir", type=Path, default=BIN_DIR, help="the runtime's plugins (default: %(default)s)"
        )
        parser.add_argument(
            "--conf-dir", type=Path, default=CONF_DIR, help="network configurations (default: %(default)s)"
        )
        parser.add_argument("--dry-run", action="store_true", help="say what would be done")
        parser.set_defaults(run=run)


def launcher() -> bytes:
    """The executable, the same for every plugin: it finds out by its name which one it is.

    -I and -S keep the user's environment and the site module out, which also saves half the interpreter's start. The
    package's folder comes last on the path, so that nothing in it can stand in for a module of the standard library.
    """
    home = str(Path(cni_py.__file__).resolve().parent.parent)
    body = f"import sys\nsys.path.append({home!r})\nfrom cni_py.run import main\nmain()\n"
    python = sys.executable
    if " " not in python and len(f"#!{python} -IS".encode()) <= SHEBANG_MAX:
        return f"#!{python} -IS\n{body}".encode()
    # sh reads the quoted command, Python a string: for an interpreter that a #! line cannot name
    quoted = python.replace("'", "'\"'\"'")
    return f"#!/bin/sh\n''':'\nexec '{quoted}' -IS \"$0\" \"$@\"\n'''\n{body}".encode()


def install(options: argparse.Namespace) -> int:
    """Write the executables; 0 also when everything was there already."""
    target = target_of(options)
    text = launcher()
    manifest = read_manifest(target)
    say = report(target)
    make_folders(target)
    for plugin in sorted(MODULES):
        path = target.bin_dir / plugin
        if path.exists() and path.read_bytes() == text:
            say(f"{path} is installed already")
        else:
            keep_old(target, path, manifest)
            say(f"{path} installed")
            if not target.dry_run:
                write(path, text, 0o755)
        manifest[plugin] = digest(text)
        if not target.dry_run:
            write_manifest(target, manifest)
    install_conflist(target, manifest)
    if not target.dry_run:
        compileall.compile_dir(Path(cni_py.__file__).parent, quiet=2)
        write_manifest(target, manifest)
    return 0


def install_conflist(target: Target, manifest: dict[str, str]) -> None:
    """A first network, unless somebody has configured one: ours must never come before theirs in the runtime's order."""
    say = report(target)
    path = target.conf_dir / CONFLIST
    others = sorted(
        entry.name
        for entry in (target.conf_dir.iterdir() if target.conf_dir.is_dir() else ())
        if entry.suffix in (".conf", ".conflist", ".json") and entry != path
    )
    if path.exists() or others:
        say(f"{target.conf_dir} has a network configuration already ({', '.join(others) or path.name}): left as it is")
        return
    say(f"{path} written")
    if not target.dry_run:
        text = resources.files("cni_py.conf").joinpath("cni-py.conflist").read_bytes()
        write(path, text, 0o644)
        manifest[str(path)] = digest(text)


def uninstall(options: argparse.Namespace) -> int:
    """Restore what was there; 1 when something had to be left."""
    target = target_of(options)
    say = report(target)
    if not target.manifest.exists():
        raise Failure(f"nothing installed by cni-py in {target.bin_dir}: there is no {target.manifest}")
    left = []
    for name, wanted in read_manifest(target).items():
        path = target.bin_dir / name
        if path.exists() and digest(path.read_bytes()) != wanted:
            left.append(str(path))
            continue
        old = target.replaced / path.name
        if path.parent == target.bin_dir and old.exists():
            say(f"{path} put back as it was before cni-py")
            if not target.dry_run:
                os.replace(old, path)
        elif path.exists():
            say(f"{path} removed")
            if not target.dry_run:
                path.unlink()
    for path_text in left:
        print(f"{path_text} was changed after cni-py installed it: left as it is", file=sys.stderr)
    if not left and not target.dry_run:
        shutil.rmtree(target.folder)
    return 1 if left else 0


def target_of(options: argparse.Namespace) -> Target:
    """The folders as absolute paths."""
    return Target(options.bin_dir.absolute(), options.conf_dir.absolute(), options.dry_run)


def report(target: Target) -> "Say":
    """Prints each step; what is not done says so."""
    return Say("would: " if target.dry_run else "")


class Say:
    """Prints lines with a prefix."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix

    def __call__(self, line: str) -> None:
        print(self.prefix + line)


def make_folders(target: Target) -> None:
    """The folders to write to. Failure 3 when we may not."""
    for folder in (target.bin_dir, target.conf_dir, target.replaced):
        try:
            if not target.dry_run:
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Failure(
                f"cannot make {folder}: {error.strerror}; run as root, or name other folders", LACKING
            ) from error


def keep_old(target: Target, path: Path, manifest: dict[str, str]) -> None:
    """Copy a plugin that is about to be replaced, unless it is an older launcher of ours."""
    if not path.exists() or digest(path.read_bytes()) == manifest.get(path.name):
        return
    report(target)(f"{path} is replaced; a copy is kept in {target.replaced}")
    if not target.dry_run:
        copy = target.replaced / f".{path.name}.new"
        shutil.copy2(path, copy)
        os.replace(copy, target.replaced / path.name)


def read_manifest(target: Target) -> dict[str, str]:
    """File name (or path, outside bin-dir) -> SHA-256 of what we wrote."""
    try:
        found = json.loads(target.manifest.read_text())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise Failure(f"{target.manifest} is damaged: {error}") from error
    return {str(name): str(value) for name, value in found.items()}


def write_manifest(target: Target, manifest: dict[str, str]) -> None:
    """After each step, so that an interrupted install can be taken back."""
    write(target.manifest, (json.dumps(manifest, indent=2) + "\n").encode(), 0o644)


def write(path: Path, text: bytes, mode: int) -> None:
    """Write a whole file, durably, or none."""
    try:
        fd, new = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with open(fd, "wb") as file:
            os.fchmod(fd, mode)
            file.write(text)
            file.flush()
            os.fsync(fd)
        os.replace(new, path)
    except OSError as error:
        raise Failure(f"cannot write {path}: {error.strerror}", LACKING) from error


def digest(text: bytes) -> str:
    """SHA-256 in hex."""
    return hashlib.sha256(text).hexdigest()

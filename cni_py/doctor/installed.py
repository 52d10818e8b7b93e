"""Facts about files: configurations, executables, units of systemd, and what lies in /run/cni-py. They are only read."""

from __future__ import annotations

import ast
import json
import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Literal

from cni_py import files
from cni_py.attachment import records
from cni_py.attachment.gc import LOCK_PREFIX
from cni_py.doctor import machine
from cni_py.doctor.values import Config, Executable, Installation, StateFile, Unit
from cni_py.errors import CniError
from cni_py.protocol import conflist, gojson
from cni_py.run import MODULES, launcher_text

UNIT_FOLDERS = (
    *("etc/systemd/system", "run/systemd/system", "usr/local/lib/systemd/system"),
    *("usr/lib/systemd/system", "lib/systemd/system"),
)
FLUSHERS = ("nftables.service",)  # of others, at whose start tables of ours may go
RUNS = re.compile(rb"^from cni_py\.run import main$", re.MULTILINE)  # a line of every launcher of ours
HOME = re.compile(rb"^sys\.path\.append\((['\"].+)\)$", re.MULTILINE)  # a text as Python writes it
SHEBANG = re.compile(rb"^#!(/\S+) -IS?")
BY_SHELL = re.compile(rb"^exec '([^']+)' -IS", re.MULTILINE)  # for an interpreter that #! cannot name
VERSION = re.compile(r"^__version__ = \"([^\"]{1,40})\"", re.MULTILINE)


def is_gone(path: str) -> bool:
    """Whether there is nothing at a path. False where it cannot be looked at: a folder on the way is closed to us."""
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return False


def text_of(path: Path) -> str:
    """The text of an ordinary file. OSError."""
    return files.read(str(path), follow=True).decode("utf-8", "surrogateescape")


def others_write(path: str | Path) -> bool:
    """Whether users other than its owner may write a file or folder, or its owner is not root and not who runs this."""
    try:
        seen = os.stat(path)
    except OSError:
        return False
    return bool(seen.st_mode & 0o022) or seen.st_uid not in (0, os.geteuid())


# Configurations


def configs(root: Path, conf_dir: str, notes: Mapping[str, Sequence[str]]) -> Iterator[Config]:
    """The files of network configurations, in the order in which a name is looked for."""
    try:
        listed = conflist.files(root / conf_dir.lstrip("/"))
    except OSError as error:
        yield Config(conf_dir, problem=error.strerror or str(error))
        return
    for file in listed:
        found = config(root, f"{conf_dir}/{file.name}", tuple(notes.get(str(file), ())))
        if found is not None:
            yield found


def config(root: Path, path: str, notes: tuple[str, ...] = ()) -> Config | None:
    """One file; None when it is not there."""
    place = root / path.lstrip("/")
    try:
        return Config(path, text_of(place), others_write=others_write(place), notes=notes)
    except FileNotFoundError:
        return Config(path, problem="it is a link that leads nowhere") if place.is_symlink() else None
    except OSError as error:
        return Config(path, problem=error.strerror or str(error))


# Executables


def executables(root: Path, folder: str, installation: Installation) -> Iterator[Executable]:
    """The plugins of the names that ours have, in one folder."""
    for plugin in MODULES:
        path = root / folder.lstrip("/") / plugin
        try:
            seen = path.stat()
            text = launcher_text(str(path)) if stat.S_ISREG(seen.st_mode) else b""
        except OSError:
            continue
        name = f"{folder}/{plugin}"
        runs = bool(seen.st_mode & 0o111) and stat.S_ISREG(seen.st_mode)
        if RUNS.search(text) is None:
            yield Executable(name, plugin, ours=False, runs=runs, others_write=others_write(path))
            continue
        home = home_of(text)
        needed = (interpreter_of(text), f"{home}/cni_py/run.py" if home else "")
        yield Executable(
            name,
            plugin,
            ours=True,
            runs=runs,
            others_write=others_write(path),
            missing=tuple(one for one in needed if one and is_gone(one)),
            version=version_of(home),
            is_current=home != str(installation.package.parent) or text == installation.launchers.get(plugin),
        )


def interpreter_of(text: bytes) -> str:
    """The interpreter that a launcher starts; "" when it cannot be told."""
    found = SHEBANG.search(text) or BY_SHELL.search(text)
    return os.fsdecode(found[1]) if found else ""


def home_of(text: bytes) -> str:
    """The folder from which a launcher loads the package; "" when it cannot be told."""
    found = HOME.search(text)
    try:
        home = ast.literal_eval(os.fsdecode(found[1])) if found else ""
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return ""
    return home if isinstance(home, str) else ""


def version_of(home: str) -> str:
    """The version of the package in a folder, read and not run; "" when there is none."""
    try:
        found = VERSION.search(text_of(Path(home, "cni_py/__init__.py")))
    except (OSError, ValueError):
        return ""
    return found[1] if found else ""


def lost(root: Path, folder: str) -> Iterator[str]:
    """The plugins that `cni-py install` wrote into the folder, by its manifest, and where something else is now, or nothing."""
    try:
        listed = json.loads(text_of(root / folder.lstrip("/") / ".cni-py/manifest.json"))["files"]
        names = [str(name) for name in listed]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return
    for name in names:
        if os.path.dirname(name) != folder or os.path.basename(name) not in MODULES:
            continue
        try:
            ours = RUNS.search(launcher_text(str(root / name.lstrip("/")))) is not None
        except OSError:
            ours = False
        if not ours:
            yield name


def image(path: Path, package: Path) -> Literal["current", "old", "missing"]:
    """Whether the image of the modules is there, and not older than a source."""
    try:
        made = path.stat().st_mtime
        newest = max(source.stat().st_mtime for source in package.rglob("*.py"))
    except (OSError, ValueError):
        return "missing"
    return "old" if newest > made else "current"


# systemd


def unit_names() -> list[str]:
    """The units that conf/ ships."""
    suffixes = (".service", ".socket", ".timer", ".path")
    return sorted(one.name for one in resources.files("cni_py.conf").iterdir() if one.name.endswith(suffixes))


def units(root: Path, gaps: list[str]) -> Iterator[Unit]:
    """Those of ours that are installed, and those of others that may flush our tables."""
    for name in (*unit_names(), *FLUSHERS):
        path = next((root / folder / name for folder in UNIT_FOLDERS if (root / folder / name).exists()), None)
        if path is None:
            continue
        try:
            text = text_of(path)
        except OSError as error:
            gaps.append(f"the unit {path} cannot be read: {error.strerror}")
            continue
        programs = started_by(text)
        yield Unit(
            name=name,
            path=f"/{path.relative_to(root)}",
            enabled=any((root / "etc/systemd/system").glob(f"*.wants/{name}")),
            active=active(root, name),
            missing=tuple(one for one in programs if not (root / one.lstrip("/")).exists()),
            flushes=flusher(root, text),
        )


def started_by(text: str) -> list[str]:
    """The programs of a unit's Exec lines (systemd.service(5): a prefix of @, -, :, + and ! may stand before the path)."""
    return list(dict.fromkeys(re.findall(r"^Exec\w+=[-@:+!]*(/\S+)", text, re.MULTILINE)))


def flusher(root: Path, text: str) -> str:
    """The file that a unit gives to `nft -f` and that flushes all tables; "" if there is none."""
    for path in re.findall(r"^ExecStart=.*nft\s.*-f\s+(/\S+)", text, re.MULTILINE):
        try:
            if re.search(r"^\s*flush\s+ruleset\s*(#.*)?;?$", text_of(root / path.lstrip("/")), re.MULTILINE):
                return str(path)
        except OSError:
            continue
    return ""


def active(root: Path, name: str) -> str:
    """What systemd says of a unit; "" where it does not run here."""
    if root != Path("/") or not os.path.isdir("/run/systemd/system"):
        return ""
    return machine.output("systemctl", "is-active", name).strip()


# /run/cni-py


def held_locks(run_dir: str) -> tuple[str, ...]:
    """The names of our lock files that somebody holds, by /proc/locks: trying to take one would be in a call's way."""
    try:
        with open("/proc/locks", encoding="ascii", errors="replace") as file:
            lines = file.read().splitlines()
    except OSError:
        return ()
    held = {line.split()[5].rpartition(":")[2] for line in lines if " FLOCK " in line and "->" not in line}
    found = []
    for name in files.listed(f"{run_dir}/lock"):
        try:
            if str(os.stat(f"{run_dir}/lock/{name}", follow_symlinks=False).st_ino) in held:
                found.append(name)
        except OSError:
            continue
    return tuple(sorted(found))


def state(run_dir: str) -> Iterator[StateFile]:
    """Records that cannot be read or are half written, and lock files of attachments."""
    top = f"{run_dir}/attachments"
    for folder in sorted(files.listed(top)):
        for name in sorted(files.listed(f"{top}/{folder}")):
            path = f"{top}/{folder}/{name}"
            if name.endswith(records.SUFFIXES[0]):
                yield StateFile(path, "half")
            elif name.endswith(records.SUFFIXES[1:]):
                why = damage(path, folder)
                if why:
                    yield StateFile(path, "damaged", why=why)
    held = held_locks(run_dir)
    for name in sorted(files.listed(f"{run_dir}/lock")):
        if name.startswith(LOCK_PREFIX):
            yield StateFile(f"{run_dir}/lock/{name}", "lock", held=name in held)


def damage(path: str, folder: str) -> str:
    """Why a record cannot be used; "" if it can."""
    try:
        fields = gojson.decode(files.read(path))
    except FileNotFoundError:
        return ""  # its call has ended meanwhile
    except OSError as error:
        return error.strerror or str(error)
    except CniError as error:
        return str(error)
    key = records.named_in(fields) if isinstance(fields, gojson.Object) else None
    if key is None:
        return "it does not name an attachment"
    if key.hex != folder:
        return "it names another attachment than its folder"
    schema = fields.get("schema") if isinstance(fields, gojson.Object) else None
    return "" if schema == records.SCHEMA else f"its schema is not {records.SCHEMA}: another version wrote it"

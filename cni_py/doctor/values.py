"""What doctor knows of a host beyond its model: values, which facts.py collects and the checks judge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

State = Literal["yes", "loadable", "no", "unknown"]


@dataclass(frozen=True, slots=True)
class Feature:
    """A part of the kernel. "loadable": a module that the kernel loads when it is first needed."""

    name: str
    state: State


@dataclass(frozen=True, slots=True)
class Executable:
    """A plugin in a folder where runtimes look for plugins."""

    path: str
    plugin: str
    ours: bool
    runs: bool = True  # it may be executed
    others_write: bool = False  # users other than its owner may write it
    missing: tuple[str, ...] = ()  # of ours: what it needs and is gone: the interpreter, the package
    version: str = ""  # of ours: of the package that it runs
    is_current: bool = (
        True  # of ours: as `cni-py install` of this version writes it; True where it is of another installation
    )


@dataclass(frozen=True, slots=True)
class Runtime:
    """A container runtime, as commands/runtimes.py has found it."""

    name: str
    folders: tuple[str, ...]
    source: str
    without: str = ""  # why it does not use CNI


@dataclass(frozen=True, slots=True)
class Unit:
    """A unit of systemd that is installed."""

    name: str
    path: str
    enabled: bool = False
    active: str = ""  # "active", "inactive", "failed"; "" when systemd does not run or does not answer
    missing: tuple[str, ...] = ()  # programs of its Exec lines that are not there
    flushes: str = ""  # the file in which it says `flush ruleset` to nft


@dataclass(frozen=True, slots=True)
class Disk:
    """A file system that state is written to."""

    path: str
    free: int = 0  # bytes for others than root
    size: int = 0
    inodes_free: int = 0
    inodes: int = 0  # 0: the file system does not count them
    read_only: bool = False


@dataclass(frozen=True, slots=True)
class Config:
    """A file of network configurations, or the settings of the host."""

    path: str
    text: str = ""
    problem: str = ""  # why it cannot be read
    others_write: bool = False
    notes: tuple[str, ...] = ()  # sentences on keys that are not known, or are there twice


@dataclass(frozen=True, slots=True)
class StateFile:
    """A file of ours below /run/cni-py that tells of something unfinished."""

    path: str
    kind: Literal["damaged", "half", "lock"]
    held: bool = False  # of a lock: somebody holds it
    why: str = ""


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything."""

    root: bool  # whether the process may see all
    version: str  # of this cni-py
    python: str
    features: tuple[Feature, ...] = ()
    modules_gone: bool = False  # there are modules of other kernels, and none of the one that runs
    nft: str = ""  # version of libnftables' program, "1.0.6"
    nft_problem: str = ""  # why libnftables cannot be used from Python
    tables_refused: str = ""  # what the kernel said to our tables in a dry run; "" also where that was not tried
    iptables: tuple[tuple[str, str], ...] = ()  # ("iptables", "v1.8.9 (nf_tables)"); programs that are there
    limits: tuple[tuple[str, str], ...] = ()  # sysctls beyond those of the model
    configs: tuple[Config, ...] = ()
    settings: Config | None = None  # /etc/cni-py/config.yaml
    executables: tuple[Executable, ...] = ()
    lost: tuple[str, ...] = ()  # paths that a manifest says are ours and where another program is, or nothing
    runtimes: tuple[Runtime, ...] = ()
    image: Literal["current", "old", "missing"] = "current"
    image_path: str = ""
    units: tuple[Unit, ...] = ()
    state: tuple[StateFile, ...] = ()
    run_dir: str = "/run/cni-py"
    run_dir_open: bool = False  # users other than its owner may write in it
    locked: tuple[str, ...] = ()  # names of lock files that somebody holds
    disks: tuple[Disk, ...] = ()
    gaps: tuple[str, ...] = ()  # sentences on what could not be looked at

    def limit(self, name: str) -> int | None:
        """A limit as a number; None where it is not known."""
        text = dict(self.limits).get(name, "")
        return int(text.split()[0]) if text.split() and text.split()[0].isdecimal() else None


@dataclass(slots=True)
class Installation:
    """What the commands know of this installation: which checks below them need."""

    launchers: Mapping[str, bytes]  # plugin: the text that `cni-py install` would write
    image: Path
    package: Path
    runtimes: Sequence[Runtime] = ()
    notes: Sequence[str] = ()  # of the search for runtimes
    bin_dirs: Sequence[str] = ("/opt/cni/bin",)
    key_notes: Mapping[str, Sequence[str]] = field(default_factory=dict)  # by path of a configuration

"""The plugins' executables: whether a runtime finds them, and whether they are ours, whole and of this version."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from cni_py.doctor.checks import of_facts, some
from cni_py.doctor.values import Executable, Facts
from cni_py.host.model import Finding, Host
from cni_py.run import MODULES

AGAIN = "run `cni-py install --bin-dir {}`"


def folder_of(executable: Executable) -> str:
    return executable.path.rpartition("/")[0]


def by_folder(found: list[Executable]) -> dict[str, list[str]]:
    """Folder: the plugins there."""
    folders: dict[str, list[str]] = {}
    for one in found:
        folders.setdefault(folder_of(one), []).append(one.plugin)
    return folders


def again(folder: str) -> str:
    return AGAIN.format(shlex.quote(folder))


@of_facts("executables have their interpreter and package", "executable-broken")
def broken(_host: Host, facts: Facts) -> Iterator[Finding]:
    reasons: dict[tuple[str, tuple[str, ...]], list[Executable]] = {}
    for one in facts.executables:
        if one.ours and one.missing:
            reasons.setdefault((folder_of(one), one.missing), []).append(one)
    for (folder, missing), which in reasons.items():
        yield Finding(
            "error",
            "executable-broken",
            f"executables in {folder}",
            f"{some(one.plugin for one in which)} need {some(missing)}, which is gone",
            "each call of a runtime fails, also those that end containers",
            again(folder) + " of an installation that is to stay",
        )
    for one in facts.executables:
        if not one.runs:
            yield Finding(
                "error",
                "executable-broken",
                one.path,
                "it is not an executable file",
                "a runtime cannot run it",
                again(folder_of(one)),
            )


@of_facts("executables are of this version", "executable-old")
def old(_host: Host, facts: Facts) -> Iterator[Finding]:
    for folder, plugins in by_folder([one for one in facts.executables if one.ours and not one.is_current]).items():
        yield Finding(
            "warning",
            "executable-old",
            f"executables in {folder}",
            f"{some(plugins)} were written by another version or interpreter: `cni-py install` was not run after an upgrade",
            "they start this version's code in the other version's way",
            again(folder),
        )
    others = [
        one for one in facts.executables if one.ours and not one.missing and one.version not in ("", facts.version)
    ]
    for folder, plugins in by_folder(others).items():
        versions = some(dict.fromkeys(one.version for one in others if folder_of(one) == folder))
        yield Finding(
            "warning",
            "executable-old",
            f"executables in {folder}",
            f"{some(plugins)} run version {versions} of cni-py; this is {facts.version}",
            "what this command says of records and tables holds for its own version",
            f"{again(folder)}, or use the cni-py of that installation",
        )


@of_facts("no installed plugin was replaced by another program", "executable-replaced")
def replaced(_host: Host, facts: Facts) -> Iterator[Finding]:
    for path in facts.lost:
        folder = path.rpartition("/")[0]
        yield Finding(
            "error",
            "executable-replaced",
            path,
            "`cni-py install` wrote it, and now there is another program, or nothing",
            "an upgrade of the Go plugins does that; plugins of both make and remove the parts of one container",
            again(folder),
        )


@of_facts("only root can change what runtimes run", "executable-open")
def writable(_host: Host, facts: Facts) -> Iterator[Finding]:
    for folder, plugins in by_folder([one for one in facts.executables if one.others_write]).items():
        yield Finding(
            "error",
            "executable-open",
            f"executables in {folder}",
            f"users other than root can change {some(plugins)}",
            "runtimes run them as root",
            f"chown root: and chmod go-w {shlex.quote(folder)}/*",
        )


@of_facts("runtimes run the plugins of cni-py", "runtime-runs-others", "runtime-without-cni")
def runtimes(_host: Host, facts: Facts) -> Iterator[Finding]:
    for runtime in facts.runtimes:
        if runtime.without:
            yield Finding(
                "note",
                "runtime-without-cni",
                f"runtime {runtime.name}",
                f"it {runtime.without}",
                "it does not run these plugins",
            )
            continue
        for folder, plugins in by_folder([one for one in chosen(facts, runtime.folders) if not one.ours]).items():
            yield Finding(
                "note",
                "runtime-runs-others",
                f"runtime {runtime.name}",
                f"it takes {some(plugins, 12)} from {folder} ({runtime.source}), and they are not cni-py's",
                "containers that it starts are connected by those plugins",
                again(folder),
            )


def chosen(facts: Facts, folders: tuple[str, ...]) -> list[Executable]:
    """The executable of each plugin that a runtime runs: that in the first folder that has one."""
    found: dict[str, Executable] = {}
    for folder in folders:
        for one in facts.executables:
            if folder_of(one) == folder.rstrip("/"):
                found.setdefault(one.plugin, one)
    return [*found.values()]


@of_facts("runtimes find the plugins of the networks", "plugin-missing")
def missing(host: Host, facts: Facts) -> Iterator[Finding]:
    known = {one.plugin for one in facts.executables}
    for runtime in facts.runtimes:
        if runtime.without:
            continue
        there = {one.plugin for one in chosen(facts, runtime.folders)}
        for network in host.networks:
            lacking = [kind for kind in dict.fromkeys(network.types) if kind in MODULES and kind not in there]
            if lacking:
                elsewhere = sorted({folder_of(one) for one in facts.executables if one.plugin in lacking})
                yield Finding(
                    "error" if not known.issuperset(lacking) else "warning",
                    "plugin-missing",
                    f"network {network.name}",
                    f"{runtime.name} looks for plugins in {', then '.join(runtime.folders)}, and {some(lacking)} is not there",
                    "it cannot connect a container to the network"
                    + (f"; it is in {some(elsewhere)}" if elsewhere else ""),
                    again(runtime.folders[0]),
                )


@of_facts("the image of the modules is there and current", "image-old")
def image(_host: Host, facts: Facts) -> Iterator[Finding]:
    if facts.image != "current" and any(one.ours for one in facts.executables):
        folder = next(folder_of(one) for one in facts.executables if one.ours)
        yield Finding(
            "note",
            "image-old",
            facts.image_path,
            "it is older than the sources" if facts.image == "old" else "it is not there",
            "each call of a plugin loads its modules one by one, which takes some milliseconds longer",
            again(folder),
        )


CHECKS = (broken, old, replaced, writable, runtimes, missing, image)

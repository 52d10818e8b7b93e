"""`cni-py install`: put the plugins where container runtimes look for them. Also the options of `cni-py uninstall`.

    <bin-dir>/<plugin>                   the launcher                                          launchers.py
    <bin-dir>/.cni-py/                   the list of written files, and the replaced plugins   manifest.py
    <package>/__pycache__/plugins.cpython-311.image   the code of all modules, for faster starts          images.py
    <conf-dir>/10-cni-py.conflist        only if there is no network configuration, or asked   default_network.py
    which runtimes run the plugins                                                             runtimes.py

A file is written beside its place and renamed, so that a runtime never finds half of one. Before that, a plugin that it replaces
is kept and the manifest is updated, so that both commands may be interrupted anywhere and repeated.
"""

import argparse
import compileall
import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path

import cni_py
from cni_py.commands import default_network, images, native, outcome, overlaps, runtimes
from cni_py.commands.launchers import START, launcher
from cni_py.commands.leftovers import FORWARDING
from cni_py.commands.manifest import Manifest, Target, alone, contents, digest, link, write
from cni_py.commands.report import FAILED, LACKING, Failure, complain
from cni_py.commands.uninstall import uninstall
from cni_py.kernel import sysctl
from cni_py.protocol import conflist
from cni_py.run import MODULES

BIN_DIR = Path("/opt/cni/bin")
CONF_DIR = Path("/etc/cni/net.d")
NOT_ALLOWED = (errno.EACCES, errno.EPERM, errno.EROFS)

INSTALL_SUMMARY = "put the plugins where container runtimes look for them"
INSTALL_HELP = """\
Write an executable for each plugin into the runtime's plugin directory, and a network configuration if there is none yet.
Replaced plugins are kept. Then list the container runtimes of this host, and whose plugins they will run.

examples:
  cni-py install
  cni-py install --bin-dir /usr/lib/cni --dry-run
  cni-py install --network
"""
UNINSTALL_SUMMARY = "remove the plugins and put back those that were replaced"
UNINSTALL_HELP = """\
Remove what `cni-py install` wrote and put back the plugins that it replaced. Files that were changed since then are named and
left as they are. What remains in the kernel and below /run and /var/lib is listed; --purge removes it, too.

examples:
  cni-py uninstall
  cni-py uninstall --purge
  cni-py uninstall --bin-dir /usr/lib/cni --dry-run
"""


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """The two subcommands."""
    for name, run, summary, text in (
        ("install", install, INSTALL_SUMMARY, INSTALL_HELP),
        ("uninstall", uninstall, UNINSTALL_SUMMARY, UNINSTALL_HELP),
    ):
        parser = outcome.add_parser(commands, name, summary, text)
        add = parser.add_argument
        add("--bin-dir", type=Path, default=BIN_DIR, metavar="DIR", help="the runtime's plugins (default: %(default)s)")
        add(
            "--conf-dir",
            type=Path,
            default=CONF_DIR,
            metavar="DIR",
            help="network configurations (default: %(default)s)",
        )
        add("--dry-run", action="store_true", help="print what would be done; change nothing")
        if name == "install":
            add(
                "--launcher",
                choices=native.KINDS,
                default=native.AUTO,
                help="the executables: compiled ones start faster where `cni-py serve` runs; auto (default): these if cc works",
            )
            add("--network", action="store_true", help="write the network cni-py even if there are other networks")
        else:
            add("--force", action="store_true", help="uninstall even while containers are connected")
            add("--purge", action="store_true", help="also remove what is ours in the kernel, /run and /var/lib")
        parser.set_defaults(run=told(run))


def told(run: Callable[[argparse.Namespace], int]) -> Callable[[argparse.Namespace], int]:
    """`run`, with OSError as a Failure: a sentence that names the file."""

    def wrapped(options: argparse.Namespace) -> int:
        try:
            return run(options)
        except OSError as error:
            if error.errno in NOT_ALLOWED:
                advice = "run this as root, or choose other folders (--bin-dir, --conf-dir)"
                raise Failure(f"{error.filename}: {error.strerror}; {advice}", LACKING) from error
            raise Failure(f"{error.filename}: {error.strerror}", FAILED) from error

    return wrapped


def install(options: argparse.Namespace) -> int:
    """Write the executables, the network and the manifest, and list the runtimes. 0 also if everything was there already."""
    target = Target.of(options)
    texts = {plugin: launcher(plugin) for plugin in sorted(MODULES)}
    program, why = native.program(options.launcher)
    manifest = Manifest(target.manifest, off=[] if target.manifest.exists() else forwarding_off())
    if not target.dry_run:
        manifest.make_folder(target.replaced(Path()))
    with alone(target):
        before = Manifest.read(target.manifest)
        manifest.files, manifest.folders = before.files, before.folders + manifest.folders
        manifest.off = before.off or manifest.off
        target.say(f"place executables {why}")
        for plugin, script in texts.items():
            text = with_script(target, manifest, plugin, script, program) if program else script
            install_plugin(target, manifest, target.bin_dir / plugin, text)
        install_network(target, manifest, wanted=options.network)
    target.say(f"write {images.place()}, the code of the plugins in one file")
    if not target.dry_run:
        compileall.compile_dir(images.PACKAGE, quiet=2)
        install_image()
    warn_of_writers()
    tell_of_runtimes(target)
    return 0


def install_image() -> None:
    """Write the image of the modules. Where that is not possible, a call takes some milliseconds longer."""
    try:
        images.install()
    except OSError as error:
        note(f"cannot write {images.place()}: {error.strerror}; the plugins work without it, but start more slowly")


def forwarding_off() -> list[str]:
    """The sysctls of forwarding that are off and that the first ADD will set: uninstall --purge resets these only."""
    return [key for key in FORWARDING if os.path.exists(f"/proc/sys/net/{key}") and sysctl.read(key) == "0"]


def install_plugin(target: Target, manifest: Manifest, path: Path, text: bytes) -> None:
    """Write one executable. A symbolic link was not made by us, even if it leads to a plugin that is ours by now."""
    there = b"" if path.is_symlink() else contents(path)
    if there == text:
        target.say(f"leave {path} as it is: it is installed already")
    else:
        target.say(f"install {path}")
    if os.path.lexists(path) and START not in there:
        keep = target.replaced(path)
        target.say(f"keep the replaced {path.name} in {keep.parent}")
        if not target.dry_run:
            link(path, keep)
    if target.dry_run:
        return
    manifest.files[str(path)] = digest(text)
    manifest.save()
    if there != text:
        write(path, text, 0o755)


def with_script(target: Target, manifest: Manifest, plugin: str, text: bytes, program: bytes) -> bytes:
    """The compiled launcher; the one in Python is put where that finds it, in our folder."""
    script = target.scripts / plugin
    if not target.dry_run and contents(script) != text:
        manifest.make_folder(script.parent)
        manifest.put(script, text, 0o755)
    return native.launcher(program, plugin, target.scripts, text)


def install_network(target: Target, manifest: Manifest, *, wanted: bool) -> None:
    """Write our network if there is none, or with `wanted` beside others, so that runtimes still take theirs first."""
    folder = target.conf_dir
    paths = default_network.files(folder)
    networks, broken = default_network.read(paths)
    for sentence in broken:
        note(sentence)
    ipv6 = default_network.ipv6_is_on()
    text = default_network.text(ipv6=ipv6)
    path = next((Path(each.source) for each in networks if each.name == default_network.NAME), None)
    if path is not None:
        if not renewed(target, manifest, path, text, wanted=wanted):
            text = contents(path)
    elif paths and not wanted:
        names = ", ".join(each.name for each in paths)
        target.say(
            f"leave {folder} as it is: it already has {names}; "
            f"`cni-py install --network` adds our network, {default_network.NAME}"
        )
        return
    else:
        path = default_network.place(folder)
        target.say(f"write {path}" + ("" if ipv6 else " without IPv6, which is disabled on this host"))
        if not target.dry_run:
            manifest.make_folder(folder)
            manifest.put(path, text, 0o644)
    ours = conflist.parse(text, str(path))
    for sentence in overlaps.of_network(ours, folder):
        note(f"{sentence}: choose another subnet in {path} before the first container is connected")
    if not ipv6 and any(subnet.version == 6 for plugin in ours.members for subnet in overlaps.subnets_of(plugin)):
        note(f"{path} has an IPv6 range, but IPv6 is disabled on this host: no container can be connected to it")


def renewed(target: Target, manifest: Manifest, path: Path, text: bytes, *, wanted: bool) -> bool:
    """Rewrite our network if that is wanted and nobody has changed the file; whether it was rewritten."""
    differs = contents(path) != text
    ours = manifest.has_unchanged(path)
    if not differs or not ours or not wanted:
        hint = "`cni-py install --network` updates it to this version" if ours else "somebody else wrote or changed it"
        target.say(f"leave {path} as it is: it has network {default_network.NAME}" + (f"; {hint}" if differs else ""))
        return False
    target.say(f"update {path}")
    if not target.dry_run:
        manifest.put(path, text, 0o644)
    return True


def warn_of_writers() -> None:
    """Warn if another user may change the interpreter or the package: runtimes run the plugins as root."""
    for path in (Path(sys.executable).resolve(), Path(cni_py.__file__).parent):
        state = path.stat()
        if os.geteuid() == 0 and (state.st_uid != 0 or state.st_mode & 0o022):
            note(f"other users than root can change {path}, which root runs from now on")


def tell_of_runtimes(target: Target) -> None:
    """Print in which folders the runtimes of this host look, and whose plugins they will run."""
    found, notes = runtimes.found(runtimes.ROOT, target.bin_dir)
    for sentence in notes:
        note(sentence)
    for runtime in found:
        print(runtimes.described(runtime, runtimes.ROOT, target.bin_dir))
    if not found:
        print("no container runtime found: cni-py-exec runs the plugins by hand")


def note(sentence: str) -> None:
    complain(f"cni-py install: {sentence}")

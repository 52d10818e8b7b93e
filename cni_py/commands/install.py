"""`cni-py install` and `cni-py uninstall`: executables where a runtime finds them.

    <bin-dir>/<plugin>                   the launcher                                          launchers.py
    <bin-dir>/.cni-py/                   what was written, and the plugins that were replaced  manifest.py
    <conf-dir>/10-cni-py.conflist        only where there was no network configuration at all  default_network.py
    which runtimes look there                                                                  runtimes.py

A file is written beside its place and renamed, so that a runtime never finds half of one. What is replaced is kept, and the
manifest tells what will be there, before that: either command may be interrupted anywhere, and repeated. Uninstalling takes
away only what is still as it was installed.
"""

import argparse
import compileall
import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path

import cni_py
from cni_py.commands import default_network, runtimes
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

INSTALL_HELP = """\
Write one executable for each plugin into the runtime's plugin directory, keeping any that it replaces, and a first
network configuration where there is none. Say which plugins the runtimes of this host will run.

examples:
  cni-py install
  cni-py install --bin-dir /usr/lib/cni --dry-run
  cni-py install --network
"""
UNINSTALL_HELP = """\
Take away what `cni-py install` wrote and put back the plugins that it replaced. Files that were changed since are left alone
and named, and so is what stays in the kernel and below /run and /var/lib: --purge removes that, too.

examples:
  cni-py uninstall
  cni-py uninstall --purge
  cni-py uninstall --bin-dir /usr/lib/cni --dry-run
"""


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
        if name == "install":
            add("--network", action="store_true", help="write the network cni-py also where there are others")
        else:
            add("--force", action="store_true", help="also while containers are connected")
            add("--purge", action="store_true", help="remove what is ours in the kernel, /run and /var/lib as well")
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


def install(options: argparse.Namespace) -> int:
    """Write the executables; 0 also when everything was there already."""
    target = Target.of(options)
    texts = {plugin: launcher(plugin) for plugin in sorted(MODULES)}
    manifest = Manifest(target.manifest, off=[] if target.manifest.exists() else forwarding_off())
    if not target.dry_run:
        manifest.make_folder(target.replaced(Path()))
    with alone(target):
        before = Manifest.read(target.manifest)
        manifest.files, manifest.folders = before.files, before.folders + manifest.folders
        manifest.off = before.off or manifest.off
        for plugin, text in texts.items():
            install_plugin(target, manifest, target.bin_dir / plugin, text)
        install_network(target, manifest, wanted=options.network)
    if not target.dry_run:
        compileall.compile_dir(Path(cni_py.__file__).parent, quiet=2)
    warn_of_writers()
    tell_of_runtimes(target)
    return 0


def forwarding_off() -> list[str]:
    """The sysctls that the first ADD will set."""
    return [key for key in FORWARDING if os.path.exists(f"/proc/sys/net/{key}") and sysctl.read(key) == "0"]


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


def install_network(target: Target, manifest: Manifest, *, wanted: bool) -> None:
    """A first network, or with `wanted` another one, that never comes before theirs in the runtime's order."""
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
            f"leave {folder} as it is: it has a network already ({names}); "
            f"`cni-py install --network` writes ours, {default_network.NAME}, beside it"
        )
        return
    else:
        path = default_network.place(folder)
        target.say(f"write {path}" + ("" if ipv6 else ", without IPv6, which is switched off on this host"))
        if not target.dry_run:
            manifest.make_folder(folder)
            manifest.put(path, text, 0o644)
    ours = conflist.parse(text, str(path))
    for sentence in default_network.overlaps(ours, [each for each in networks if each.name != default_network.NAME]):
        note(f"{sentence}: choose another in {path} before the first container is connected")
    if not ipv6 and any(subnet.version == 6 for subnet in default_network.subnets(ours)):
        note(f"{path} has an IPv6 range, and IPv6 is switched off on this host: no container can be connected to it")


def renewed(target: Target, manifest: Manifest, path: Path, text: bytes, *, wanted: bool) -> bool:
    """Whether our network, which is there, is written anew: when that is wanted, and nobody has changed it."""
    differs = contents(path) != text
    ours = manifest.has_unchanged(path)
    if not differs or not ours or not wanted:
        hint = (
            "`cni-py install --network` writes that of this version" if ours else "it was not written by us, or changed"
        )
        target.say(f"leave {path} as it is: network {default_network.NAME}" + (f"; {hint}" if differs else ""))
        return False
    target.say(f"write {path} anew")
    if not target.dry_run:
        manifest.put(path, text, 0o644)
    return True


def warn_of_writers() -> None:
    """Runtimes run plugins as root: say so when somebody else may change what root would then run."""
    for path in (Path(sys.executable).resolve(), Path(cni_py.__file__).parent):
        state = path.stat()
        if os.geteuid() == 0 and (state.st_uid != 0 or state.st_mode & 0o022):
            note(f"{path} can be changed by others than root, who runs it now")


def tell_of_runtimes(target: Target) -> None:
    """Which folders the runtimes of this host look in, and whose plugins they will run."""
    found, notes = runtimes.found(runtimes.ROOT, target.bin_dir)
    for sentence in notes:
        note(sentence)
    for runtime in found:
        print(runtimes.described(runtime, runtimes.ROOT, target.bin_dir))
    if not found:
        print("there is no container runtime here: cni-py-exec runs the plugins by hand")


def note(sentence: str) -> None:
    complain(f"cni-py install: {sentence}")

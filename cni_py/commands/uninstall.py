"""`cni-py uninstall`: remove the plugins, put back those that were replaced, and list what remains.

Only files that are still as they were installed are removed. Connected containers need the plugins for their DEL: while there are
any, --force is needed.
"""

import argparse
import contextlib
import os
import shlex
import shutil
from pathlib import Path

from cni_py.commands import default_network, images, leftovers
from cni_py.commands.manifest import Manifest, Target, alone, contents, digest, link
from cni_py.commands.report import FAILED, LACKING, Failure, complain
from cni_py.protocol.netconf import CHAIN

NAMED_MAX = 10  # containers in a message


def uninstall(options: argparse.Namespace) -> int:
    """Uninstall; returns the exit status, 1 if something could not be removed."""
    target = Target.of(options)
    installed = target.manifest.exists()
    if options.purge and os.geteuid() != 0:
        raise Failure("--purge needs root", LACKING)
    if not installed and not options.purge:
        raise Failure(f"nothing is installed in {target.bin_dir}: there is no {target.manifest}")
    refuse_connected(options)
    path = next((path for path in own_files(target) if path.exists()), None)
    network = leftovers.network_of(path)
    off: list[str] = []
    left: list[str] = []
    if installed:
        with alone(target):
            manifest = Manifest.read(target.manifest)
            off = manifest.off
            left = remove_all(target, manifest)
        remove_image(target)
    if not target.dry_run:
        warn_of_chains(target)
    if options.purge:
        clean = leftovers.purge(network, off, target.say, dry_run=target.dry_run)
        return 0 if clean and not left else FAILED
    leftovers.tell(leftovers.everything(network, off), print)
    return FAILED if left else 0


def refuse_connected(options: argparse.Namespace) -> None:
    """Failure while containers are connected; with --force a warning, since their objects stay."""
    connected = leftovers.connected()
    if not connected:
        return
    more = f" and {len(connected) - NAMED_MAX} more" if len(connected) > NAMED_MAX else ""
    who = f"{', '.join(connected[:NAMED_MAX])}{more}"
    if not options.force:
        raise Failure(
            f"containers are connected ({who}; network/containerID/interface) and need these plugins for their DEL: stop them, "
            "disconnect them (`cni-py-exec DEL NETWORK NETNS`), or add --force"
        )
    if not options.purge:
        complain(f"cni-py uninstall: note: the network of {who} remains until DEL by plugins that are installed then")


def warn_of_chains(target: Target) -> None:
    """Name the networks that cannot be used any more, since no other plugins have a chain."""
    for network in default_network.read(default_network.files(target.conf_dir))[0]:
        if CHAIN in network.types and not (target.bin_dir / CHAIN).exists():
            convert = f"`cni-py convert {shlex.quote(network.source)} --to list --write`"
            complain(
                f"cni-py uninstall: note: network {network.name} needs the plugin {CHAIN}: {convert} makes it a list"
            )


def own_files(target: Target) -> list[Path]:
    """The paths at which install may have written its network."""
    return [target.conf_dir / name for name in (default_network.FILE, *default_network.LAST_FILES)]


def remove_image(target: Target) -> None:
    """Remove the image of the modules. Plugins that this package has installed elsewhere go on without it, and start slower."""
    for path in images.installed():
        target.say(f"remove {path}")
        if not target.dry_run:
            with contextlib.suppress(OSError):  # a read-only package: the image is of no use, and of no harm
                path.unlink()


def remove_all(target: Target, manifest: Manifest) -> list[str]:
    """Remove every file of the manifest, then our folder. Returns the files that were left as they are."""
    left = [path for path in sorted(manifest.files) if not remove(target, manifest, Path(path))]
    kept = [] if left or target.dry_run else not_put_back(target)
    if kept:
        complain(
            f"cni-py uninstall: {target.folder} is left as it is: it has replaced plugins that are not back in "
            f"{target.bin_dir} (has that folder been moved?): {', '.join(kept)}"
        )
    elif not left and not target.dry_run:
        if target.replaced(Path()).exists():
            shutil.rmtree(target.replaced(Path()))
        shutil.rmtree(target.folder)  # last, since the manifest is in it
        for folder in reversed(manifest.folders):
            with contextlib.suppress(OSError):  # it is not empty: somebody else uses it
                os.rmdir(folder)
    return left + kept


def not_put_back(target: Target) -> list[str]:
    """The replaced plugins that are nowhere but in our folder."""
    folder = target.replaced(Path())
    names = sorted(os.listdir(folder)) if folder.exists() else []
    return [name for name in names if not is_one_file(folder / name, target.bin_dir / name)]


def is_one_file(one: Path, other: Path) -> bool:
    """Whether two paths are hard links to one file, or to one symbolic link."""
    return os.path.lexists(one) and os.path.lexists(other) and os.path.samestat(one.lstat(), other.lstat())


def remove(target: Target, manifest: Manifest, path: Path) -> bool:
    """Put back the replaced file, or remove ours. False if the file was changed since, and left as it is."""
    old = target.replaced(path)
    # The folder may have had another name then: one with ".." or a symbolic link in it
    had_one = os.path.realpath(path.parent) == os.path.realpath(target.bin_dir) and os.path.lexists(old)
    there = os.path.lexists(path)
    is_back = had_one and is_one_file(path, old)
    if there and not is_back and digest(contents(path)) != manifest.files[str(path)]:
        hint = f"; the replaced file is {old}" if had_one else ""
        complain(f"cni-py uninstall: {path} is left as it is: it was changed after the installation{hint}")
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

"""`cni-py uninstall`: the plugins that were there before come back, and what stays is named.

Only what is still as it was installed is taken away. Connected containers need the plugins for their DEL: with any, it
takes --force.
"""

import argparse
import contextlib
import os
import shutil
from pathlib import Path

from cni_py.commands import default_network, leftovers
from cni_py.commands.manifest import Manifest, Target, alone, contents, digest, link
from cni_py.commands.report import FAILED, LACKING, Failure, complain

NAMED_MAX = 10  # containers in a message


def uninstall(options: argparse.Namespace) -> int:
    """Restore what was there; 1 when something had to be left."""
    target = Target.of(options)
    installed = target.manifest.exists()
    if options.purge and os.geteuid() != 0:
        raise Failure("--purge takes root", LACKING)
    if not installed and not options.purge:
        raise Failure(f"nothing was installed in {target.bin_dir}: there is no {target.manifest}")
    refuse_connected(options)
    path = next((path for path in own_files(target) if path.exists()), None)
    network = leftovers.network_of(path)
    off: list[str] = []
    left: list[str] = []
    if installed:
        with alone(target):
            manifest = Manifest.read(target.manifest)
            off = manifest.off
            left = take_all_back(target, manifest)
    if options.purge:
        well = leftovers.purge(network, off, target.say, dry_run=target.dry_run)
        return 0 if well and not left else FAILED
    leftovers.tell(leftovers.everything(network, off), print)
    return FAILED if left else 0


def refuse_connected(options: argparse.Namespace) -> None:
    """Failure while containers are connected, unless --force."""
    connected = leftovers.connected()
    if not connected:
        return
    more = f" and {len(connected) - NAMED_MAX} more" if len(connected) > NAMED_MAX else ""
    who = f"{', '.join(connected[:NAMED_MAX])}{more}"
    if not options.force:
        raise Failure(
            f"these plugins connect {who} (network/containerID/interface), whose DEL needs them: stop or disconnect "
            "(`cni-py-exec DEL NETWORK NETNS`) what is connected, or add --force"
        )
    if not options.purge:
        complain(f"cni-py uninstall: what {who} has stays until plugins that are in place DEL it")


def own_files(target: Target) -> list[Path]:
    """Where install may have written its network."""
    return [target.conf_dir / name for name in (default_network.FILE, *default_network.LAST_FILES)]


def take_all_back(target: Target, manifest: Manifest) -> list[str]:
    """Every file of the manifest, then our folder; the files that had to be left."""
    left = [path for path in sorted(manifest.files) if not take_back(target, manifest, Path(path))]
    if not left and not target.dry_run:
        shutil.rmtree(target.replaced(Path()))
        shutil.rmtree(target.folder)  # last, since the manifest is in it
        for folder in reversed(manifest.folders):
            with contextlib.suppress(OSError):  # somebody else uses it
                os.rmdir(folder)
    return left


def take_back(target: Target, manifest: Manifest, path: Path) -> bool:
    """Put back or remove one file; False when it is not what we wrote and was left."""
    old = target.replaced(path)
    had_one = path.parent == target.bin_dir and os.path.lexists(old)
    there = os.path.lexists(path)
    is_back = had_one and there and os.path.samestat(path.lstat(), old.lstat())
    if there and not is_back and digest(contents(path)) != manifest.files[str(path)]:
        hint = f"; what was there before is {old}" if had_one else ""
        complain(f"cni-py uninstall: {path} was changed since: left as it is{hint}")
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

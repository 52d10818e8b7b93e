"""Collecting what the checks need beyond the model of the host: collect(), which only reads.

Nothing is changed by it: no module of the kernel is loaded, no lock is taken, no file is written. The programs that it runs tell
their version or state: those of the container runtimes (commands/runtimes.py), nft, iptables, `systemctl is-active`. Paths of
files are below `root`, which tests choose.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from cni_py import __version__, backend, files
from cni_py.doctor import installed, machine
from cni_py.doctor.values import Facts, Installation
from cni_py.protocol.conflist import CONF_DIR

DISKS = ("/var/lib/cni", "/var/lib/cni-py", "/etc/cni/net.d")
LIMITS = (
    "net.core.somaxconn",
    "net.ipv4.neigh.default.gc_thresh3",
    "net.ipv6.neigh.default.gc_thresh3",
    "fs.inotify.max_user_instances",
    "fs.inotify.max_user_watches",
    "fs.file-nr",
    "fs.file-max",
    "user.max_net_namespaces",
)


def collect(installation: Installation, root: Path = Path("/"), conf_dir: str = CONF_DIR) -> Facts:
    """Look at the host."""
    run_dir = files.run_dir()
    gaps = list(installation.notes)
    if os.geteuid() != 0:
        gaps.append("without root some files, locks and tables cannot be read")
    features, gone = machine.features(root)
    nft, nft_problem, refused = machine.nftables(features)
    folders = list(
        dict.fromkeys([*installation.bin_dirs, *(one for runtime in installation.runtimes for one in runtime.folders)])
    )
    locked = installed.held_locks(run_dir)
    return Facts(
        root=os.geteuid() == 0,
        version=__version__,
        python=".".join(map(str, sys.version_info[:3])),
        features=features,
        modules_gone=gone,
        nft=nft,
        nft_problem=nft_problem,
        tables_refused=refused,
        iptables=machine.iptables(),
        limits=machine.limits(LIMITS),
        configs=tuple(installed.configs(root, conf_dir, installation.key_notes)),
        settings=installed.config(root, backend.PATH),
        executables=tuple(one for folder in folders for one in installed.executables(root, folder, installation)),
        lost=tuple(one for folder in folders for one in installed.lost(root, folder)),
        runtimes=tuple(installation.runtimes),
        image=installed.image(installation.image, installation.package),
        image_path=str(installation.image),
        units=tuple(installed.units(root, gaps)),
        state=tuple(installed.state(run_dir)),
        run_dir=run_dir,
        run_dir_open=installed.others_write(run_dir),
        locked=locked,
        disks=tuple(machine.disks(root, (run_dir, *DISKS))),
        gaps=tuple(gaps),
    )

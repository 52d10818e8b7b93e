"""Debian packages for the tests, unpacked into a directory and never installed: nothing of theirs is started.

    python3 tests/clients/fetch_debs.py [DIRECTORY]     downloads what is missing there, prints the directory
    python3 tests/clients/fetch_debs.py --newest DIRECTORY    the same for Go plugins of Debian's testing, for the bench

The directory is $CNI_PY_DEBS, or debs/ in $XDG_CACHE_HOME/cni-py, or .cache/debs in the checkout. All packages share
one tree (usr/bin, usr/sbin, usr/lib/cni, ...), together with those of their dependencies that the machine lacks. Where
in it a file lies depends on the release: until Debian 12 some packages have bin/, sbin/ and lib/ beside usr/.
Only the standard library is used, so that a Makefile can run it before there is a virtual environment.
"""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

# The reference plugins, a runtime that uses them, and the only program its containers need; then Docker Engine with
# its docker-proxy, what the bench compares portfwd with, and a firewall that hosts have.
PACKAGES = (
    "containerd",
    "runc",
    "containernetworking-plugins",
    "busybox-static",
    "docker.io",
    "socat",
    "podman",
    "ufw",
)
SPLIT_OFF = ("docker-cli",)  # the client, in a package of its own from Debian 13 on
NEWEST = "containernetworking-plugins"  # needs glibc 2.34, so testing's runs on Debian 12, too
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
SIGNED_BY = f"[signed-by={KEYRING}] " if os.path.exists(KEYRING) else ""  # otherwise apt looks in trusted.gpg.d
DOWNLOAD_S = 600  # 85 MB; a slow mirror is no reason to fail


class Unavailable(Exception):
    """apt cannot give a package; the text says which and why."""


def default_directory() -> Path:
    if given := os.environ.get("CNI_PY_DEBS"):
        return Path(given)
    if cache := os.environ.get("XDG_CACHE_HOME"):
        return Path(cache) / "cni-py" / "debs"
    return Path(__file__).resolve().parents[2] / ".cache" / "debs"


def fetch(directory: Path | None = None, packages: tuple[str, ...] = PACKAGES) -> Path:
    """Return the directory, after unpacking those of the packages that are not in it yet."""
    root = directory or default_directory()
    root.mkdir(parents=True, exist_ok=True)
    with (root / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = root / ".packages"
        have = set(done.read_text().split()) if done.exists() else set()
        missing = [package for package in packages if package not in have]
        optional = [package for package in SPLIT_OFF if package not in have]
        if missing or optional:
            print("cni-py: fetching Debian's runtimes and Go plugins for the tests (85 MB, once)", file=sys.stderr)
            needed = with_dependencies(missing)  # before the next: it sees to it that apt has its lists
            needed += [name for name in with_dependencies(known(optional)) if name not in needed]
            unpack(needed, root)
            done.write_text("\n".join(sorted(have.union(needed, optional))) + "\n")
    return root


def fetch_newest(root: Path) -> Path:
    """Unpack testing's package NEWEST, whose version is then in the file `version` there; once.

    apt gets sources, lists and a cache of its own, so that the machine's stay as they are. It checks the signature of the suite
    and the checksums of the package as it always does.
    """
    if (root / "version").exists():
        return root
    root = root.absolute()
    root.mkdir(parents=True, exist_ok=True)
    print(f"cni-py: fetching {NEWEST} of Debian's testing for the bench (20 MB, once)", file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="cni-py-newest-") as folder:
        Path(folder).chmod(0o755)  # apt downloads as a user of its own
        for name in ("lists/partial", "cache/archives/partial"):
            Path(folder, name).mkdir(parents=True)
        Path(folder, "sources.list").write_text(f"deb {SIGNED_BY}{mirror()} testing main\n")
        options = [
            *("-o", f"Dir::Etc::SourceList={folder}/sources.list", "-o", "Dir::Etc::SourceParts=/dev/null"),
            *("-o", f"Dir::State::Lists={folder}/lists", "-o", f"Dir::Cache={folder}/cache"),
            *("-o", "Acquire::Languages=none", "-o", "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false"),
        ]
        for words in (["update", "--error-on=any"], ["download", NEWEST]):
            checked(["apt-get", "--quiet", "--quiet", *options, *words], folder)
        (archive,) = Path(folder).glob("*.deb")
        checked(["dpkg-deb", "--extract", str(archive), str(root)], folder)
        version = checked(["dpkg-deb", "--field", str(archive), "Version"], folder)
    (root / "version").write_text(version)
    return root


def mirror() -> str:
    """From where this machine gets Debian itself."""
    command = ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages", "Origin: Debian"]
    found = run_apt(command).split()
    if not found:
        raise Unavailable("apt has no source of Debian's packages: see sources.list(5)")
    return found[0]


def programs(root: Path) -> list[str]:
    """The folders of the tree that belong on PATH."""
    return [str(root / folder) for folder in ("usr/bin", "usr/sbin", "bin", "sbin")]


def libraries(root: Path) -> list[str]:
    """The folders of the tree that belong on LD_LIBRARY_PATH."""
    return [str(folder) for top in ("usr/lib", "lib") for folder in sorted((root / top).glob("*-linux-gnu*"))]


def busybox(root: Path) -> Path:
    """The program, wherever this release has it."""
    places = [Path(folder) / "busybox" for folder in programs(root)]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise Unavailable(f"no busybox in {', '.join(map(str, places))}")
    return found


def known(packages: list[str]) -> list[str]:
    """Those of the packages that this release has."""
    return [name for name in packages if run_apt(["apt-cache", "search", "--names-only", f"^{re.escape(name)}$"])]


def with_dependencies(packages: list[str]) -> list[str]:
    """Return the packages and what they depend on, without what is installed. The first alternative of `a | b` counts."""
    needed: list[str] = []
    wanted = packages
    while wanted:
        needed += wanted
        wanted = [name for name in dependencies(wanted) if name not in needed and not is_installed(name)]
    return needed


def dependencies(packages: list[str]) -> list[str]:
    listing = run_apt(["apt-cache", "depends", "--important", "--no-recommends", *packages])
    names: dict[str, None] = {}
    follows_alternative = False
    for line in listing.splitlines():
        kind, _, name = line.strip().partition(": ")
        if kind.lstrip("|") in ("Depends", "PreDepends") and not follows_alternative and not name.startswith("<"):
            names[name.partition(":")[0]] = None
        follows_alternative = kind.startswith("|")
    return list(names)


def is_installed(package: str) -> bool:
    query = ["dpkg-query", "--show", "--showformat=${db:Status-Status}", package]
    return subprocess.run(query, capture_output=True, text=True, check=False).stdout.startswith("installed")


def unpack(packages: list[str], root: Path) -> None:
    # apt drops its privileges for a download when it may write there as its own user, and warns otherwise.
    if not packages:
        return
    with tempfile.TemporaryDirectory(prefix="cni-py-debs-") as folder:
        Path(folder).chmod(0o777)
        run_apt(["apt-get", "--quiet", "--quiet", "download", *packages], folder)
        for archive in sorted(Path(folder).glob("*.deb")):
            subprocess.run(["dpkg-deb", "--extract", archive, root], check=True, timeout=DOWNLOAD_S)


def run_apt(command: list[str], folder: str = "/") -> str:
    """Run an apt command; when it fails, once more after an update: a fresh machine has no lists of packages."""
    done = run(command, folder)
    if done.returncode == 0:
        return done.stdout
    run(["apt-get", "--quiet", "--quiet", "update"], "/")
    return checked(command, folder)


def checked(command: list[str], folder: str) -> str:
    """What it prints. Unavailable when it fails."""
    done = run(command, folder)
    if done.returncode:
        raise Unavailable(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


def run(command: list[str], folder: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=DOWNLOAD_S
    )


def main(arguments: list[str]) -> int:
    try:
        if arguments[:1] == ["--newest"]:
            print(fetch_newest(Path(arguments[1])))
        else:
            print(fetch(Path(arguments[0]) if arguments else None))
    except (Unavailable, OSError, subprocess.SubprocessError) as error:
        print(f"fetch_debs: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

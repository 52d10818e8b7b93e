"""Debian packages for the tests, unpacked into a directory and never installed: nothing of theirs is started.

    python3 tests/clients/fetch_debs.py [DIRECTORY]     downloads what is missing there, prints the directory
    python3 tests/clients/fetch_debs.py --browser        the same for chromium, in browser/ beside that directory
    python3 tests/clients/fetch_debs.py --newest         the same for those of today, of Debian's testing suite, in newest/

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
# its docker-proxy, what the bench compares portfwd with, firewalls that hosts have, and a DHCP server.
PACKAGES = (
    "containerd",
    "runc",
    "containernetworking-plugins",
    "busybox-static",
    "docker.io",
    "socat",
    "podman",
    "ufw",
    "firewalld",
    "dbus-daemon",
    "dnsmasq-base",
)
BROWSER = ("chromium-headless-shell", "fonts-dejavu-core")  # for the page of `cni-py show`
DESKTOP = ("x11-utils", "xdg-utils")  # what only the browser with windows uses; they bring 250 MB of OpenGL
SPLIT_OFF = ("docker-cli",)  # the client, in a package of its own from Debian 13 on
# Of the testing suite, in a tree of its own. runc needs glibc 2.38, the others 2.34, so that they run on Debian 12, too.
NEWEST = ("containernetworking-plugins", "containerd", "runc", "docker.io", "docker-cli", "libseccomp2", "libsystemd0")
LIBC = "libc6"  # in the folder libc of that tree, for hosts whose own is older: see containerd_host.py
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
SIGNED_BY = f"[signed-by={KEYRING}] " if os.path.exists(KEYRING) else ""  # otherwise apt looks in trusted.gpg.d
DOWNLOAD_S = 600  # 85 MB; a slow mirror is no reason to fail


class Unavailable(Exception):
    """apt cannot give a package; the text says which and why."""


class Unknown(Exception):
    """This release does not have a package; the text says which."""


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


def fetch_browser(directory: Path | None = None) -> Path:
    """Unpack chromium without a window in a tree of its own; once. Unknown when this release does not have it.

    The file `complete` says that all of it is there.
    """
    root = directory or default_directory().with_name("browser")
    root.mkdir(parents=True, exist_ok=True)
    with (root / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (root / "complete").exists():
            print("cni-py: fetching Debian's chromium for the tests (70 MB, once)", file=sys.stderr)
            if known([BROWSER[0]]) == []:
                raise Unknown(f"this release has no package {BROWSER[0]}")
            unpack(with_dependencies(list(BROWSER), DESKTOP), root)
            (root / "complete").touch()
    return root


def fetch_newest(directory: Path | None = None) -> Path:
    """Unpack testing's packages NEWEST and LIBC; once. Unknown when the mirror does not have that suite.

    apt gets sources, lists and a cache of its own, so that the machine's stay as they are. It checks the signature of the suite
    and the checksums of the packages as it always does. The file `versions`, written last, has a line for each package.
    """
    root = directory or default_directory().with_name("newest")
    root.mkdir(parents=True, exist_ok=True)
    with (root / ".lock").open("w") as lock, tempfile.TemporaryDirectory(prefix="cni-py-newest-") as folder:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if set(newest_versions(root)) >= {*NEWEST, LIBC}:
            return root
        print("cni-py: fetching runtimes and Go plugins of Debian's testing suite (80 MB, once)", file=sys.stderr)
        Path(folder).chmod(0o777)  # apt downloads as a user of its own
        options = apart(Path(folder), "testing")
        try:
            checked(["apt-get", "--quiet", "--quiet", *options, "update", "--error-on=any"], folder)
        except Unavailable as error:
            raise Unknown(str(error)) if "does not have a Release file" in str(error) else error from None
        checked(["apt-get", "--quiet", "--quiet", *options, "download", *NEWEST, LIBC], folder)
        lines = []
        for archive in sorted(Path(folder).glob("*.deb")):
            name, version = checked(
                ["dpkg-deb", "--show", "--showformat=${Package} ${Version}", str(archive)], folder
            ).split()
            checked(["dpkg-deb", "--extract", str(archive), str(root / "libc" if name == LIBC else root)], folder)
            lines.append(f"{name} {version}\n")
        (root / "versions").write_text("".join(lines))
    return root


def newest_versions(root: Path) -> dict[str, str]:
    """The versions of what fetch_newest() has unpacked there, by package."""
    listed = root / "versions"
    return dict(line.split() for line in listed.read_text().splitlines()) if listed.exists() else {}


def newer_libc(root: Path) -> list[str]:
    """The folder of a C library in the tree that is newer than this machine's, which some of its programs need."""
    unpacked = newest_versions(root).get(LIBC, "0").partition("-")[0]
    own = (os.confstr("CS_GNU_LIBC_VERSION") or "glibc 0").split()[1]
    is_newer = [int(part) for part in unpacked.split(".")] > [int(part) for part in own.split(".")]
    return libraries(root / "libc") if is_newer else []


def apart(folder: Path, suite: str) -> list[str]:
    """Options of apt that give it the sources of one suite, and lists and a cache of its own in a folder."""
    for name in ("lists/partial", "cache/archives/partial"):
        (folder / name).mkdir(parents=True)
    (folder / "sources.list").write_text(f"deb {SIGNED_BY}{mirror()} {suite} main\n")
    return [
        *("-o", f"Dir::Etc::SourceList={folder}/sources.list", "-o", "Dir::Etc::SourceParts=/dev/null"),
        *("-o", f"Dir::State::Lists={folder}/lists", "-o", f"Dir::Cache={folder}/cache"),
        *("-o", "Acquire::Languages=none", "-o", "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false"),
    ]


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


def private_libraries(root: Path) -> list[str]:
    """Folders below those of libraries() with further libraries, which an installed program finds by its RUNPATH."""
    return [str(folder) for top in libraries(root) for folder in Path(top).glob("pulseaudio")]


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


def with_dependencies(packages: list[str], without: tuple[str, ...] = ()) -> list[str]:
    """Return the packages and what they depend on, without what is installed. The first alternative of `a | b` counts."""
    needed: list[str] = []
    wanted = packages
    while wanted:
        needed += wanted
        wanted = [name for name in dependencies(wanted) if name not in (*needed, *without) and not is_installed(name)]
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
            print(fetch_newest())
        elif arguments[:1] == ["--browser"]:
            print(fetch_browser())
        else:
            print(fetch(Path(arguments[0]) if arguments else None))
    except (Unavailable, Unknown, OSError, subprocess.SubprocessError) as error:
        print(f"fetch_debs: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

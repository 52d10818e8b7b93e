"""The container runtimes of this host: in which folders they look for plugins, and so whose plugins they run.

    containerd  /etc/containerd/config.toml and what it imports; k3s and RKE2 have one of their own     bin_dir, bin_dirs
    podman      containers.conf of /usr/share and /etc, containers.conf.d                               cni_plugin_dirs
    CRI-O       /etc/crio/crio.conf, crio.conf.d                                                        plugin_dirs
    nerdctl     /etc/nerdctl/nerdctl.toml, else the first of its folders that exists                    cni_path
    Docker      does not use CNI

A file that cannot be read becomes a note: the plugins are installed anyway.
"""

import contextlib
import re
import shlex
import subprocess
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cni_py import files
from cni_py.commands.launchers import START
from cni_py.protocol.conflist import CONF_DIR
from cni_py.run import MODULES, launcher_text

ROOT = Path("/")
PROGRAMS = ("usr/local/sbin", "usr/local/bin", "usr/sbin", "usr/bin", "sbin", "bin")
NETAVARK = ("usr/local/libexec/podman", "usr/local/lib/podman", "usr/libexec/podman", "usr/lib/podman", *PROGRAMS)
ANSWER_S = 5.0  # the limit for a program that prints its version
DEFAULT = ("/opt/cni/bin",)  # go-cni's, ocicni's
DEBIAN = ("/usr/lib/cni",)  # Debian's build of containerd
NERDCTL = ("/opt/cni/bin", "/usr/local/libexec/cni", "/usr/local/lib/cni", "/usr/libexec/cni", "/usr/lib/cni")
PODMAN = ("/usr/local/libexec/cni", "/usr/libexec/cni", "/usr/local/lib/cni", "/usr/lib/cni", "/opt/cni/bin")
CRI = ("io.containerd.cri.v1.runtime", "io.containerd.grpc.v1.cri", "cri")  # configuration version 3, 2 and 1
RANCHER = {name: f"var/lib/rancher/{name.lower()}/agent/etc/containerd/config.toml" for name in ("k3s", "RKE2")}
BUILT_IN = "built in"


@dataclass(frozen=True, slots=True)
class Runtime:
    """A runtime of this host."""

    name: str  # with its version
    folders: tuple[str, ...]  # where it looks for plugins, in this order
    source: str  # the file that configures them, or BUILT_IN
    without: str = ""  # why it does not use CNI, as the end of a sentence


@dataclass(slots=True)
class Host:
    """The files and programs below `root`, with a note for each that could not be read or run."""

    root: Path
    notes: list[str] = field(default_factory=list)

    def toml(self, path: str) -> dict[str, object]:
        """The document in a TOML file; empty if there is none, or, with a note, if it cannot be read."""
        try:
            return tomllib.loads(files.read(str(self.root / path), follow=True).decode())
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except OSError as error:
            self.notes.append(f"cannot read /{path}: {error.strerror}")
        except ValueError as error:  # neither TOML nor UTF-8
            self.notes.append(f"skipped /{path}, which is not valid TOML: {error}")
        return {}

    def listed(self, folder: str, pattern: str = "*") -> list[str]:
        """The files of a folder of drop-ins, relative to the root, in lexical order."""
        found = (path for path in (self.root / folder).glob(pattern) if path.is_file())
        return sorted(str(path.relative_to(self.root)) for path in found)

    def exists(self, path: str) -> bool:
        return (self.root / path).exists()

    def program(self, name: str, folders: Sequence[str] = PROGRAMS) -> Path | None:
        """The executable of that name in the first of the folders that has one."""
        paths = (self.root / folder / name for folder in folders)
        return next((path for path in paths if path.is_file()), None)

    def output(self, program: Path | None, *words: str) -> str:
        """The stdout of a program; "", with a note, if it fails or takes longer than ANSWER_S."""
        if program is None:
            return ""
        try:
            done = subprocess.run(
                [program, *words], stdin=subprocess.DEVNULL, capture_output=True, timeout=ANSWER_S, check=True
            )
        except (OSError, subprocess.SubprocessError) as error:
            self.notes.append(f"`{shlex.join([str(program), *words])}` failed: {error}")
            return ""
        return done.stdout.decode("utf-8", "replace")


def found(root: Path, bin_dir: Path) -> tuple[list[Runtime], list[str]]:
    """The runtimes, and notes on what could not be read. `bin_dir` will exist: install makes it."""
    host = Host(root)
    runtimes = [*containerd(host), *nerdctl(host, bin_dir), *podman(host), *crio(host)]
    if host.program("dockerd"):
        why = "has networks of its own; it can use portfwd-docker-proxy"
        runtimes.append(Runtime("Docker", (), BUILT_IN, why))
    return runtimes, host.notes


def containerd(host: Host) -> Iterator[Runtime]:
    """containerd as the runtime of a Kubernetes node (CRI). Containers of nerdctl are connected by nerdctl itself."""
    program, path = host.program("containerd"), "etc/containerd/config.toml"
    if program is not None or host.exists(path):
        version = host.output(program, "--version")
        name = named("containerd", version)
        folders, source, disabled = cri_folders(host, path)
        if disabled:
            yield Runtime(name, (), disabled, f"starts no pods (/{disabled} disables its CRI plugin)")
        else:
            yield Runtime(name, folders or containerd_default(host, program, version), source)
    for name, path in RANCHER.items():
        folders, source, _ = cri_folders(host, path)
        if folders:
            yield Runtime(name, folders, source)


def cri_folders(host: Host, path: str) -> tuple[tuple[str, ...], str, str]:
    """The folders that a configuration and its imports set; the file that does; the file that disables CRI, or ""."""
    folders: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()
    source, disabled = BUILT_IN, ""
    main = host.toml(path)
    imported = [name for pattern in strings(main.get("imports")) for name in imports(host, path, pattern)]
    for name, document in [(path, main), *((name, host.toml(name)) for name in imported)]:
        if set(strings(document.get("disabled_plugins"))) & set(CRI):
            disabled = name
        for section in reversed(CRI):
            cni = child(document, "plugins", section, "cni")
            stated = (*strings(cni.get("bin_dir")), *strings(cni.get("bin_dirs")))
            if stated:
                folders, source = stated, f"/{name}"
            networks = strings(cni.get("conf_dir")) or networks
    note_networks(host, path, networks)
    return folders, source, disabled


def note_networks(host: Host, path: str, stated: tuple[str, ...]) -> None:
    """Note that a runtime reads its networks from another folder than the one to which `install` writes by default."""
    if stated and Path(stated[0]) != Path(CONF_DIR):
        where = shlex.quote(stated[0])
        host.notes.append(
            f"the runtime of /{path} reads networks from {where}, not from {CONF_DIR}: use --conf-dir {where}"
        )


def imports(host: Host, path: str, pattern: str) -> list[str]:
    """The files that match a pattern of `imports`, which is absolute or relative to the folder of `path`."""
    relative = pattern[1:] if pattern.startswith("/") else f"{Path(path).parent}/{pattern}"
    with contextlib.suppress(ValueError, NotImplementedError):  # not a valid pattern
        return [name for name in host.listed("", relative) if name != path]
    return []


def containerd_default(host: Host, program: Path | None, version: str) -> tuple[str, ...]:
    """The built-in folders: asked of `containerd config default`, else by version, since Debian's builds from 1.7 on differ."""
    try:
        document = tomllib.loads(host.output(program, "config", "default"))
    except ValueError:
        document = {}
    for section in CRI:
        cni = child(document, "plugins", section, "cni")
        stated = (*strings(cni.get("bin_dirs")), *strings(cni.get("bin_dir")))
        if stated:
            return stated
    return DEBIAN if "~ds" in version or "+deb" in version else DEFAULT


def nerdctl(host: Host, bin_dir: Path) -> Iterator[Runtime]:
    """nerdctl, which runs the plugins itself, from one folder."""
    program, path = host.program("nerdctl"), "etc/nerdctl/nerdctl.toml"
    stated = strings(host.toml(path).get("cni_path"))
    if program is None and not stated:
        return
    name = named("nerdctl", host.output(program, "--version"))
    there = [folder for folder in NERDCTL if host.root / folder[1:] == bin_dir or host.exists(folder[1:])]
    yield Runtime(name, stated or tuple(there[:1]) or NERDCTL[:1], f"/{path}" if stated else BUILT_IN)


def podman(host: Host) -> Iterator[Runtime]:
    """podman: it uses CNI up to version 4, and version 4 only if netavark is not chosen."""
    program = host.program("podman")
    folders, folders_in, backend, backend_in = PODMAN, BUILT_IN, "", ""
    names = ["usr/share/containers/containers.conf", "etc/containers/containers.conf"]
    for name in [*names, *host.listed("etc/containers/containers.conf.d", "*.conf")]:
        network = child(host.toml(name), "network")
        stated = network.get("cni_plugin_dirs")
        if strings(stated):
            before = folders if isinstance(stated, list) and {"append": True} in stated else ()
            folders, folders_in = (*before, *strings(stated)), f"/{name}"
        if strings(network.get("network_backend")):
            backend, backend_in = strings(network.get("network_backend"))[0], f"/{name}"
    if program is None and folders_in == BUILT_IN and not backend:
        return
    version = host.output(program, "--version")
    name, major = named("podman", version), re.search(r"\d+", version)
    if major and int(major[0]) >= 5:
        yield Runtime(name, (), BUILT_IN, "knows only netavark, as podman does since version 5")
    elif backend == "netavark":
        yield Runtime(name, (), backend_in, f"uses netavark ({backend_in}: network_backend)")
    elif not backend and major and int(major[0]) == 4 and (why := netavark(host)):
        yield Runtime(name, (), BUILT_IN, f"uses netavark ({why}); `network_backend` in containers.conf changes that")
    else:
        yield Runtime(name, folders, folders_in)


def netavark(host: Host) -> str:
    """Why podman 4 uses netavark although no configuration says so; "" if it uses CNI."""
    kept = "var/lib/containers/storage/defaultNetworkBackend"  # its decision at the first start
    try:
        chosen = (host.root / kept).read_text().strip()
    except (OSError, ValueError):
        return "it is installed" if host.program("netavark", NETAVARK) else ""
    return f"/{kept}" if chosen == "netavark" else ""


def crio(host: Host) -> Iterator[Runtime]:
    """CRI-O."""
    program = host.program("crio")
    names = [name for name in ("etc/crio/crio.conf", *host.listed("etc/crio/crio.conf.d")) if host.exists(name)]
    if program is None and not names:
        return
    folders: tuple[str, ...] = DEFAULT
    source = BUILT_IN
    for name in names:
        network = child(host.toml(name), "crio", "network")
        stated = (*strings(network.get("plugin_dirs")), *strings(network.get("plugin_dir")))
        if stated:
            folders, source = stated, f"/{name}"
        note_networks(host, name, strings(network.get("network_dir")))
    yield Runtime(named("CRI-O", host.output(program, "--version")), folders, source)


def described(runtime: Runtime, root: Path, bin_dir: Path) -> str:
    """A sentence: where the runtime looks for plugins, and whose plugins it will run."""
    if runtime.without:
        return f"{runtime.name} will not run these plugins: it {runtime.without}"
    text = f"{runtime.name} looks for plugins in {', then '.join(runtime.folders)} ({runtime.source})"
    theirs: dict[str, list[str]] = {}
    missing = []
    for plugin in MODULES:
        folder = first_with(plugin, runtime.folders, root, bin_dir)
        if not folder:
            missing.append(plugin)
        elif not is_ours(plugin, folder, root, bin_dir):
            theirs.setdefault(folder, []).append(plugin)
    if not theirs and not missing:
        return f"{text} and will run ours"
    where = next(iter(theirs), runtime.folders[0])
    advice = f"`cni-py install --bin-dir {shlex.quote(where)}` installs ours there"
    if not theirs:
        return f"{text}, not in {bin_dir}: it will not find ours; {advice}"
    told = " and ".join(f"{', '.join(plugins)} in {folder}" for folder, plugins in theirs.items())
    return f"{text} and will run other plugins: {told}; {advice}"


def first_with(plugin: str, folders: Sequence[str], root: Path, bin_dir: Path) -> str:
    """The first folder that has the plugin: the runtime runs that one. "" if there is none."""
    return next((folder for folder in folders if has(folder, plugin, root, bin_dir)), "")


def has(folder: str, plugin: str, root: Path, bin_dir: Path) -> bool:
    """Whether the plugin is in the folder, or will be after the installation."""
    path = root / folder.lstrip("/")
    return path.resolve() == bin_dir.resolve() or (path / plugin).is_file()


def is_ours(plugin: str, folder: str, root: Path, bin_dir: Path) -> bool:
    """Whether the plugin in that folder is our launcher, or will be after the installation."""
    path = root / folder.lstrip("/")
    if path.resolve() == bin_dir.resolve():
        return True
    try:
        return START in launcher_text(str(path / plugin))
    except OSError:
        return False


def named(name: str, version: str) -> str:
    """The runtime's name, with its version if that is known."""
    number = re.search(r"\d+(\.\d+)+", version)
    return f"{name} {number[0]}" if number else name


def child(document: object, *keys: str) -> dict[str, object]:
    """A nested table of a TOML document; empty if there is none."""
    for key in keys:
        document = document.get(key) if isinstance(document, dict) else None
    return document if isinstance(document, dict) else {}


def strings(value: object) -> tuple[str, ...]:
    """The non-empty strings in a string or list; none for anything else."""
    values = value if isinstance(value, list) else [value]
    return tuple(text for text in values if isinstance(text, str) and text)

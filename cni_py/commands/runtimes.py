"""Which container runtimes are here, in which folders they look for plugins, and whose plugins they therefore run.

    containerd  /etc/containerd/config.toml and what it imports; k3s and RKE2 have one of their own     bin_dir, bin_dirs
    podman      containers.conf of /usr/share and /etc, containers.conf.d                               cni_plugin_dirs
    CRI-O       /etc/crio/crio.conf, crio.conf.d                                                        plugin_dirs
    nerdctl     /etc/nerdctl/nerdctl.toml, else the first of its folders that exists                    cni_path
    Docker      uses no CNI

A file that cannot be read is a note: nothing here decides whether plugins are installed.
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
from cni_py.run import LAUNCHER_MAX, MODULES

ROOT = Path("/")
PROGRAMS = ("usr/local/sbin", "usr/local/bin", "usr/sbin", "usr/bin", "sbin", "bin")
NETAVARK = ("usr/local/libexec/podman", "usr/local/lib/podman", "usr/libexec/podman", "usr/lib/podman", *PROGRAMS)
ANSWER_S = 5.0  # a program that only tells its version
DEFAULT = ("/opt/cni/bin",)  # go-cni's, ocicni's
DEBIAN = ("/usr/lib/cni",)  # of the containerd that Debian builds
NERDCTL = ("/opt/cni/bin", "/usr/local/libexec/cni", "/usr/local/lib/cni", "/usr/libexec/cni", "/usr/lib/cni")
PODMAN = ("/usr/local/libexec/cni", "/usr/libexec/cni", "/usr/local/lib/cni", "/usr/lib/cni", "/opt/cni/bin")
CRI = ("io.containerd.cri.v1.runtime", "io.containerd.grpc.v1.cri", "cri")  # configuration version 3, 2 and 1
RANCHER = {name: f"var/lib/rancher/{name.lower()}/agent/etc/containerd/config.toml" for name in ("k3s", "RKE2")}
BUILT_IN = "built in"


@dataclass(frozen=True, slots=True)
class Runtime:
    """One that was found."""

    name: str  # with its version
    folders: tuple[str, ...]  # where it looks for plugins, in this order
    source: str  # who says so: a file, or BUILT_IN
    without: str = ""  # why it uses no CNI


@dataclass(slots=True)
class Host:
    """The files and programs below `root`, and what could not be read of them."""

    root: Path
    notes: list[str] = field(default_factory=list)

    def toml(self, path: str) -> dict[str, object]:
        """What a file says; nothing where there is none, and with a note where it is broken."""
        try:
            return tomllib.loads(files.read(str(self.root / path), follow=True).decode())
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except OSError as error:
            self.notes.append(f"cannot read /{path}: {error.strerror}")
        except ValueError as error:  # no TOML, or no UTF-8
            self.notes.append(f"/{path} is not valid TOML and was passed over: {error}")
        return {}

    def listed(self, folder: str, pattern: str = "*") -> list[str]:
        """The files of a folder of drop-ins, in their order."""
        found = (path for path in (self.root / folder).glob(pattern) if path.is_file())
        return sorted(str(path.relative_to(self.root)) for path in found)

    def exists(self, path: str) -> bool:
        return (self.root / path).exists()

    def program(self, name: str, folders: Sequence[str] = PROGRAMS) -> Path | None:
        """The executable of a runtime."""
        paths = (self.root / folder / name for folder in folders)
        return next((path for path in paths if path.is_file()), None)

    def asked(self, program: Path | None, *words: str) -> str:
        """What a program prints; nothing when it cannot tell."""
        if program is None:
            return ""
        try:
            done = subprocess.run(
                [program, *words], stdin=subprocess.DEVNULL, capture_output=True, timeout=ANSWER_S, check=True
            )
        except (OSError, subprocess.SubprocessError) as error:
            self.notes.append(f"`{shlex.join([str(program), *words])}` does not answer: {error}")
            return ""
        return done.stdout.decode("utf-8", "replace")


def found(root: Path, bin_dir: Path) -> tuple[list[Runtime], list[str]]:
    """The runtimes, and notes on what could not be read. `bin_dir` is a folder that will exist."""
    host = Host(root)
    runtimes = [*containerd(host), *nerdctl(host, bin_dir), *podman(host), *crio(host)]
    if host.program("dockerd"):
        why = "has networks of its own, which do not change; portfwd-docker-proxy is what it can use"
        runtimes.append(Runtime("Docker", (), BUILT_IN, why))
    return runtimes, host.notes


def containerd(host: Host) -> Iterator[Runtime]:
    """containerd as a Kubernetes node's runtime (CRI). What nerdctl starts is nerdctl's to connect."""
    program, path = host.program("containerd"), "etc/containerd/config.toml"
    if program is not None or host.exists(path):
        version = host.asked(program, "--version")
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
    """What the file and those it imports say: folders, the file they are from, the file that disables CRI."""
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
    tell_of_networks(host, path, networks)
    return folders, source, disabled


def tell_of_networks(host: Host, path: str, stated: tuple[str, ...]) -> None:
    """A note on a runtime whose networks are not where `install` writes one unless told."""
    if stated and Path(stated[0]) != Path(CONF_DIR):
        where = shlex.quote(stated[0])
        host.notes.append(
            f"the runtime of /{path} reads networks from {where}, not from {CONF_DIR}: see --conf-dir {where}"
        )


def imports(host: Host, path: str, pattern: str) -> list[str]:
    """The files that a pattern of `imports` means: absolute, or beside the file that has it."""
    relative = pattern[1:] if pattern.startswith("/") else f"{Path(path).parent}/{pattern}"
    with contextlib.suppress(ValueError, NotImplementedError):  # no pattern at all
        return [name for name in host.listed("", relative) if name != path]
    return []


def containerd_default(host: Host, program: Path | None, version: str) -> tuple[str, ...]:
    """What is built in: Debian's own differs, from 1.7 on."""
    try:
        document = tomllib.loads(host.asked(program, "config", "default"))
    except ValueError:
        document = {}
    for section in CRI:
        cni = child(document, "plugins", section, "cni")
        stated = (*strings(cni.get("bin_dirs")), *strings(cni.get("bin_dir")))
        if stated:
            return stated
    return DEBIAN if "~ds" in version or "+deb" in version else DEFAULT


def nerdctl(host: Host, bin_dir: Path) -> Iterator[Runtime]:
    """nerdctl, which runs the plugins itself."""
    program, path = host.program("nerdctl"), "etc/nerdctl/nerdctl.toml"
    stated = strings(host.toml(path).get("cni_path"))
    if program is None and not stated:
        return
    name = named("nerdctl", host.asked(program, "--version"))
    there = [folder for folder in NERDCTL if host.root / folder[1:] == bin_dir or host.exists(folder[1:])]
    yield Runtime(name, stated or tuple(there[:1]) or NERDCTL[:1], f"/{path}" if stated else BUILT_IN)


def podman(host: Host) -> Iterator[Runtime]:
    """podman, which used CNI up to version 4, and there only where netavark is not chosen."""
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
    version = host.asked(program, "--version")
    name, major = named("podman", version), re.search(r"\d+", version)
    if major and int(major[0]) >= 5:
        yield Runtime(name, (), BUILT_IN, "knows netavark alone, as podman does since version 5")
    elif backend == "netavark":
        yield Runtime(name, (), backend_in, f"uses netavark ({backend_in}: network_backend)")
    elif not backend and major and int(major[0]) == 4 and (why := netavark(host)):
        yield Runtime(name, (), BUILT_IN, f"uses netavark ({why}); `network_backend` in containers.conf changes that")
    else:
        yield Runtime(name, folders, folders_in)


def netavark(host: Host) -> str:
    """Why podman 4 uses netavark where nobody chose; "" when it uses CNI."""
    kept = "var/lib/containers/storage/defaultNetworkBackend"  # what it decided when it was first run
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
        tell_of_networks(host, name, strings(network.get("network_dir")))
    yield Runtime(named("CRI-O", host.asked(program, "--version")), folders, source)


def described(runtime: Runtime, root: Path, bin_dir: Path) -> str:
    """A sentence: where it looks, and whose plugins it will run."""
    if runtime.without:
        return f"{runtime.name} will run none of these plugins: it {runtime.without}"
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
    advice = f"`cni-py install --bin-dir {shlex.quote(where)}` puts ours there"
    if not theirs:
        return f"{text}, and not in {bin_dir}: it will find none of ours; {advice}"
    told = "; ".join(f"those that are in {folder} ({', '.join(plugins)})" for folder, plugins in theirs.items())
    return f"{text} and will go on running {told}; {advice}"


def first_with(plugin: str, folders: Sequence[str], root: Path, bin_dir: Path) -> str:
    """The folder from which a runtime takes a plugin, "" for none."""
    return next((folder for folder in folders if has(folder, plugin, root, bin_dir)), "")


def has(folder: str, plugin: str, root: Path, bin_dir: Path) -> bool:
    """Whether the plugin is there, or will be."""
    path = root / folder.lstrip("/")
    return path.resolve() == bin_dir.resolve() or (path / plugin).is_file()


def is_ours(plugin: str, folder: str, root: Path, bin_dir: Path) -> bool:
    """Whether that plugin is a launcher of ours, or will be."""
    path = root / folder.lstrip("/")
    if path.resolve() == bin_dir.resolve():
        return True
    try:
        with open(path / plugin, "rb") as file:
            return START in file.read(LAUNCHER_MAX)
    except OSError:
        return False


def named(name: str, version: str) -> str:
    """The runtime with its version, where that is known."""
    number = re.search(r"\d+(\.\d+)+", version)
    return f"{name} {number[0]}" if number else name


def child(document: object, *keys: str) -> dict[str, object]:
    """A table of a TOML document; an empty one where there is none."""
    for key in keys:
        document = document.get(key) if isinstance(document, dict) else None
    return document if isinstance(document, dict) else {}


def strings(value: object) -> tuple[str, ...]:
    """A text, or those of a list; nothing else."""
    values = value if isinstance(value, list) else [value]
    return tuple(text for text in values if isinstance(text, str) and text)

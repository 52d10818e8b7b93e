"""Which runtimes `cni-py install` finds, and whose plugins it says that they will run."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from cni_py.commands import runtimes
from cni_py.commands.runtimes import Runtime
from cni_py.run import MODULES
from tests.commands.conftest import Command

BIN_DIR = Path("/opt/cni/bin")
CONTAINERD = "containerd github.com/containerd/containerd"
V2 = 'version = 2\n[plugins."io.containerd.grpc.v1.cri".cni]\n'
V3 = "version = 3\n[plugins.'io.containerd.cri.v1.runtime'.cni]\n"


def put(host: Path, path: str, text: str) -> Path:
    file = host / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


def program(host: Path, name: str, says: str = "", *, script: str = "") -> None:
    put(host, f"usr/bin/{name}", script or f"#!/bin/sh\n[ $# = 1 ] && echo '{says}'\n").chmod(0o755)


def plugins(host: Path, folder: str) -> None:
    for name in MODULES:
        put(host, f"{folder}/{name}", "\x7fELF of somebody else")


def only(host: Path, bin_dir: Path = BIN_DIR) -> Runtime:
    (runtime,), _ = runtimes.found(host, bin_dir)
    return runtime


def sentence(host: Path, runtime: Runtime | None = None) -> str:
    return runtimes.described(runtime or only(host), host, host / "opt/cni/bin")


@pytest.mark.parametrize(
    ("text", "folders"),
    [
        (V2 + 'bin_dir = "/usr/lib/cni"', ("/usr/lib/cni",)),
        (V3 + 'bin_dir = "/usr/lib/cni"', ("/usr/lib/cni",)),
        (V3 + 'bin_dirs = ["/a", "/b"]', ("/a", "/b")),
        ('[plugins.cri.cni]\nbin_dir = "/old"', ("/old",)),
        (V2 + 'bin_dir = ""', ("/opt/cni/bin",)),
        (V2 + "bin_dir = 5\nbin_dirs = [1, {}]", ("/opt/cni/bin",)),
        ("plugins = 3", ("/opt/cni/bin",)),
        ("", ("/opt/cni/bin",)),
    ],
)
def test_containerd(host: Path, text: str, folders: tuple[str, ...]) -> None:
    put(host, "etc/containerd/config.toml", text)
    assert only(host).folders == folders


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("etc/containerd/config.toml", V2 + 'conf_dir = "{}"'),
        ("etc/containerd/config.toml", V3 + 'conf_dir = "{}"'),
        ("etc/crio/crio.conf", '[crio.network]\nnetwork_dir = "{}"'),
    ],
)
def test_networks_that_are_read_elsewhere_are_noted(host: Path, path: str, text: str) -> None:
    put(host, path, text.format("/etc/cni/net.d/"))
    assert runtimes.found(host, BIN_DIR)[1] == []
    put(host, path, text.format("/etc/my nets"))
    (note,) = runtimes.found(host, BIN_DIR)[1]
    assert note.startswith(f"the runtime of /{path} reads networks from '/etc/my nets', not from /etc/cni/net.d")


def test_a_pipe_in_place_of_a_file_is_a_note(host: Path) -> None:
    put(host, "etc/containerd/config.toml", "").unlink()
    os.mkfifo(host / "etc/containerd/config.toml")
    assert runtimes.found(host, BIN_DIR)[1] == ["cannot read /etc/containerd/config.toml: not an ordinary file"]


def test_containerd_with_imports_takes_the_last_word(host: Path) -> None:
    imports = 'imports = ["/etc/containerd/conf.d/*.toml", "more.toml", "/nowhere/*", ""]\n'
    put(host, "etc/containerd/config.toml", imports + V2 + 'bin_dir = "/first"')
    put(host, "etc/containerd/conf.d/10.toml", V2 + 'bin_dir = "/second"')
    assert only(host) == Runtime("containerd", ("/second",), "/etc/containerd/conf.d/10.toml")
    put(host, "etc/containerd/more.toml", V3 + 'bin_dir = "/third"')
    assert only(host).folders == ("/third",)


@pytest.mark.parametrize("name", ["cri", "io.containerd.grpc.v1.cri", "io.containerd.cri.v1.runtime"])
def test_docker_s_containerd_starts_no_pods(host: Path, name: str) -> None:
    put(host, "etc/containerd/config.toml", f'disabled_plugins = ["{name}"]')
    program(host, "dockerd", "Docker version 26.1.5")
    found, notes = runtimes.found(host, BIN_DIR)
    assert [(runtime.name, runtime.folders) for runtime in found] == [("containerd", ()), ("Docker", ())]
    assert notes == []
    assert "disables its CRI plugin" in sentence(host, found[0])
    assert "portfwd-docker-proxy" in sentence(host, found[1])


def test_containerd_is_asked_for_what_is_built_in(host: Path) -> None:
    script = (
        "#!/bin/sh\n"
        f'[ "$*" = --version ] && echo "{CONTAINERD}/v2 v2.0.5 abcdef"\n'
        '[ "$*" = "config default" ] && printf \'%s\\n\' "' + V3.replace('"', '\\"') + "bin_dirs = ['/built/in']\"\n"
        "exit 0\n"
    )
    program(host, "containerd", script=script)
    assert only(host) == Runtime("containerd 2.0.5", ("/built/in",), "built in")


@pytest.mark.parametrize(
    ("version", "folder"),
    [
        (f"{CONTAINERD} 1.7.24~ds1 1.7.24~ds1-6+b4", "/usr/lib/cni"),
        ("containerd containerd.io 1.7.27 05044ec0", "/opt/cni/bin"),
    ],
)
def test_debian_s_containerd_has_another_default(host: Path, version: str, folder: str) -> None:
    program(host, "containerd", version)
    assert only(host).folders == (folder,)


def test_the_containerd_of_k3s(host: Path) -> None:
    path = "var/lib/rancher/k3s/agent/etc/containerd/config.toml"
    put(host, path, V2 + 'bin_dir = "/var/lib/rancher/k3s/data/cni"')
    assert only(host) == Runtime("k3s", ("/var/lib/rancher/k3s/data/cni",), f"/{path}")


def test_the_real_programs(host: Path) -> None:
    if not os.environ.get("CNI_PY_DEBS"):
        (pytest.fail if os.environ.get("CI") else pytest.skip)("CNI_PY_DEBS names no unpacked packages")
    debs = Path(os.environ["CNI_PY_DEBS"])
    for path in ("usr/bin", "etc/containerd", "usr/share/containers"):
        (host / path).parent.mkdir(parents=True, exist_ok=True)
        (host / path).symlink_to(debs / path)
    found, notes = runtimes.found(host, BIN_DIR)
    assert not [note for note in notes if "containerd" in note]
    (containerd,) = (runtime for runtime in found if runtime.name.startswith("containerd "))
    assert containerd.folders == ("/usr/lib/cni",)
    default = subprocess.run([debs / "usr/bin/containerd", "config", "default"], capture_output=True, check=True)
    built_in = runtimes.containerd_default(runtimes.Host(host), debs / "usr/bin/containerd", "")
    assert all(folder in default.stdout.decode() for folder in built_in)
    assert any(runtime.name.startswith("podman") for runtime in found)


def test_podman_in_the_order_of_its_files(host: Path) -> None:
    program(host, "podman", "podman version 4.3.1")
    assert only(host) == Runtime("podman 4.3.1", runtimes.PODMAN, "built in")
    put(host, "usr/share/containers/containers.conf", '[network]\ncni_plugin_dirs = ["/a"]')
    assert only(host).folders == ("/a",)
    put(host, "etc/containers/containers.conf", '[network]\ncni_plugin_dirs = ["/b", {append = true}]')
    assert only(host).folders == ("/a", "/b")
    put(host, "etc/containers/containers.conf.d/50.conf", '[network]\ncni_plugin_dirs = ["/c"]')
    put(host, "etc/containers/containers.conf.d/60.txt", '[network]\ncni_plugin_dirs = ["/d"]')
    assert only(host) == Runtime("podman 4.3.1", ("/c",), "/etc/containers/containers.conf.d/50.conf")


@pytest.mark.parametrize(
    ("version", "conf", "kept", "netavark", "uses_cni"),
    [
        ("5.4.2", "", "", False, False),
        ("5.4.2", 'network_backend = "cni"', "", False, False),
        ("4.3.1", "", "", False, True),
        ("4.3.1", "", "", True, False),
        ("4.3.1", "", "cni", True, True),
        ("4.3.1", "", "netavark", True, False),
        ("4.3.1", 'network_backend = "cni"', "netavark", True, True),
        ("4.3.1", 'network_backend = "netavark"', "cni", True, False),
        ("3.0.1", "", "", True, True),
    ],
)
def test_podman_may_use_netavark(
    host: Path, version: str, conf: str, kept: str, netavark: bool, uses_cni: bool
) -> None:
    program(host, "podman", f"podman version {version}")
    put(host, "etc/containers/containers.conf", f"[network]\n{conf}\n")
    if kept:
        put(host, "var/lib/containers/storage/defaultNetworkBackend", f"{kept}\n")
    if netavark:
        put(host, "usr/lib/podman/netavark", "")
    assert bool(only(host).folders) == uses_cni
    assert uses_cni or "netavark" in sentence(host)


def test_a_configuration_of_podman_s_family_alone_is_no_runtime(host: Path) -> None:
    put(host, "usr/share/containers/containers.conf", "[network]\n[engine]\n")  # buildah and skopeo have it too
    assert runtimes.found(host, BIN_DIR) == ([], [])


def test_crio(host: Path) -> None:
    program(host, "crio", "crio version 1.28.4")
    assert only(host) == Runtime("CRI-O 1.28.4", ("/opt/cni/bin",), "built in")
    put(host, "etc/crio/crio.conf", '[crio.network]\nplugin_dirs = ["/opt/cni/bin/", "/usr/libexec/cni"]')
    assert only(host).folders == ("/opt/cni/bin/", "/usr/libexec/cni")
    put(host, "etc/crio/crio.conf.d/10-x.conf", '[crio.network]\nplugin_dir = "/usr/lib/cni"')
    assert only(host) == Runtime("CRI-O 1.28.4", ("/usr/lib/cni",), "/etc/crio/crio.conf.d/10-x.conf")


def test_nerdctl_takes_the_first_folder_that_is_there(host: Path) -> None:
    program(host, "nerdctl", "nerdctl version 1.7.6")
    plugins(host, "usr/local/libexec/cni")
    assert only(host, host / "somewhere").folders == ("/usr/local/libexec/cni",)
    assert only(host, host / "opt/cni/bin").folders == ("/opt/cni/bin",)  # it will be there
    put(host, "etc/nerdctl/nerdctl.toml", 'cni_path = "/usr/lib/cni"')
    assert only(host).folders == ("/usr/lib/cni",)


@pytest.mark.parametrize("text", [b"[network\nx", b"\xff\xfe", b'a = "\n', b"a = 1\na = 2\n", b"\0"])
@pytest.mark.parametrize(
    "path",
    ["etc/containerd/config.toml", "etc/containers/containers.conf", "etc/crio/crio.conf", "etc/nerdctl/nerdctl.toml"],
)
def test_a_broken_file_is_a_note(cni_py_command: Command, host: Path, path: str, text: bytes, bin_dir: Path,
    capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    put(host, path, "").write_bytes(text)
    assert cni_py_command("install") == 0
    assert f"skipped /{path}, which is not valid TOML" in capsys.readouterr().err
    assert (bin_dir / "bridge").exists()


@pytest.mark.parametrize(
    "script", ["#!/nowhere/sh\n", "#!/bin/sh\nexit 3\n", "#!/bin/sh\nprintf '\\377'\n", "no program"]
)
@pytest.mark.parametrize("name", ["containerd", "podman", "crio", "nerdctl"])
def test_a_program_that_does_not_answer_stops_nothing(host: Path, name: str, script: str) -> None:
    program(host, name, script=script)
    assert only(host).name.lower().replace("-", "") == name


def test_a_program_that_hangs_is_given_up(host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtimes, "ANSWER_S", 0.2)
    program(host, "crio", script="#!/bin/sh\nexec sleep 60\n")
    found, notes = runtimes.found(host, BIN_DIR)
    assert [runtime.name for runtime in found] == ["CRI-O"]
    assert "failed: " in notes[0]


def test_what_it_says_of_whose_plugins_run(cni_py_command: Command, host: Path) -> None:
    put(host, "etc/containerd/config.toml", V2 + 'bin_dir = "/usr/lib/cni"')
    assert "it will not find ours; `cni-py install --bin-dir /usr/lib/cni` installs ours there" in sentence(host)
    plugins(host, "usr/lib/cni")
    told = sentence(host)
    assert "looks for plugins in /usr/lib/cni (/etc/containerd/config.toml)" in told
    assert "will run other plugins: bandwidth, bridge," in told
    assert "in /usr/lib/cni; `cni-py install --bin-dir /usr/lib/cni` installs ours there" in told
    assert cni_py_command("install", "--bin-dir", str(host / "usr/lib/cni")) == 0
    assert sentence(host).endswith("will run ours")  # also when it is asked for another folder
    put(host, "etc/containerd/config.toml", V2 + 'bin_dir = "/opt/cni/bin/"')
    assert sentence(host).endswith("will run ours")


def test_the_first_folder_that_has_a_plugin_decides(host: Path) -> None:
    program(host, "podman", "podman version 4.3.1")
    assert sentence(host).endswith("will run ours")  # the last of its folders is
    put(host, "usr/lib/cni/bridge", "somebody's")
    assert "will run other plugins: bridge in /usr/lib/cni; `cni-py install --bin-dir /usr/lib/cni`" in sentence(host)


def test_install_says_it(cni_py_command: Command, host: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cni_py_command("install", "--dry-run")
    assert "no container runtime found" in capsys.readouterr().out
    program(host, "podman", "podman version 5.4.2")
    cni_py_command("install", "--dry-run")
    assert "podman 5.4.2 will not run these plugins: it knows only netavark" in capsys.readouterr().out

"""Facts, collected below a folder that stands for the root of a host, and damaged one by one."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from cni_py import files
from cni_py.attachment.naming import Attachment
from cni_py.commands import images
from cni_py.commands.launchers import launcher
from cni_py.doctor import checks, everything, facts, installed, machine
from cni_py.doctor.values import Facts, Installation, Runtime
from cni_py.run import MODULES, NATIVE_END
from tests.lacking import need_root
from tests.unit.doctor.test_checks import CONFLIST, HOST

RELEASE = os.uname().release
KEY = Attachment("net", "c1", "eth0")


class Root:
    """A host's files, in order."""

    def __init__(self, root: Path, image: Path) -> None:
        self.root = root
        self.installation = Installation(
            launchers={plugin: launcher(plugin) for plugin in MODULES},
            image=image,
            package=images.PACKAGE,
            runtimes=[Runtime("containerd", ("/opt/cni/bin",), "built in")],
        )
        for plugin, text in self.installation.launchers.items():
            self.put(f"opt/cni/bin/{plugin}", text, 0o755)
        self.put("etc/cni/net.d/50.conflist", json.dumps(CONFLIST).encode())
        self.put("etc/systemd/system/portfwd.service", b"[Service]\nExecStart=-/usr/local/bin/portfwd serve\n")
        self.put("usr/local/bin/portfwd", b"", 0o755)
        self.put("etc/systemd/system/multi-user.target.wants/portfwd.service", b"")
        self.put(
            "usr/lib/systemd/system/nftables.service", b"[Service]\nExecStart=/usr/sbin/nft -f /etc/nftables.conf\n"
        )
        self.put("usr/sbin/nft", b"", 0o755)
        self.put("etc/systemd/system/sysinit.target.wants/nftables.service", b"")
        self.put("etc/nftables.conf", b"#!/usr/sbin/nft -f\n# flush ruleset\ntable inet filter { }\n")
        self.put(
            f"boot/config-{RELEASE}", b"".join(b"CONFIG_%s=y\n" % one[0].encode() for one in machine.FEATURES.values())
        )
        self.put(f"lib/modules/{RELEASE}/modules.dep", b"kernel/net/bridge/br_netfilter.ko.xz: kernel/net/x.ko.xz\n")
        self.put("run/cni-py/attachments/x", b"")
        self.record(b'{"schema": 1, "network": "net", "containerID": "c1", "ifname": "eth0", "ops": []}')

    def put(self, path: str, text: bytes, mode: int = 0o644) -> Path:
        place = self.root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(text)
        place.chmod(mode)
        return place

    def record(self, text: bytes, name: str = "bridge.json", hexed: str = KEY.hex) -> None:
        self.put(f"run/cni-py/attachments/{hexed}/{name}", text)

    def look(self) -> Facts:
        return facts.collect(self.installation, self.root)

    def found(self) -> list[tuple[str, str]]:
        report = checks.diagnose(everything.CHECKS, HOST, self.look())
        return [(one.level, one.code) for one in report.findings]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Root:
    monkeypatch.setattr(files, "run_dir", lambda: str(tmp_path / "host/run/cni-py"))
    image = tmp_path / "image"
    image.touch()
    made = Root(tmp_path / "host", image)
    (made.root / "run/cni-py").chmod(0o700)
    return made


def edit(path: str, old: str, new: str) -> Callable[[Root], None]:
    def damage(root: Root) -> None:
        place = root.root / path
        text = place.read_text()
        assert old in text
        place.write_text(text.replace(old, new))

    return damage


def put(path: str, text: bytes, mode: int = 0o644) -> Callable[[Root], object]:
    return lambda root: root.put(path, text, mode)


def mode(path: str, bits: int) -> Callable[[Root], None]:
    return lambda root: (root.root / path).chmod(bits)


def gone(path: str) -> Callable[[Root], None]:
    return lambda root: (root.root / path).unlink()


def other_kernel(root: Root) -> None:
    (root.root / f"lib/modules/{RELEASE}").rename(root.root / "lib/modules/0.0.1")


def replaced(text: bytes) -> Callable[[Root], None]:
    def damage(root: Root) -> None:
        root.put("opt/cni/bin/.cni-py/manifest.json", json.dumps({"files": {"/opt/cni/bin/ptp": "0"}}).encode())
        root.put("opt/cni/bin/ptp", text, 0o755)

    return damage


def native(root: Root) -> None:
    """A compiled launcher, whose text at its end is that of an interpreter that is gone."""
    text = b"#!/nowhere -IS\n" + root.installation.launchers["ptp"].partition(b"\n")[2]
    root.put("opt/cni/bin/ptp", b"\x7fELF" + b"\0" * 20000 + NATIVE_END + text, 0o755)


BIN = "opt/cni/bin/ptp"
BUILT = f"boot/config-{RELEASE}"
DAMAGES: dict[str, tuple[Callable[[Root], object], list[tuple[str, str]]]] = {
    "nothing": (lambda root: None, []),
    "nf_tables": (edit(BUILT, "CONFIG_NF_TABLES=y", "# CONFIG_NF_TABLES is not set"), [("error", "kernel-lacks")]),
    "veth": (edit(BUILT, "CONFIG_VETH=y\n", ""), [("error", "kernel-lacks")]),
    "ifb": (edit(BUILT, "CONFIG_IFB=y\n", ""), [("note", "kernel-lacks")]),
    "a module that can be loaded": (edit(BUILT, "BRIDGE_NETFILTER=y", "BRIDGE_NETFILTER=m"), []),
    "modules": (other_kernel, [("error", "kernel-modules-gone")]),
    "flush": (edit("etc/nftables.conf", "# flush ruleset", "flush ruleset"), [("warning", "nft-flush")]),
    "flush;": (edit("etc/nftables.conf", "# flush ruleset", "\tflush  ruleset;"), [("warning", "nft-flush")]),
    "unit's program": (gone("usr/local/bin/portfwd"), [("error", "unit-program-missing")]),
    "unit not enabled": (
        gone("etc/systemd/system/multi-user.target.wants/portfwd.service"),
        [("note", "unit-not-enabled")],
    ),
    "interpreter": (
        edit(BIN, f"#!{launcher('ptp').split()[0].decode()[2:]}", "#!/nowhere/python3"),
        [("error", "executable-broken"), ("warning", "executable-old")],
    ),
    "native, interpreter": (native, [("error", "executable-broken"), ("warning", "executable-old")]),
    "package": (edit(BIN, "sys.path.append('", "sys.path.append('/nowhere"), [("error", "executable-broken")]),
    "old launcher": (edit(BIN, "import marshal", "# before\nimport marshal"), [("warning", "executable-old")]),
    "not executable": (mode(BIN, 0o644), [("error", "executable-broken")]),
    "others write": (mode(BIN, 0o777), [("error", "executable-open")]),
    "replaced": (replaced(b"\x7fELF go"), [("error", "executable-replaced"), ("note", "runtime-runs-others")]),
    "a manifest of others": (put("opt/cni/bin/.cni-py/manifest.json", b'{"files": {"/etc/passwd": "0"}}'), []),
    "bridge gone": (gone("opt/cni/bin/bridge"), [("error", "plugin-missing")]),
    "image": (lambda root: root.installation.image.unlink(), [("note", "image-old")]),
    "old image": (lambda root: os.utime(root.installation.image, (0, 0)), [("note", "image-old")]),
    "half": (lambda root: root.record(b"", "bridge.adding.tmp"), [("note", "record-half")]),
    "damaged": (lambda root: root.record(b"{"), [("error", "record-damaged")]),
    "of a later version": (
        lambda root: root.record(b'{"schema": 9, "network": "net", "containerID": "c1", "ifname": "eth0"}'),
        [("error", "record-damaged")],
    ),
    "of another attachment": (
        lambda root: root.record(b'{"schema": 1, "network": "net", "containerID": "c2", "ifname": "eth0"}'),
        [("error", "record-damaged")],
    ),
    "a folder for a record": (
        lambda root: (root.root / f"run/cni-py/attachments/{KEY.hex}/ptp.json").mkdir(),
        [("error", "record-damaged")],
    ),
    "lock": (put("run/cni-py/lock/attachment-0123456789abcdef-ptp", b""), [("note", "lock-left")]),
    "run folder": (mode("run/cni-py", 0o777), [("error", "run-folder-open")]),
    "no JSON": (put("etc/cni/net.d/60.conflist", b"{"), [("error", "config-unreadable")]),
    "not UTF-8": (put("etc/cni/net.d/60.conflist", b'{"name": "\xff"}'), [("error", "config-unreadable")]),
    "a FIFO": (lambda root: os.mkfifo(root.root / "etc/cni/net.d/60.conf"), [("error", "config-unreadable")]),
    "a link to nowhere": (
        lambda root: (root.root / "etc/cni/net.d/60.conf").symlink_to("/nowhere"),
        [("error", "config-unreadable")],
    ),
    "control characters": (
        put("etc/cni/net.d/60\x1b[31m\n.conflist", b'{"name": "\\u001b[31m", "plugins": [{"type": "bridge"}]}'),
        [("error", "config-unreadable")],
    ),
    "deep": (
        put(
            "etc/cni/net.d/60.conflist",
            b'{"name":"n","plugins":[{"type":"x","a":' + b"[" * 90000 + b"]" * 90000 + b"}]}",
        ),
        [("error", "config-unreadable")],
    ),
    "settings": (put("etc/cni-py/config.yaml", b"backend: nft\n"), [("error", "settings-refused")]),
    "settings that are YAML's": (
        put("etc/cni-py/config.yaml", b"a: &a [*a, !!python/object:os.system x]\n"),
        [("error", "settings-refused")],
    ),
    "open configuration": (mode("etc/cni/net.d/50.conflist", 0o666), [("error", "config-open")]),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damage_is_named_and_nothing_else_is(root: Root, name: str) -> None:
    need_root()  # others own the files, otherwise
    damage, expected = DAMAGES[name]
    damage(root)
    assert root.found() == expected


def test_a_lock_that_is_held_is_told_from_one_that_was_left(root: Root) -> None:
    import fcntl

    path = root.put("run/cni-py/lock/attachment-0123456789abcdef-ptp", b"")
    with path.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert installed.held_locks(files.run_dir()) == (path.name,)
        assert root.look().locked == (path.name,)
    assert installed.held_locks(files.run_dir()) == ()


def test_nothing_is_written(root: Root) -> None:
    def state() -> list[tuple[str, int, int]]:
        every = [root.root, *root.root.rglob("*")]
        return sorted((str(path), path.lstat().st_mtime_ns, path.lstat().st_mode) for path in every)

    before = state()
    root.found()
    assert state() == before


def test_features_by_the_lists_of_modules(tmp_path: Path) -> None:
    folder = tmp_path / "lib/modules" / RELEASE
    folder.mkdir(parents=True)
    (folder / "modules.dep").write_text("kernel/drivers/net/macvlan.ko.zst: kernel/a.ko\nkernel/x-y.ko:\n")
    (folder / "modules.builtin").write_text("kernel/drivers/net/veth.ko\n")
    assert machine.modules_in(folder) == {"macvlan": False, "x_y": False, "veth": True}
    found = {one.name: one.state for one in machine.features(tmp_path)[0]}
    assert (found["veth"], found["macvlan"]) == ("yes", "loadable")


def test_features_by_a_packed_configuration(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    with gzip.open(tmp_path / "proc/config.gz", "wt") as file:
        file.write("CONFIG_NF_TABLES=y\n# CONFIG_VETH is not set\nCONFIG_IFB=m\n")
    found = {one.name: one.state for one in machine.features(tmp_path)[0]}
    assert (found["nf_tables"], found["veth"], found["bridge"]) == ("yes", "no", "no")
    (tmp_path / "proc/config.gz").write_bytes(b"no gzip")
    assert machine.kernel_config(tmp_path) == {}


@pytest.mark.parametrize("home", ["/opt/a b", "/opt/it's", '/opt/"x"', "/opt/ü"])
def test_a_launcher_is_read_as_it_is_written(home: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text = launcher("bridge")
    first = text.partition(b"\n")[0]
    assert installed.interpreter_of(text) == first[2:].split(b" ")[0].decode()
    line = next(line for line in text.splitlines() if line.startswith(b"sys.path.append"))
    assert installed.home_of(text.replace(line, f"sys.path.append({home!r})".encode())) == home
    assert installed.home_of(b"sys.path.append('a' + x)\n") == ""
    assert installed.home_of(b"sys.path.append('" + b"(" * 9000 + b")\n") == ""


def test_the_interpreter_of_a_launcher_for_the_shell_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cni_py.commands.launchers.interpreter", lambda: "/opt/my python/bin/python3")
    assert installed.interpreter_of(launcher("bridge")) == "/opt/my python/bin/python3"

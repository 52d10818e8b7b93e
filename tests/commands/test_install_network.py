"""Which network `cni-py install` writes, and what it says of those that are there."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from lab import Lab

from cni_py.commands import default_network
from cni_py.commands.manifest import digest
from cni_py.protocol import conflist
from tests.commands.conftest import Command

Strings = pytest.CaptureFixture[str]
COMMAND = str(Path(sys.executable).with_name("cni-py"))
EXEC = str(Path(sys.executable).with_name("cni-py-exec"))


def network(name: str, *subnets: str, bridge: str = "br-other") -> str:
    ipam = {"type": "host-local", "ranges": [[{"subnet": subnet}] for subnet in subnets]}
    plugins = [{"type": "bridge", "bridge": bridge, "ipam": ipam}]
    return json.dumps({"cniVersion": "1.0.0", "name": name, "plugins": plugins})


def put(folder: Path, name: str, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)
    return folder / name


@pytest.mark.parametrize(
    ("others", "name"),
    [
        ([], "10-cni-py.conflist"),
        (["10-flannel.conflist"], "99-cni-py.conflist"),
        (["87-podman.conflist", "99-a.conf"], "99-cni-py.conflist"),
        (["99-mine.conf"], "zz-cni-py.conflist"),
        (["zzz.json"], "~~~-cni-py.conflist"),
    ],
)
def test_ours_is_written_beside_others_and_read_last(
    cni_py_command: Command, conf_dir: Path, others: list[str], name: str
) -> None:
    for other in others:
        put(conf_dir, other, network(Path(other).stem))
    assert cni_py_command("install", "--network") == 0
    assert [path.name for path in default_network.files(conf_dir)] == [*others, name]
    assert conflist.find(conf_dir, "cni-py").network.types == ["chain"]
    assert cni_py_command("uninstall") == 0
    assert [path.name for path in default_network.files(conf_dir)] == others


def test_where_there_is_one_install_says_how_to_get_ours(
    cni_py_command: Command, conf_dir: Path, capsys: Strings
) -> None:
    put(conf_dir, "87-podman.conflist", network("podman"))
    assert cni_py_command("install") == 0
    assert (
        "it already has 87-podman.conflist; `cni-py install --network` adds our network, cni-py"
        in capsys.readouterr().out
    )


def test_a_broken_file_of_somebody_else_is_named_and_stops_nothing(
    cni_py_command: Command, conf_dir: Path, bin_dir: Path, capsys: Strings
) -> None:
    broken = put(conf_dir, "05-broken.conflist", '{"name": "x",')
    assert cni_py_command("install", "--network") == 0
    assert str(broken) in capsys.readouterr().err
    assert (bin_dir / "bridge").exists()
    assert (conf_dir / "99-cni-py.conflist").exists()


def test_runtimes_speak_the_newest_version_that_they_know(cni_py_command: Command, conf_dir: Path) -> None:
    """libcni before 1.2 reads cniVersion alone; later ones and cni-py-exec the list, of which they take the highest."""
    cni_py_command("install")
    path = conf_dir / default_network.FILE
    written = json.loads(path.read_text())
    assert (written["cniVersion"], written["cniVersions"]) == ("1.0.0", ["1.0.0", "1.1.0"])
    assert conflist.read(path).cni_version == "1.1.0"


def test_one_of_the_version_before_is_brought_up_to_date_when_asked(
    cni_py_command: Command, conf_dir: Path, tmp_path: Path, capsys: Strings, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "other-name").symlink_to(conf_dir)
    with monkeypatch.context() as patch:
        patch.setattr(default_network, "text", lambda *, ipv6: network("cni-py", "10.87.0.0/16").encode())
        conf_dir.mkdir(parents=True)
        cni_py_command("install", "--conf-dir", str(tmp_path / "other-name"))
    path = conf_dir / default_network.FILE
    before = path.read_text()
    assert cni_py_command("install") == 0
    assert path.read_text() == before
    assert "`cni-py install --network` updates it to this version" in capsys.readouterr().out
    assert cni_py_command("install", "--network") == 0
    assert path.read_bytes() == default_network.text(ipv6=default_network.ipv6_is_on())
    path.write_text(network("cni-py", "10.1.0.0/16"))  # what the operator changed stays
    assert cni_py_command("install", "--network") == 0
    assert path.read_text() == network("cni-py", "10.1.0.0/16")
    assert "somebody else wrote or changed it" in capsys.readouterr().out


def test_one_that_somebody_wrote_under_our_name_stays(cni_py_command: Command, conf_dir: Path) -> None:
    mine = put(conf_dir, "20-mine.conflist", network("cni-py", "10.2.0.0/16"))
    assert cni_py_command("install", "--network") == 0
    assert [path.name for path in conf_dir.iterdir()] == [mine.name]
    assert mine.read_text() == network("cni-py", "10.2.0.0/16")


@pytest.mark.parametrize(
    ("subnet", "overlaps"),
    [
        ("10.87.3.0/24", True),
        ("10.0.0.0/8", True),
        ("10.87.0.0/16", True),
        ("fd00:87::/48", True),
        ("10.88.0.0/16", False),
        ("fd00:88::/64", False),
    ],
)
def test_a_subnet_of_another_network_is_named(
    cni_py_command: Command, conf_dir: Path, capsys: Strings, subnet: str, overlaps: bool
) -> None:
    path = put(conf_dir, "50-other.conflist", network("other", "192.0.2.0/24", subnet))
    assert cni_py_command("install", "--network", "--dry-run") == 0
    assert (f"of network other ({path})" in capsys.readouterr().err) == overlaps


def test_an_older_configuration_with_one_subnet_counts_too(
    cni_py_command: Command, conf_dir: Path, capsys: Strings
) -> None:
    ipam = {"type": "host-local", "subnet": "10.87.9.0/24"}
    put(conf_dir, "50-x.conf", json.dumps({"cniVersion": "0.3.1", "name": "x", "type": "bridge", "ipam": ipam}))
    put(conf_dir, "51-y.conf", json.dumps({"name": "y", "type": "bridge", "ipam": {"subnet": 7, "ranges": ["z", [1]]}}))
    assert cni_py_command("install", "--network", "--dry-run") == 0
    assert "10.87.0.0/16 of network cni-py overlaps with 10.87.9.0/24 of network x" in capsys.readouterr().err


# On a host


def on_host(lab: Lab, script: str) -> CompletedProcess[str]:
    return lab["host"].run(["sh", "-euc", script], timeout_s=60)


def install(lab: Lab, before: str = "", options: str = "") -> CompletedProcess[str]:
    done = on_host(lab, f"{before}\n{COMMAND} install --bin-dir /run/bin {options}")
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.parametrize(
    ("command", "taken", "who"),
    [
        ("ip address add 10.87.3.1/24 dev lan0", "10.87.3.0/24", "lan0, an interface of this host"),
        ("ip -6 address add fd00:87::5/64 dev lan0", "fd00:87::/64", "lan0, an interface of this host"),
        ("ip route add 10.0.0.0/8 via 198.51.100.2", "10.0.0.0/8", "lan0, an interface of this host"),
        ("ip route add 10.87.4.0/22 via 198.51.100.2 table 51820", "10.87.4.0/22", "lan0, an interface of this host"),
        ("ip route add unreachable 10.80.0.0/12", "10.80.0.0/12", "a route of this host"),
    ],
)
def test_a_subnet_that_the_host_has_is_named(lab: Lab, command: str, taken: str, who: str) -> None:
    done = install(lab, command)
    assert f"overlaps with {taken} of {who}: choose another subnet in /etc/cni/net.d/10-cni-py.conflist" in done.stderr


def test_default_routes_and_our_own_bridge_are_no_overlap(lab: Lab) -> None:
    routes = "ip route add 128.0.0.0/1 via 198.51.100.2; ip route add 0.0.0.0/1 via 198.51.100.2"
    assert "overlaps" not in install(lab, routes).stderr
    bridge = "ip link add cni-py0 type bridge; ip address add 10.87.0.1/16 dev cni-py0; ip link set cni-py0 up"
    assert "overlaps" not in install(lab, bridge).stderr


def test_the_network_serves_gc_and_status(lab: Lab) -> None:
    install(lab)
    add = f"{EXEC} ADD cni-py web --create-netns --bin-dir /run/bin"
    forget = "rm /var/lib/cni/results/cni-py-web-eth0"
    assert on_host(lab, f"{add}\n{forget}").returncode == 0
    done = on_host(lab, f"{EXEC} STATUS cni-py --bin-dir /run/bin; {EXEC} GC cni-py --bin-dir /run/bin")
    assert done.returncode == 0, done.stderr
    assert "nothing was done" not in done.stdout
    assert on_host(lab, "ls /run/cni-py/attachments; ip link show master cni-py0").stdout == ""


OFF = ("net.ipv6.conf.all.disable_ipv6=1", "net.ipv6.conf.default.disable_ipv6=1")


@pytest.mark.parametrize("setting", OFF)
def test_without_ipv6_the_network_has_none_and_works(lab: Lab, setting: str) -> None:
    done = install(lab, f"sysctl -qw {setting}")
    assert "without IPv6, which is disabled on this host" in done.stdout
    done = on_host(lab, f"{EXEC} ADD cni-py web --create-netns --bin-dir /run/bin --json")
    assert done.returncode == 0, done.stderr
    assert [entry["address"] for entry in json.loads(done.stdout)["ips"]] == ["10.87.0.2/16"]


def test_a_network_with_ipv6_is_named_where_that_was_switched_off_since(lab: Lab) -> None:
    install(lab)
    done = install(lab, f"sysctl -qw {OFF[0]}")
    assert "10-cni-py.conflist has an IPv6 range, but IPv6 is disabled" in done.stderr
    install(lab, options="--network")
    assert on_host(lab, f"{EXEC} ADD cni-py web --create-netns --bin-dir /run/bin").returncode == 0


def test_without_ipv6_in_the_kernel_there_is_no_range(lab: Lab) -> None:
    """ipv6.disable=1 leaves no /proc/sys/net/ipv6: something else lies there here."""
    install(lab, "mount -t tmpfs lab /proc/sys/net/ipv6 2>/dev/null || mount -t tmpfs lab /proc/sys/net")
    assert "fd00" not in on_host(lab, "cat /etc/cni/net.d/10-cni-py.conflist").stdout


def test_a_network_of_an_earlier_version_stays_a_list_until_it_is_asked_for(
    cni_py_command: Command, conf_dir: Path, bin_dir: Path
) -> None:
    assert cni_py_command("install") == 0
    path, listed = conf_dir / default_network.FILE, conf_dir.parent / "list"
    joined = path.read_text()
    (plugin,) = json.loads(joined)["plugins"]
    listed.write_text(json.dumps({**json.loads(joined), "plugins": plugin["plugins"]}))
    manifest = bin_dir / ".cni-py/manifest.json"
    before = json.loads(manifest.read_text())
    before["files"][str(path)] = digest(listed.read_bytes())
    manifest.write_text(json.dumps(before))
    listed.rename(path)
    assert cni_py_command("install") == 0
    assert conflist.read(path).types == ["bridge", "portmap", "firewall", "tuning"]
    assert cni_py_command("install", "--network") == 0
    assert path.read_text() == joined


def test_uninstall_names_the_networks_that_need_chain(
    cni_py_command: Command, conf_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = {"cniVersion": "1.0.0", "name": "mine", "plugins": [{"type": "chain", "plugins": [{"type": "bridge"}]}]}
    put(conf_dir, "20-mine.conflist", json.dumps(mine))
    put(conf_dir, "30-list.conflist", network("plain"))
    assert cni_py_command("install", "--network") == 0
    capsys.readouterr()
    assert cni_py_command("uninstall") == 0
    told = capsys.readouterr().err
    assert "network mine needs the plugin chain" in told
    assert f"`cni-py convert {conf_dir}/20-mine.conflist --to list --write`" in told
    assert "plain" not in told

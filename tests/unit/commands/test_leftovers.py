"""What `cni-py uninstall` lists and `--purge` removes."""

from __future__ import annotations

import json
import subprocess
from functools import partial
from pathlib import Path

import pytest

from cni_py import files
from cni_py.attachment.naming import Attachment
from cni_py.attachment.records import Record
from cni_py.commands import leftovers, overlaps
from cni_py.commands.leftovers import Left
from cni_py.protocol import cache, conflist
from cni_py.restore import restoration

TEXT = b'{"cniVersion": "1.0.0", "name": "cni-py", "plugins": [{"type": "bridge", "bridge": "cni-py0"}]}'
OURS = conflist.parse(TEXT, "a")


@pytest.fixture
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(files, "run_dir", lambda: str(tmp_path))
    return tmp_path


def test_records_tell_what_other_networks_have(run_dir: Path) -> None:
    assert restoration.recorded() == []
    for network, plugin in (("cni-py", "bridge"), ("mine", "bridge"), ("mine", "portmap")):
        record = Record(Attachment(network, "web", "eth0"), plugin)
        record.save()
        if plugin == "bridge":
            record.finish()
    (run_dir / "attachments" / "0123456789abcdef").mkdir()
    (run_dir / "attachments" / "0123456789abcdef" / "bridge.json").write_text("{")
    found = [(record.key.network, record.plugin, record.done) for record in restoration.recorded()]
    assert sorted(found) == [("cni-py", "bridge", True), ("mine", "bridge", True), ("mine", "portmap", False)]
    assert found[0] == ("mine", "portmap", False)  # an ADD that has not ended
    assert leftovers.foreign(OURS) == ["mine/web/eth0"]


def test_the_network_is_that_of_the_file_unless_it_is_another_one(tmp_path: Path) -> None:
    path = tmp_path / "10-cni-py.conflist"
    assert leftovers.network_of(path).types == ["chain"]  # there is no file
    for name, bridge in (("cni-py", "br7"), ("other", "cni-py0")):
        plugins = [{"type": "bridge", "bridge": "br7"}]
        path.write_text(json.dumps({"name": name, "plugins": plugins}))
        assert overlaps.bridges(leftovers.network_of(path)) == {bridge}


@pytest.mark.parametrize(("busy", "left"), [("", []), ("portfwd is running", ["portfwd", "portfwd.sock"])])
def test_the_files_of_a_running_portfwd_stay(tmp_path: Path, busy: str, left: list[str]) -> None:
    folder = tmp_path / "cni-py"
    (folder / "portfwd").mkdir(parents=True)
    (folder / "lock").mkdir()
    (folder / "portfwd.sock").touch()
    (folder / "lock" / "nft").touch()
    (folder / "link").symlink_to(tmp_path)  # what it leads to stays
    leftovers.remove_folder(folder, busy)
    assert tmp_path.exists()
    assert sorted(path.name for path in folder.iterdir()) == left if left else not folder.exists()


def test_purge_removes_what_it_may_and_goes_on_past_what_it_cannot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "file"
    path.touch()
    found = [
        Left("a", "rm a", path.unlink, "somebody needs it"),
        Left("b", "rm b", partial((tmp_path / "none").rmdir)),
        Left("net.x = 1", "sysctl -w net.x=0", partial(path.rename, tmp_path / "moved")),
    ]
    monkeypatch.setattr(leftovers, "everything", lambda _network, _off: found)
    monkeypatch.setattr(leftovers, "disconnect_all", lambda _network, _say: True)
    monkeypatch.setattr(leftovers, "NETWORKS_DIR", tmp_path / "networks")
    monkeypatch.setattr(cache, "RESULTS_DIR", tmp_path / "results")
    assert leftovers.purge(OURS, [], print, dry_run=True)
    assert path.exists()
    assert not leftovers.purge(OURS, [], print, dry_run=False)
    assert (tmp_path / "moved").exists()
    told = capsys.readouterr()
    lines = ["leave a: somebody needs it; `rm a` removes it", "remove b", "set net.x = 0, as it was before"]
    assert told.out.splitlines() == lines * 2
    assert told.err.startswith("cni-py uninstall: cannot remove b: ")


def run(command: str) -> None:
    subprocess.run(command, shell=True, check=True)


@pytest.mark.netns
def test_forwarding_and_bridges_that_others_need_are_kept() -> None:
    run("sysctl -qw net.ipv4.ip_forward=1; ip link add cni-py0 type bridge; ip link set cni-py0 up")
    key, own = "ipv4/ip_forward", {"cni-py0"}

    def kept(off: list[str], why: str = "") -> str:
        (found,) = [one for one in leftovers.forwarding(off, own, why) if "ipv4" in one.what]
        assert (found.what, found.command) == ("net.ipv4.ip_forward = 1", "sysctl -w net.ipv4.ip_forward=0")
        return found.kept

    assert kept([key]) == ""
    assert kept([]) == "it may have been on before the installation"
    assert kept([key], "other networks use it") == "other networks use it"
    run("ip link add wg7 type bridge")
    assert kept([key]) == ""  # it is down
    run("ip link set wg7 up")
    assert kept([key]) == "wg7 may need it"
    assert [one.kept for one in leftovers.bridges(OURS)] == [""]
    run("ip link add mine0 type veth peer name mine1; ip link set mine0 master cni-py0")
    (bridge,) = leftovers.bridges(OURS)
    assert (bridge.what, bridge.kept) == ("bridge cni-py0", "it has ports (mine0)")
    bridge.remove()
    assert list(leftovers.bridges(OURS)) == []

"""What a chain does after a failure, and how it tells: with plugins in sh that note each call."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from cni_py import files
from cni_py.attachment.naming import Attachment
from cni_py.commands import chain as chains
from cni_py.commands.chain import Chain, PluginFailed
from cni_py.errors import CniError, InvalidNetworkConfig
from cni_py.protocol import conflist
from cni_py.protocol.cache import Entry
from cni_py.protocol.gojson import Object

PLUGIN = """#!/bin/sh
echo "$CNI_COMMAND {name}" >> {log}
case $CNI_COMMAND in
{fails}) echo '{{"code": 123, "msg": "never"}}'; exit 1 ;;
VERSION) echo '{{"supportedVersions": [{versions}]}}' ;;
ADD) echo '{{"cniVersion": "1.0.0", "ips": []}}' ;;
esac
"""


class Bench:
    """A network whose plugins a, b and c note their calls."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.log = folder, folder / "log"
        for name in "abc":
            self.plugin(name)

    def plugin(self, name: str, fails: str = "never", versions: str = '"1.0.0", "1.1.0"') -> None:
        """Write a plugin that fails for the verbs of a pattern of sh."""
        path = self.folder / name
        path.write_text(PLUGIN.format(name=name, log=self.log, fails=fails, versions=versions))
        path.chmod(0o755)

    def chain(self, version: str = "1.0.0") -> Chain:
        plugins = [{"type": name} for name in "abc"]
        text = json.dumps({"cniVersion": version, "name": "lab", "plugins": plugins})
        network = conflist.parse(text.encode(), "a")
        return Chain(network, [str(self.folder)], lambda _: None, print, container_id="web", ifname="eth0")

    def calls(self) -> list[str]:
        """The calls since the last time."""
        found = self.log.read_text().splitlines() if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return found


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setattr(files, "run_dir", lambda: str(tmp_path / "run"))
    return Bench(tmp_path)


def test_del_stops_at_a_failure_and_gc_goes_on(bench: Bench) -> None:
    bench.plugin("b", fails="DEL|GC")
    chain = bench.chain()
    with pytest.raises(PluginFailed, match=r"^DEL failed in plugin b \(code 123\): never$"):
        chain.delete(None)
    assert bench.calls() == ["DEL c", "DEL b"]
    assert [failure.plugin for failure in chain.every("GC", chain.network.plugins)] == ["b"]
    assert bench.calls() == ["GC a", "GC b", "GC c"]


@pytest.mark.parametrize(
    ("fails", "says"),
    [
        ({"a": "ADD"}, ""),  # nothing was made
        ({"b": "ADD"}, "cni-py-exec: the failed ADD was undone with DEL\n"),
        (
            {"b": "ADD", "a": "DEL"},
            "cni-py-exec: the failed ADD could not be undone completely; run DEL again: "
            "DEL failed in plugin a (code 123): never\n",
        ),
    ],
)
def test_a_failed_add_is_undone_by_every_plugin_and_told_if_something_was_made(
    bench: Bench, capfd: pytest.CaptureFixture[str], fails: dict[str, str], says: str
) -> None:
    for name, verb in fails.items():
        bench.plugin(name, fails=verb)
    chain, added = bench.chain(), list[str]()
    with pytest.raises(PluginFailed) as failure:
        chain.add(added)
    assert added == ["a"][: "b" in fails]
    bench.calls()
    chain.undo(added, failure.value, verbose=False)
    assert bench.calls() == ["DEL c", "DEL b", "DEL a"]
    assert capfd.readouterr().err == says


def test_a_record_counts_as_something_made_although_no_plugin_succeeded(bench: Bench) -> None:
    chain, failure = bench.chain(), PluginFailed("ADD", "a", CniError("no"))
    assert not chain.has_left(failure)
    assert chain.has_left(KeyboardInterrupt())
    assert chain.has_left(PluginFailed("ADD", "a", CniError(f"{chains.KILLED} SIGKILL")))
    Path(Attachment("lab", "web", "eth0").folder).mkdir(parents=True)
    assert chain.has_left(failure)


def test_plugins_that_are_too_old_for_gc_are_left_out_and_the_others_get_the_newer_version(bench: Bench) -> None:
    bench.plugin("b", versions='"1.0.0"')
    chain, unable = bench.chain().at_least("1.1.0")
    assert (chain.network.cni_version, chain.network.types, unable) == ("1.1.0", ["a", "c"], ["b"])
    assert bench.calls() == ["VERSION a", "VERSION b", "VERSION c"]
    chain, unable = bench.chain("1.1.0").at_least("1.1.0")
    assert (chain.network.types, unable, bench.calls()) == (["a", "b", "c"], [], [])


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("0.3.1", None),  # DEL had no prevResult yet
        ("0.4.0", {"cniVersion": "0.4.0", "ips": [{"version": "4", "address": "192.0.2.7/24"}], "dns": {}}),
        ("1.0.0", {"cniVersion": "1.0.0", "ips": [{"address": "192.0.2.7/24"}]}),
    ],
)
def test_the_cached_result_has_the_form_of_the_networks_version(
    bench: Bench, version: str, expected: dict[str, object] | None
) -> None:
    result = Object([("cniVersion", "1.0.0"), ("ips", [Object([("address", "192.0.2.7/24")])])])
    assert bench.chain(version).prev_result_of(Entry("lab", "web", "eth0", result=result)) == expected
    assert bench.chain(version).prev_result_of(None) is None


@pytest.mark.parametrize(
    ("stdout", "status", "message"),
    [
        (b'{"code": 7, "msg": "bad", "details": "x"}', 1, "bad: x"),
        (b"oops\n", 7, "it ended with status 7 without an error object: it printed: oops"),
        (b"", -9, "it was killed by SIGKILL without an error object"),
        (b"[1]", -40, "it was killed by signal 40 without an error object: it printed: [1]"),
    ],
)
def test_a_failure_has_an_error_whatever_was_printed(stdout: bytes, status: int, message: str) -> None:
    assert str(chains.error_in(stdout, status)) == message


def test_details_that_do_not_fit_the_line_get_their_own() -> None:
    said: Callable[[str], str] = lambda details: str(PluginFailed("ADD", "a", CniError("no", details, 7), " (f)"))  # noqa: E731
    assert said("short") == "ADD failed in plugin a (code 7): no (f): short"
    assert said("two\nlines") == "ADD failed in plugin a (code 7): no (f)\n  details: two\nlines"
    assert said("x" * 200).startswith("ADD failed in plugin a (code 7): no (f)\n  details: x")


def test_the_file_is_named_for_errors_of_the_configuration_only(tmp_path: Path) -> None:
    path = tmp_path / "n.conflist"
    path.write_text('{"name": "n",\n "plugins": [{"type": "bridge",\n "mtu": 7}]}')
    network = conflist.read(path)
    assert chains.place_in(network, InvalidNetworkConfig("mtu 7 is too small")) == f" ({path}, line 3)"
    assert chains.place_in(network, InvalidNetworkConfig("something else")) == f" ({path})"
    assert chains.place_in(network, InvalidNetworkConfig(f"{path} is odd")) == ""
    assert chains.place_in(network, CniError("mtu cannot be set")) == ""

"""What cni-py-exec says to somebody who has made a mistake: one sentence, with the place and what to do."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.commands.hand import HOME, NETWORK, Hand, links, names, script

BRIDGE: dict[str, Any] = NETWORK["plugins"][0]
CONFLIST = "/etc/cni/net.d/60-bad.conflist"
pytestmark = pytest.mark.ours_alone


def bad(hand: Hand, *plugins: dict[str, object], **keys: object) -> None:
    """A network with a mistake in it, a key on each line."""
    network = {**hand.network, "name": "bad", "plugins": [*plugins], **keys}
    hand.write(CONFLIST, json.dumps(network, indent=1))


def kernel_of(hand: Hand) -> dict[str, Any]:
    """What the host has besides files, of which lock folders may stay."""
    return {part: seen for part, seen in hand.lab.snapshot("host").items() if part != "files"}


def without(ipam: dict[str, object]) -> dict[str, object]:
    return {**BRIDGE, "ipam": ipam}


ERRORS: dict[str, tuple[list[dict[str, object]], int, str]] = {
    "a text for a switch": (
        [{**BRIDGE, "isGateway": "yes"}],
        6,
        'isGateway must be true or false, not "yes" (/etc/cni/net.d/60-bad.conflist, line 8)',
    ),
    "a list of ranges": (
        [without({"type": "host-local", "ranges": [{"subnet": "192.0.2.0/24"}]})],
        6,
        'ranges must be a list of lists: [[{"subnet": ...}]], not [{...}] (/etc/cni/net.d/60-bad.conflist, line ',
    ),
    "no ranges": ([without({"type": "host-local"})], 7, "no IP ranges specified: ipam needs"),
    "a gateway that is none": (
        [without({"type": "host-local", "subnet": "192.0.2.0/24", "gateway": "x"})],
        7,
        "gateway: invalid IP address: x",
    ),
    "a name that is too long": (
        [{**BRIDGE, "bridge": "a-very-long-bridge-name"}],
        7,
        'bridge: "a-very-long-bridge-name" cannot be the name of an interface (1 to 15 bytes',
    ),
    "servers that are no list": ([{**BRIDGE, "dns": {"nameservers": "192.0.2.53"}}], 6, "nameservers must be a list"),
    "a route that is none": (
        [without({"type": "host-local", "subnet": "192.0.2.0/24", "routes": [{"dst": "x"}]})],
        7,
        "routes: invalid CIDR address: x",
    ),
    "static, a bad address": (
        [without({"type": "static", "addresses": [{"address": "x"}]})],
        7,
        "CIDR notation, got: 'x'",
    ),
    "static, bad servers": ([without({"type": "static", "dns": {"search": "x"}})], 6, "search must be a list"),
    "a mode that is none": (
        [{"type": "macvlan", "master": "lan0", "mode": "x"}],
        7,
        'unknown macvlan mode: "x", there are',
    ),
    "macvlan, a bad range": (
        [{"type": "macvlan", "master": "lan0", "ipam": {"type": "host-local", "subnet": "x"}}],
        7,
        "invalid CIDR address: x",
    ),
    "no such master": ([{"type": "macvlan", "master": "lan7"}], 7, "the host has no interface lan7 (master)"),
    "not chained": ([{"type": "portmap"}], 7, "portmap must be called as chained plugin"),
    "not chained either": (
        [{"type": "bandwidth", "ingressRate": 8, "ingressBurst": 8}],
        7,
        "must be called as chained plugin",
    ),
    "a version that is none": (
        [BRIDGE],
        1,
        'incompatible CNI versions (/etc/cni/net.d/60-bad.conflist): config is "1.0"',
    ),
    "a chain of nothing": ([{"type": "chain", "plugins": []}], 7, 'chain needs "plugins"'),
    "a chain with a type in capitals": (
        [{"type": "chain", "plugins": [{"Type": "portmap"}]}],
        7,
        "must be called as chained",
    ),
    "capabilities that are none": ([{**BRIDGE, "args": []}], 6, "args must be an object {...}, not []"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_a_mistake_in_the_configuration_is_one_line_and_changes_nothing(hand: Hand, name: str) -> None:
    plugins, code, says = ERRORS[name]
    bad(hand, *plugins, **({"cniVersion": "1.0"} if code == 1 else {}))
    before = kernel_of(hand)
    failed = hand("ADD", "bad", "c1")
    assert failed.returncode == 1
    errors = [line for line in failed.stderr.splitlines() if " note: " not in line]
    assert len(errors) == 1, failed.stderr
    assert f"ADD failed in plugin {plugins[0]['type']} (code {code}): " in errors[0]
    assert says in errors[0]
    assert failed.stdout == ""
    assert kernel_of(hand) == before
    assert hand.lab["host"].python(names, "/run/cni-py/attachments") == []
    assert links(hand.lab, "c1") == ["lo"]
    answer = json.loads(hand("ADD", "bad", "c1", "--json").stdout)
    assert answer["code"] == code
    planned = hand("ADD", "bad", "c1", "--plan")
    assert (planned.returncode, says in planned.stderr) == (1, True)


def test_verbose_shows_the_taking_back(hand: Hand) -> None:
    bad(hand, {**BRIDGE, "isGateway": "yes"})
    shown = hand("ADD", "bad", "c1", "--verbose")
    assert "the failed ADD " in shown.stderr


def test_json_that_is_broken_is_told_with_file_line_and_column(hand: Hand) -> None:
    hand.write(CONFLIST, '{"name": "bad",\n "plugins": [\n  {"type": "bridge"},\n ]\n}')
    failed = hand("ADD", "bad", "c1")
    assert failed.stderr.count("\n") == 1
    assert f'{CONFLIST}, line 3, column 21: there is a "," too many' in failed.stderr
    hand.write("/etc/cni/net.d/10-bad.conflist", "{")
    added = hand("ADD", "lab", "c1")  # in another file
    assert (
        added.returncode,
        "note: skipped a broken file, at which a runtime may stop: /etc/cni/net.d/10-bad.conflist, line 1"
        in added.stderr,
    ) == (
        0,
        True,
    )


def test_a_key_that_is_there_twice_is_noted(hand: Hand) -> None:
    text = json.dumps({**hand.network, "name": "bad", "plugins": [BRIDGE]}, indent=1)
    hand.write(CONFLIST, text.replace('"bridge": ', '"bridge": "other",\n"bridge": ', 1))
    noted = hand("ADD", "bad", "c1", "--plan").stderr
    assert f"note: the key bridge occurs more than once in one object: the last one counts ({CONFLIST}" in noted


def test_keys_that_nobody_knows_are_noted_by_add_and_plan_alone(hand: Hand) -> None:
    bad(hand, {**BRIDGE, "isGatway": True, "bridge": "cni7"})
    note = f"cni-py-exec: note: bridge does not know the key isGatway; did you mean isGateway? ({CONFLIST}, line "
    assert note in hand("ADD", "bad", "c1", "--plan").stderr
    assert note in hand("ADD", "bad", "c1").stderr
    assert "note" not in hand("CHECK", "bad", "c1").stderr
    assert "note" not in hand("DEL", "bad", "c1").stderr


@pytest.mark.parametrize(
    ("subnet", "held"),
    [
        ("198.51.0.0/16", "198.51.100.0/24 of lan0, an interface of this host"),
        ("192.0.2.128/25", "192.0.2.0/24 of network lab ("),
    ],
)
def test_a_subnet_that_somebody_has_is_named(hand: Hand, subnet: str, held: str) -> None:
    bad(hand, {**without({"type": "host-local", "ranges": [[{"subnet": subnet}]]}), "bridge": "cni7"})
    assert f"note: subnet {subnet} of network bad overlaps with " in hand("ADD", "bad", "c1", "--plan").stderr
    assert held in hand("ADD", "bad", "c1", "--plan").stderr


def test_a_network_does_not_overlap_with_itself(hand: Hand) -> None:
    for name in ("c1", "c2"):
        added = hand("ADD", "lab", name)
        assert (added.returncode, added.stderr) == (0, "")
    hand.define("pair", plugins=[{"type": "ptp", "ipam": {"type": "host-local", "subnet": "203.0.113.0/24"}}])
    for name in ("c1", "c2"):
        added = hand("ADD", "pair", name, "--ifname", "eth1")
        assert (added.returncode, added.stderr) == (0, "")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--ip", "10.87.0.300"], "--ip 10.87.0.300: not an IP address"),
        (["--mac", "01:00:00:00:00:01"], "--mac 01:00:00:00:00:01: a multicast address"),
        (["--mac", "00:00:00:00:00:00"], "an interface cannot have the zero address"),
        (["--mac", "x"], "--mac x: not a MAC address"),
        (["-p", "80x:80"], '-p 80x:80: "80x" is not a port or range'),
        (["--plann"], "unknown option --plann; did you mean --plan?"),
        (["--args", "TOKEN=secret=x"], "--args: the pair with key TOKEN is not KEY=VALUE"),
    ],
)
def test_an_option_that_is_wrong_is_named(hand: Hand, words: list[str], says: str) -> None:
    done = hand("ADD", "lab", "c1", *words)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert says in done.stderr
    assert "secret" not in done.stderr


def test_an_address_beside_the_ranges_lists_them(hand: Hand) -> None:
    done = hand("ADD", "lab", "c1", "--ip", "10.99.0.1")
    assert "10.99.0.1 (not in the ranges there are: 192.0.2.1-192.0.2.254, 2001:db8:42::1-" in done.stderr


def test_secrets_in_cni_args_stay_secret(hand: Hand) -> None:
    done = hand("ADD", "lab", "c1", "--args", "K8S_POD_TOKEN=secret")
    assert "ADD failed in plugin bridge (code 4): CNI_ARGS: unknown args [K8S_POD_TOKEN]" in done.stderr
    assert "secret" not in done.stderr + done.stdout


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("#!/path/to/python3\n", "its interpreter /path/to/python3 is not there"),
        ("no such thing\n", 'it is no program of this machine, nor a script that begins with "#!"'),
        ("#!/bin/sh\nexit 1\n", "it ended with status 1 without an error object"),
        ("#!/bin/sh\nkill -9 $$\n", "it was killed by SIGKILL"),
        ("#!/bin/sh\necho hello\n", "its output is not JSON: stdout is for the result only"),
        ("#!/bin/sh\n", "it printed nothing instead of a result"),
    ],
)
def test_a_plugin_that_does_not_work_is_told_in_words(hand: Hand, tmp_path: Path, body: str, says: str) -> None:
    script(tmp_path / "odd", "")
    (tmp_path / "odd").write_text(body)
    bad(hand, {"type": "odd"})
    failed = hand("ADD", "bad", "c1", "--bin-dir", str(tmp_path))
    assert failed.returncode == 1
    assert (
        f"ADD failed in plugin odd: {'cannot run ' if 'is' in says[:15] and 'output' not in says else ''}"
        in failed.stderr
    )
    assert says in failed.stderr
    assert "(code 0)" not in failed.stderr


def test_del_of_what_never_was_says_so(hand: Hand) -> None:
    assert hand.well("DEL", "lab", "nosuch") == "nosuch was not connected to lab (eth0)\n"


def test_a_host_without_ipv6_is_told_which_range_to_take_out(hand: Hand) -> None:
    hand.lab["host"].run(["sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1"], check=True)
    hand.lab["host"].run(["sysctl", "-qw", "net.ipv6.conf.default.disable_ipv6=1"], check=True)
    failed = hand("ADD", "lab", "c1")
    assert failed.returncode == 1
    assert "(code 7): cannot give cni0 the address 2001:db8:42::1/64: IPv6 is disabled on this host" in failed.stderr
    assert "/etc/cni/net.d/50-lab.conflist" in failed.stderr
    assert "out of ranges in the network's configuration, or enable IPv6" in failed.stderr


def test_a_read_only_sysctl_is_named(hand: Hand) -> None:
    bad(hand, BRIDGE, {"type": "portmap", "capabilities": {"portMappings": True}})
    words = f"mount -o bind,ro /proc/sys /proc/sys && {sys.executable} -m cni_py.commands.exec ADD bad c1 -p 8080:80"
    environ = {"PYTHONPATH": str(HOME), "CNI_PATH": str(hand.bin_dir)}
    failed = hand.lab["host"].run(["unshare", "-m", "sh", "-c", words], env=environ)
    assert failed.returncode == 1
    assert "(code 5): " in failed.stderr
    assert "/proc/sys/net/ipv4/" in failed.stderr
    assert "run it privileged" in failed.stderr


@pytest.mark.parametrize("lacking", ["net_admin", "sys_admin"])
def test_root_without_a_capability_is_told_first(hand: Hand, lacking: str) -> None:
    limits = ["setpriv", "--bounding-set", f"-{lacking}", "--inh-caps", f"-{lacking}"]
    environ = {"PYTHONPATH": str(HOME), "CNI_PATH": str(hand.bin_dir)}
    done = hand.lab["host"].run(
        [*limits, sys.executable, "-m", "cni_py.commands.exec", "ADD", "lab", "c1"], env=environ
    )
    assert (done.returncode, done.stderr.count("\n")) == (3, 1)
    assert f"this needs CAP_{lacking.upper()}, which root does not have here" in done.stderr


def test_check_names_the_command_that_mends_it(hand: Hand) -> None:
    hand.well("ADD", "lab", "c1", "-p", "8080:80")
    hand.lab["host"].run(["nft", "flush", "ruleset"], check=True)
    wrong = hand("CHECK", "lab", "c1")
    assert (wrong.returncode, "(`cni-py restore` puts it back)" in wrong.stderr) == (1, True)
    restore = [sys.executable, "-m", "cni_py.commands.main", "restore"]
    hand.lab["host"].run(restore, env={"PYTHONPATH": str(HOME)}, check=True)
    hand.well("CHECK", "lab", "c1")
    hand.lab["c1"].run(["ip", "address", "del", "192.0.2.2/24", "dev", "eth0"], check=True)
    assert "restore" not in hand("CHECK", "lab", "c1").stderr  # which would not help


def test_gc_and_status_of_an_older_network_do_their_work(hand: Hand) -> None:
    hand.define("old", cniVersion="1.0.0")
    hand.well("ADD", "old", "c1")
    hand.well("ADD", "old", "c2")
    hand.lab["host"].run(["rm", "/var/lib/cni/results/old-c2-eth0"], check=True)
    hand.well("STATUS", "old")
    hand.well("GC", "old")
    hand.well("CHECK", "old", "c1")
    assert len([name for name in links(hand.lab, "host") if name.startswith("veth")]) == 1
    taken = hand.lab["host"].python(names, "/var/lib/cni/networks/old")
    assert [name for name in taken if name.startswith("192.")] == ["192.0.2.2"]


def test_gc_names_who_cannot_and_the_others_do_theirs(hand: Hand, tmp_path: Path) -> None:
    script(tmp_path / "odd", """echo '{"cniVersion": "1.0.0", "supportedVersions": ["1.0.0"]}'""")
    hand.define("old", cniVersion="1.0.0", plugins=[BRIDGE, {"type": "odd"}])
    done = hand("GC", "old", "--bin-dir", f"{tmp_path}:{hand.bin_dir}")
    assert done.returncode == 1
    assert "GC needs cniVersion 1.1.0, not supported by odd of network old (cniVersion 1.0.0)" in done.stderr
    assert "GC bridge" in done.stdout


@pytest.mark.parametrize("flags", ["--plan", "--json --plan", ""])
def test_a_reader_that_had_enough_is_no_error(hand: Hand, flags: str) -> None:
    words = f"{sys.executable} -m cni_py.commands.exec ADD lab c1 {flags} | true"
    environ = {"PYTHONPATH": str(HOME), "CNI_PATH": str(hand.bin_dir)}
    done = hand.lab["host"].run(["sh", "-c", words], env=environ)
    assert done.stderr == ""
    assert hand.cache() == ([] if flags else ["lab-c1-eth0"])


def test_a_plan_speaks_of_the_bridge_as_it_is(hand: Hand) -> None:
    plan: Callable[[], str] = lambda: hand.well("ADD", "lab", "c2", "-p", "8080:80", "--plan")  # noqa: E731  said twice
    first = plan()
    assert "  host: create bridge cni0 with MAC 02:" in first
    hand.well("ADD", "lab", "c1")
    assert "  host: use bridge cni0, which is there" in plan()
    for odd in ("mtu 0", "True", "False", "4 or 6", "exists and is up"):
        assert odd not in first

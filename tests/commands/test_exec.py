"""cni-py-exec on a lab's host: the chain, the cache, what goes wrong, and that the plan is what an ADD does.

What is not about our own plugins runs with the Go plugins too.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import snapshot

from cni_py.run import MODULES
from tests.commands.hand import HOME, NETWORK, Hand, links, names, read, script

HERE = Path(__file__).parent
START = "from cni_py.run import main"
OPS = "/run/cni-test-ops"
PRINTED = "its output is not JSON: stdout is for the result only, messages belong on stderr"


def test_add_connects_and_del_needs_no_more_than_the_names(hand: Hand) -> None:
    text = hand.well("add", "lab", "c1", "-p", "8080:80")
    assert [line.split()[:2] for line in text.splitlines()[:3]] == [
        ["ADD", "bridge"],
        ["ADD", "portmap"],
        ["ADD", "loopback"],
    ]
    assert "address   192.0.2.2/24, gateway 192.0.2.1" in text
    assert "address   2001:db8:42::2/64, gateway 2001:db8:42::1" in text
    assert (
        "8080/tcp leads to 80; answers at 198.51.100.1:8080, [2001:db8:1::1]:8080, 127.0.0.1:8080 on this host" in text
    )
    assert hand.cache() == ["lab-c1-eth0"]
    hand.lab.serve("c1", 80)
    for address in ("198.51.100.1", "2001:db8:1::1"):
        assert hand.lab.fetch("client", address, 8080).name == "c1"
    assert hand.lab.fetch("host", "127.0.0.1", 8080).name == "c1"
    hand.check("lab", "c1")
    hand.check("lab", "--id", "c1")
    text = hand.well("Del", "lab", "c1")
    assert [line.split()[1] for line in text.splitlines()[:3]] == ["loopback", "portmap", "bridge"]
    assert hand.cache() == []
    assert links(hand.lab, "c1") == ["lo"]
    assert hand.well("DEL", "lab", "c1") == "c1 was not connected to lab (eth0)\n"  # harmless again


def test_del_uses_the_configuration_of_its_add(hand: Hand) -> None:
    hand.well("ADD", str(hand.conf), "c1", "-p", "8080:80")
    hand.write("/etc/cni/net.d/50-lab.conflist", json.dumps({**hand.network, "name": "other"}))
    hand.well("DEL", "lab", "c1")
    assert links(hand.lab, "host") == ["cni0", "lan0", "lo"]
    nothing = hand("DEL", "lab", "c1")
    assert nothing.returncode == 3
    assert 'no network "lab" in /etc/cni/net.d: there are: other' in nothing.stderr


def test_a_namespace_is_made_on_request_and_may_be_gone_at_del(hand: Hand) -> None:
    missing = hand("ADD", "lab", "web")
    assert (missing.returncode, "--create-netns creates it" in missing.stderr) == (3, True)
    assert "created namespace web" in hand.well("ADD", "lab", "web", "--create-netns", "-p", "8080:80")
    hand.check("lab", "/run/netns/web")
    assert "UP" in hand.lab["host"].run(["ip", "-n", "web", "-br", "link", "show", "lo"]).stdout
    ends = hand.lab["host"].python(snapshot.ends_in, "/run/netns/web")
    hand.lab["host"].run(["ip", "netns", "delete", "web"], check=True)
    hand.well("DEL", "lab", "web")
    if hand.whose == "go":  # which leave the link to the kernel
        hand.lab["host"].python(snapshot.await_end, ends)
    assert links(hand.lab, "host") == ["cni0", "lan0", "lo"]
    assert hand.lab["host"].python(names, "/run/cni-py/attachments") == []
    assert hand.lab["host"].python(names, "/var/lib/cni/networks/lab") == [
        "last_reserved_ip.0",
        "last_reserved_ip.1",
        "lock",
    ]


@pytest.mark.ours_alone
def test_a_made_namespace_is_unmade_when_its_add_fails(hand: Hand) -> None:
    hand.well("ADD", "lab", "c1", "-p", "8080:80")
    before = hand.lab["host"].python(names, "/run/netns")
    failed = hand("ADD", "lab", "web", "--create-netns", "-p", "8080:80")
    assert failed.returncode == 1
    assert "ADD failed in plugin portmap (code 110): host port 8080/tcp is in use by lab/c1/eth0" in failed.stderr
    assert "the failed ADD was undone with DEL" in failed.stderr
    assert hand.lab["host"].python(names, "/run/netns") == before
    assert hand.cache() == ["lab-c1-eth0"]
    hand.well("CHECK", "lab", "c1")


def test_a_namespace_by_pid_and_by_path(hand: Hand) -> None:
    pid = str(hand.lab["c2"].pid)
    assert f"container ID pid-{pid}" in hand.well("ADD", "lab", pid)
    hand.well("CHECK", "lab", f"/proc/{pid}/ns/net")
    hand.well("DEL", "lab", pid)
    own = hand("ADD", "lab", "/proc/self/ns/net")
    assert (own.returncode, "not of a container" in own.stderr) == (3, True)


def test_a_second_add_is_refused_before_it_can_harm_the_first(hand: Hand) -> None:
    hand.well("ADD", "lab", "c1")
    again = hand("ADD", "lab", "c1")
    assert (again.returncode, "DEL it first" in again.stderr) == (1, True)
    hand.well("CHECK", "lab", "c1")
    second = hand.json("ADD", "lab", "c1", "--ifname", "eth1")
    assert second["interfaces"][2]["name"] == "eth1"


def test_an_interface_of_somebody_else_is_left_alone(hand: Hand) -> None:
    """The DEL that follows a failed ADD deletes the interface, whoever made it."""
    hand.lab["host"].run(
        ["ip", "link", "add", "other", "type", "veth", "peer", "name", "eth0", "netns", "c1"], check=True
    )
    taken = hand("ADD", "lab", "c1")
    assert (taken.returncode, taken.stderr) == (
        1,
        "cni-py-exec: c1 already has an interface eth0: choose another --ifname\n",
    )
    assert links(hand.lab, "c1") == ["eth0", "lo"]
    hand.well("ADD", "lab", "c1", "--ifname", "eth1")
    hand.well("DEL", "lab", "c1", "--ifname", "eth1")
    assert links(hand.lab, "c1") == ["eth0", "lo"]


def test_a_cached_pid_that_is_now_the_host_s_does_not_cost_it_an_interface(hand: Hand) -> None:
    hand.well("ADD", "lab", "c1", "--ifname", "lan0", "--id", "reused")
    path = "/var/lib/cni/results/lab-reused-lan0"
    entry = json.loads(hand.lab["host"].python(read, path))
    hand.write(path, json.dumps({**entry, "netns": "/proc/self/ns/net"}))
    hand.well("DEL", "lab", "--id", "reused", "--ifname", "lan0")
    assert "lan0" in links(hand.lab, "host")


def test_what_containerd_added_is_known_by_its_id(hand: Hand) -> None:
    """libcni before 1.2, as in containerd 1.6, does not write `netns`."""
    hand.well("ADD", "lab", "c1", "--id", "default-web")
    path = "/var/lib/cni/results/lab-default-web-eth0"
    entry = json.loads(hand.lab["host"].python(read, path))
    assert entry.pop("netns") == "/run/netns/c1"
    hand.write(path, json.dumps(entry))
    hand.well("CHECK", "lab", "--id", "default-web")
    del entry["result"]["interfaces"][2]["sandbox"]
    hand.write(path, json.dumps(entry))
    lost = hand("CHECK", "lab", "--id", "default-web")
    assert (lost.returncode, "CHECK needs NETNS" in lost.stderr) == (2, True)
    hand.well("DEL", "lab", "c1", "--id", "default-web")
    assert links(hand.lab, "c1") == ["lo"]


def test_a_failed_add_is_taken_back_past_a_plugin_that_cannot(hand: Hand, tmp_path: Path) -> None:
    script(tmp_path / "odd", """echo '{"code": 123, "msg": "never"}'; exit 1""")
    hand.define("odd", plugins=[*hand.network["plugins"], {"type": "odd"}])
    failed = hand("ADD", "odd", "c1", "--bin-dir", f"{tmp_path}:{hand.bin_dir}")
    assert failed.returncode == 1
    assert "ADD failed in plugin odd (code 123): never" in failed.stderr
    assert "run DEL again: DEL failed in plugin odd (code 123): never" in failed.stderr
    assert links(hand.lab, "c1") == ["lo"]
    assert links(hand.lab, "host") == ["cni0", "lan0", "lo"]


def test_an_answer_that_cannot_be_written_does_not_stop_the_work(hand: Hand) -> None:
    words = f"{sys.executable} -m cni_py.commands.exec"
    environ = {"PYTHONPATH": str(HOME), "CNI_PATH": str(hand.bin_dir)}
    full = "cni-py-exec: cannot write to stdout: No space left on device\n"
    for verb, flag, known in (("ADD", "", ["lab-c1-eth0"]), ("DEL", "", []), ("ADD", "--json", ["lab-c1-eth0"])):
        done = hand.lab["host"].run(["bash", "-c", f"{words} {verb} lab c1 {flag} >/dev/full"], env=environ)
        assert (done.returncode, done.stderr) == (0, full)
        assert hand.cache() == known
    hand.well("CHECK", "lab", "c1")


def test_requests_reach_the_plugins(hand: Hand) -> None:
    result = hand.json("ADD", "lab", "c1", "--ip", "192.0.2.77", "--mac", "02:00:00:00:00:77", "--id", "seventy")
    assert result["ips"][0]["address"] == "192.0.2.77/24"
    assert result["interfaces"][2]["mac"] == "02:00:00:00:00:77"
    cached = json.loads(hand.lab["host"].python(read, "/var/lib/cni/results/lab-seventy-eth0"))
    assert dict(cached["cniArgs"]) == {"IgnoreUnknown": "1", "IP": "192.0.2.77", "MAC": "02:00:00:00:00:77"}
    assert cached["result"] == result
    hand.well("DEL", "lab", "--id", "seventy")
    unheard = hand("ADD", "lab", "c1", "--ip", "192.0.2.77", "--ip", "2001:db8:42::77")
    assert (unheard.returncode, '"capabilities": {"ips": true}' in unheard.stderr) == (2, True)


def test_check_says_what_differs(hand: Hand) -> None:
    hand.well("ADD", "lab", "c1")
    hand.lab["c1"].run(["ip", "address", "del", "192.0.2.2/24", "dev", "eth0"], check=True)
    wrong = hand("CHECK", "lab", "c1", "--json")
    error = json.loads(wrong.stdout)
    assert (wrong.returncode, error["plugin"]) == (1, "bridge")
    assert error["msg"] in wrong.stderr


@pytest.mark.ours_alone
def test_gc_keeps_what_the_cache_knows(hand: Hand) -> None:
    hand.well("ADD", "lab", "c1")
    hand.well("ADD", "lab", "c2")
    hand.lab["host"].run(["rm", "/var/lib/cni/results/lab-c2-eth0"], check=True)
    hand.well("GC", "lab")
    hand.well("CHECK", "lab", "c1")
    assert len([name for name in links(hand.lab, "host") if name.startswith("veth")]) == 1


@pytest.mark.ours_alone
def test_status_and_version(hand: Hand) -> None:
    assert "an ADD can be served" in hand.well("STATUS", "lab")
    versions = hand.json("VERSION", "lab")
    assert list(versions) == ["bridge", "portmap", "loopback"]
    assert "1.1.0" in versions["bridge"]["supportedVersions"]


def test_disable_check_and_old_versions(hand: Hand) -> None:
    hand.define("unchecked", disableCheck=True)
    assert "has disableCheck" in hand.well("CHECK", "unchecked", "c1")
    hand.define("old", cniVersion="0.3.1")
    hand.well("ADD", "old", "c1")
    early = hand("CHECK", "old", "c1")
    assert (early.returncode, "CHECK needs 0.4.0 or later" in early.stderr) == (1, True)
    hand.well("DEL", "old", "c1")


@pytest.mark.ours_alone
@pytest.mark.parametrize(
    ("words", "status", "says"),
    [
        (["ADD", "lab"], 2, "ADD needs NETNS"),
        (["GC", "lab", "c1"], 2, "takes no NETNS"),
        (["DEL", "lab", "c1", "--plan"], 2, "--plan can only be used with ADD"),
        (["ADD", "lab", "c1", "-p", "80"], 2, "write HOST_PORT:CONTAINER_PORT"),
        (["ADD", "lab", "c1", "--ifname", "a/b"], 2, "is not an interface name"),
        (["ADD", "lab", "c1", "--ifname", "eth%d"], 2, "is not an interface name"),
        (["ADD", "lab", "c1", "--args", "x"], 2, "is not KEY=VALUE"),
        (["ADD", "lab", "\udcff"], 2, "is not UTF-8"),
        (["FROB", "lab", "c1"], 2, "invalid choice"),
        (["ADD", "nothing", "c1"], 3, "there are: lab"),
        (["ADD", "/nowhere.conflist", "c1"], 3, "there is no file /nowhere.conflist"),
        (["ADD", "lab", "c1", "--bin-dir", "/nowhere"], 3, 'failed to find plugin "bridge"'),
        (["CHECK", "lab", "c1"], 1, "the cache has no ADD of c1 to lab as eth0"),
    ],
)
def test_refusals_name_what_is_wrong(hand: Hand, words: list[str], status: int, says: str) -> None:
    done = hand(*words)
    assert (done.returncode, done.stdout) == (status, "")
    assert says in done.stderr
    assert hand.cache() == []


@pytest.mark.ours_alone
def test_a_plugin_that_dies_without_a_word_is_named(hand: Hand, tmp_path: Path) -> None:
    script(tmp_path / "odd", "echo oops; exit 7")
    hand.define("odd", plugins=[{"type": "odd"}])
    done = hand("ADD", "odd", "c1", "--bin-dir", str(tmp_path))
    assert done.returncode == 1
    assert "ADD failed in plugin odd: it ended with status 7 without an error object: it printed: oops" in done.stderr
    assert done.stderr.count("\n") == 1  # the DEL after it, which dies likewise, is not told
    version = hand("VERSION", "odd", "--bin-dir", str(tmp_path))
    assert "VERSION failed in plugin odd" in version.stderr
    script(tmp_path / "odd", "echo oops")
    version = hand("VERSION", "odd", "--bin-dir", str(tmp_path), "--json")
    assert (version.returncode, json.loads(version.stdout)["msg"]) == (1, PRINTED)
    plan = hand("ADD", "odd", "c1", "--bin-dir", str(tmp_path), "--plan")
    assert (plan.returncode, "is not one of our plugins" in plan.stderr) == (3, True)


@pytest.mark.ours_alone
@pytest.mark.parametrize("signal", ["TERM", "HUP"])
def test_an_interrupted_add_is_taken_back(hand: Hand, tmp_path: Path, signal: str) -> None:
    script(
        tmp_path / "sleeper",
        """
        [ "$CNI_COMMAND" = ADD ] || exit 0
        sleep 60 >/dev/null 2>&1 &
        trap "kill $!; touch /run/stopped; exit 1" TERM
        touch /run/asleep
        wait
        """,
    )
    hand.define("slow", plugins=[hand.network["plugins"][0], {"type": "sleeper"}])
    command = (
        f"{sys.executable} -m cni_py.commands.exec ADD slow web --create-netns --bin-dir {tmp_path}:{hand.bin_dir}"
    )
    wait = "for _ in $(seq 500); do [ -e /run/asleep ] && break; sleep 0.05; done"
    done = hand.lab["host"].run(
        ["bash", "-c", f"rm -f /run/asleep /run/stopped\n{command} &\n{wait}\nkill -{signal} $!\nwait $!"],
        env={"PYTHONPATH": str(HOME)},
    )
    assert done.returncode == 130, done.stderr
    assert "cni-py-exec: interrupted" in done.stderr
    assert "the failed ADD was undone with DEL" in done.stderr
    assert "stopped" in hand.lab["host"].python(names, "/run")  # the plugin had time for an undo of its own
    assert links(hand.lab, "host") == ["cni0", "lan0", "lo"]
    assert "web" not in hand.lab["host"].python(names, "/run/netns")
    assert hand.cache() == []


# The plan


@pytest.fixture
def recorders(our_bin_dir: Path, tmp_path: Path) -> Path:
    """Copies of our installed executables that write down the operations they apply."""
    for name in MODULES:
        before, start, after = (our_bin_dir / name).read_text().partition(START)
        assert start, f"{name} does not start as this test expects"
        copy = tmp_path / name
        copy.write_text(f"{before}exec(open({str(HERE / 'record_ops.py')!r}).read())\n{start}{after}")
        copy.chmod(0o755)
    return tmp_path


def applied(hand: Hand) -> list[dict[str, object]]:
    return [json.loads(line) for line in hand.lab["host"].python(read, OPS).splitlines()]


def planned(hand: Hand, *words: str) -> list[dict[str, object]]:
    told = hand.json(*words, "--plan")
    return [
        {key: value for key, value in operation.items() if key != "text"}
        for part in told
        for operation in part["operations"]
    ]


def planned_and_applied(hand: Hand, *words: str) -> list[dict[str, object]]:
    """What an ADD applies, which is what was planned before it without touching anything."""
    before = hand.lab.snapshot("host")
    plan = planned(hand, *words)
    assert hand.lab.snapshot("host") == before
    hand.write(OPS, "")
    hand.well(*words)
    assert plan == applied(hand)
    hand.lab["host"].run(["rm", OPS], check=True)
    return plan


@pytest.mark.ours_alone
def test_a_plan_is_what_the_add_after_it_applies(hand: Hand, recorders: Path) -> None:
    hand.bin_dir = recorders
    owned: list[dict[str, object]] = []
    for words in (
        ["ADD", "lab", "c1", "-p", "8080:80", "-p", "[2001:db8:1::1]:9000-9001:90-91/udp"],
        ["ADD", "lab", "c2", "-p", "8081:80"],  # now that bridge, table and gateway are there
        ["ADD", "lab", "new", "--create-netns", "--ip", "192.0.2.50"],
    ):
        plan = planned_and_applied(hand, *words)
        assert {str(op["op"]) for op in plan} >= {"EnsureBridge", "ReserveAddress", "AddVeth"}
        records = hand.lab["host"].python(recorded)
        new = [op for op in records if op not in owned]
        assert new
        assert [op for op in new if op not in plan] == []
        owned = records


PAIR = [
    {"type": "ptp", "ipMasq": True, "ipam": NETWORK["plugins"][0]["ipam"]},
    {"type": "bandwidth", "egressRate": 1_000_000, "egressBurst": 800_000},
]
ON_LAN = [
    {"type": "macvlan", "master": "lan0", "ipam": {"type": "static", "addresses": [{"address": "198.51.100.9/24"}]}}
]
WITHOUT_A_BRIDGE = {
    "ptp": (PAIR, {"AddPeer", "ReserveAddress", "Masquerade", "RedirectToIfb"}),
    "macvlan": (ON_LAN, {"AddMacvlan", "AddAddress"}),
}


@pytest.mark.ours_alone
@pytest.mark.parametrize("name", WITHOUT_A_BRIDGE)
def test_a_plan_without_a_bridge_is_what_the_add_after_it_applies(hand: Hand, recorders: Path, name: str) -> None:
    hand.bin_dir = recorders
    plugins, names_of_some = WITHOUT_A_BRIDGE[name]
    hand.define(name, plugins=plugins)
    plan = planned_and_applied(hand, "ADD", name, "c1")
    assert {str(op["op"]) for op in plan} >= names_of_some
    hand.well("DEL", name, "c1")
    assert "eth0" not in links(hand.lab, "c1")


@pytest.mark.ours_alone
def test_a_plan_has_the_rules_of_addresses_that_are_still_to_come(hand: Hand) -> None:
    ipam = {"type": "static", "addresses": [{"address": "198.51.100.9/24", "gateway": "198.51.100.1"}]}
    hand.define("lan", plugins=[{"type": "macvlan", "master": "lan0", "ipam": ipam}, {"type": "sbr"}])
    planned = hand.well("ADD", "lan", "c1", "--plan").splitlines()
    wanted = ["container: table 100: default via 198.51.100.1", "container: rule from 198.51.100.9/32 lookup 100"]
    assert [line.strip() for line in planned[-2:]] == wanted
    hand.well("ADD", "lan", "c1")
    hand.well("DEL", "lan", "c1")
    hand.define(
        "lan", plugins=[{"type": "macvlan", "master": "lan0", "ipam": ipam}, {"type": "vrf", "vrfname": "blue"}]
    )
    planned = hand.well("ADD", "lan", "c1", "--plan").splitlines()
    wanted = ["container: VRF blue, table 1", "container: eth0 into VRF blue"]
    assert [line.strip() for line in planned[-2:]] == wanted


def recorded() -> list[dict[str, object]]:
    """The owned operations of every attachment."""
    return [
        op for path in Path("/run/cni-py/attachments").glob("*/*.json") for op in json.loads(path.read_text())["ops"]
    ]


@pytest.mark.ours_alone
def test_a_plan_for_people_has_a_line_for_each_operation(hand: Hand) -> None:
    text = hand.well("ADD", "lab", "new", "--create-netns", "-p", "8080:80", "--plan")
    lines = text.splitlines()
    assert lines[0] == "would create namespace new"
    assert [line for line in lines if line.endswith(":")] == ["bridge:", "portmap:", "loopback:"]
    assert "  container: address 192.0.2.2/24 on eth0" in lines
    assert "new" not in hand.lab["host"].python(names, "/run/netns")
    assert hand.cache() == []


# A network of the type chain


@pytest.mark.ours_alone
def test_a_chain_is_run_and_planned_as_the_list_that_is_in_it(hand: Hand, recorders: Path) -> None:
    hand.bin_dir = recorders
    declared = {"portMappings": True}
    hand.define("joined", plugins=[{"type": "chain", "capabilities": declared, "plugins": hand.network["plugins"]}])
    shown = hand.well("ADD", "joined", "c1", "-p", "8080:80", "--plan")
    assert [line for line in shown.splitlines() if not line.startswith(" ")] == ["bridge:", "portmap:", "loopback:"]
    assert len(planned_and_applied(hand, "ADD", "joined", "c1", "-p", "8080:80")) > 5
    hand.check("joined", "c1")
    taken = hand("ADD", "joined", "c2", "-p", "8080:80")
    assert (taken.returncode, '(code 110): plugin type="portmap" failed (add): ' in taken.stderr) == (1, True)
    assert links(hand.lab, "c2") == ["lo"]
    text = hand.well("ADD", "joined", "c2", "-p", "8081:80")
    assert text.startswith("ADD chain (bridge, portmap, loopback) ")
    assert "8081/tcp leads to 80; answers at 198.51.100.1:8081" in text
    versions = hand.well("VERSION", "joined").splitlines()
    assert [line.split()[0] for line in versions] == ["chain", "bridge", "portmap", "loopback"]
    for verb in ("STATUS", "GC"):
        hand.well(verb, "joined")
    for name in ("c1", "c2"):
        hand.well("DEL", "joined", name)
        assert links(hand.lab, name) == ["lo"]

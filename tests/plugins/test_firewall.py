"""The firewall plugin's configuration: an ingressPolicy needs a bridge, a DEL needs nothing; and what its errors say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from lab import Lab
from runtime import Outcome, Plugins

from tests.packets.bridges_site import BACKENDS

RANGES = [[{"subnet": "198.51.100.0/24", "rangeStart": "198.51.100.100"}]]
IPAM = {"type": "host-local", "ranges": RANGES}
BEHIND: dict[str, dict[str, object]] = {
    "macvlan": {"type": "macvlan", "master": "lan0", "ipam": IPAM},
    "ptp": {"type": "ptp", "ipam": {"type": "host-local", "ranges": [[{"subnet": "203.0.113.0/24"}]]}},
}
SANDBOX = {"name": "eth0", "sandbox": "/run/netns/c1"}
IPS = [{"address": "192.0.2.9/24", "interface": 0}]
NO_BRIDGE: dict[str, dict[str, object]] = {
    "no interfaces": {"ips": [{"address": "192.0.2.9/24"}]},
    "container's alone": {"interfaces": [SANDBOX], "ips": IPS},
    "host's veth": {"interfaces": [{"name": "lan0"}, SANDBOX], "ips": IPS},
    "named as the host's": {"interfaces": [{**SANDBOX, "name": "lan0"}], "ips": IPS},
}

pytestmark = pytest.mark.ours_alone


def conf(backend: str, policy: str, **keys: object) -> dict[str, Any]:
    return {
        "cniVersion": "1.0.0",
        "name": "lab",
        "type": "firewall",
        "backend": backend,
        "ingressPolicy": policy,
        **keys,
    }


def rules(lab: Lab) -> str:
    commands = (["iptables-save"], ["ip6tables-save"], ["nft", "-s", "list", "ruleset"])
    listed = "".join(lab["host"].run(command).stdout for command in commands)
    return "\n".join(line for line in listed.splitlines() if not line.startswith("#"))


def refused(outcome: Outcome, policy: str) -> None:
    assert outcome.code == 7, outcome.stdout
    assert f'ingressPolicy "{policy}"' in outcome.json["msg"]
    assert "bridge" in outcome.json["details"]
    assert "Traceback" not in outcome.stderr


@pytest.mark.parametrize("policy", ["same-bridge", "isolated"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("plugin", BEHIND)
def test_a_policy_behind_a_plugin_without_a_bridge_is_refused(
    lab: Lab, plugins: Plugins, plugin: str, backend: str, policy: str
) -> None:
    before = plugins.run(lab, "ADD", plugin, {"cniVersion": "1.0.0", "name": "lab", **BEHIND[plugin]})
    assert before.status == 0, before.stdout
    found = rules(lab)
    given = conf(backend, policy, prevResult=before.json)
    for verb in ("ADD", "CHECK"):
        refused(plugins.run(lab, verb, "firewall", given), policy)
    assert rules(lab) == found
    assert plugins.run(lab, "DEL", "firewall", given).status == 0
    assert plugins.run(lab, "ADD", "firewall", {**given, "ingressPolicy": "open"}).status == 0


@pytest.mark.parametrize("what", NO_BRIDGE)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_result_without_a_bridge_is_refused(lab: Lab, plugins: Plugins, backend: str, what: str) -> None:
    given = conf(backend, "same-bridge", prevResult={"cniVersion": "1.0.0", **NO_BRIDGE[what]})
    refused(plugins.run(lab, "ADD", "firewall", given), "same-bridge")
    for netns in (None, "", "/run/netns/gone"):
        assert plugins.run(lab, "DEL", "firewall", given, netns=netns).status == 0
    assert "CNI" not in rules(lab)


@pytest.mark.parametrize(
    "keys",
    [
        {"ingressPolicy": "nonsense"},
        {"ingressPolicy": 7},
        {"backend": "firewalld"},
        {"backend": []},
        {"iptablesAdminChainName": "a b; c"},
        {"iptablesAdminChainName": {}},
        {"prevResult": {"cniVersion": "1.0.0", "ips": [{"address": "nonsense"}]}},
        {"prevResult": {"cniVersion": "1.0.0", "interfaces": [{"name": "x" * 99}]}},
    ],
    ids=str,
)
def test_a_del_does_not_fail_over_what_add_refuses(lab: Lab, plugins: Plugins, keys: dict[str, object]) -> None:
    given = conf("nftables", "same-bridge", prevResult={"cniVersion": "1.0.0", **NO_BRIDGE["no interfaces"]}) | keys
    assert plugins.run(lab, "ADD", "firewall", given).status != 0
    outcome = plugins.run(lab, "DEL", "firewall", given)
    assert (outcome.status, outcome.stdout) == (0, ""), outcome.stdout


TOOLS = ("iptables-save",)  # all of them may be one program


def hide(lab: Lab, *, script: str | None) -> None:
    """Let the tools be missing on this host (None), or be a program that is this text."""
    mode = 644 if script is None else 755
    lines = [f"d=$(mktemp -d -p /run); cat > $d/tool; chmod {mode} $d/tool"]
    lines += [f"mount --bind $d/tool $(readlink -f $(command -v {tool}))" for tool in TOOLS]
    lab["host"].run(["sh", "-ec", "\n".join(lines)], input=script or "", check=True)


BROKEN: dict[str, tuple[str | None, str]] = {
    "missing": (None, "is needed"),
    "no program": ("garbage", "cannot start"),
    "killed": ("#!/bin/sh\nkill -9 $$\n", "killed by signal 9"),
    "refuses": ("#!/bin/sh\necho broken here >&2; exit 3\n", "broken here"),
}


def container(lab: Lab) -> dict[str, object]:
    lab["host"].run(["ip", "link", "add", "br7", "type", "bridge"], check=True)
    interfaces = [{"name": "br7"}, {"name": "veth7"}, SANDBOX]
    ips = [{"address": "192.0.2.9/24", "interface": 2}, {"address": "2001:db8::9/64", "interface": 2}]
    return {"cniVersion": "1.0.0", "interfaces": interfaces, "ips": ips}


@pytest.mark.parametrize("what", BROKEN)
@pytest.mark.parametrize("backend", BACKENDS)
def test_an_iptables_that_cannot_run_is_one_error_and_no_traceback(
    lab: Lab, plugins: Plugins, backend: str, what: str
) -> None:
    for tool in ("iptables", "ip6tables"):
        lab["host"].run([tool, "-P", "FORWARD", "DROP"], check=True)
    script, words = BROKEN[what]
    given = conf(backend, "open", prevResult=container(lab))
    run: Callable[[str], Outcome] = lambda verb: plugins.run(lab, verb, "firewall", given)  # noqa: E731
    assert run("ADD").status == 0
    assert run("DEL").status == 0
    hide(lab, script=script)
    for verb in ("ADD", "CHECK"):
        outcome = run(verb)
        assert outcome.status == 1
        assert words in f"{outcome.json['msg']} {outcome.json.get('details')}"
        assert "Traceback" not in outcome.stderr
    assert "Traceback" not in run("DEL").stderr

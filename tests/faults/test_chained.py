"""Chained plugins, and the iptables backend: killed or failed anywhere, nothing is left."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from lab import Lab
from runtime import Outcome, Plugins

from tests.conftest import need_root
from tests.faults import trial
from tests.faults.trial import Trial, host_of
from tests.plugins.conftest import need_kind
from tests.plugins.veth_attachment import Conf, VethAttachment

PORTS = {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]}
WANTED: dict[str, Conf] = {  # of what is alike, such as tuning's settings, one
    "firewall by iptables": {"backend": "iptables", "ingressPolicy": "same-bridge"},
    "portmap by iptables": {"backend": "iptables", "snat": False, "runtimeConfig": PORTS},
    "tuning": {"sysctl": {"net.ipv4.conf.IFNAME.arp_filter": "1"}, "mac": "c2:11:22:33:44:55", "mtu": 1300},
    "firewall": {"ingressPolicy": "same-bridge"},
    "bandwidth": {"ingressRate": 1_000_000, "ingressBurst": 800_000, "egressRate": 2_000_000, "egressBurst": 1_600_000},
    "bandwidth of networks": {"ingressRate": 8_000, "ingressBurst": 8_000, "unshapedSubnets": ["192.0.2.0/24", "::/0"]},
    "sbr": {"addSourceHints": True},
    "vrf": {"vrfname": "blue"},
}


class Chained(Trial):
    """One interface that no plugin made."""

    leaves_something = True

    def __init__(self, attachment: VethAttachment, wanted: Conf) -> None:
        self.attachment = attachment
        self.wanted = wanted

    def go(self, verb: str, fault: str = "", **keys: object) -> Outcome:
        conf = self.attachment.conf("1.1.0", **self.wanted, **keys)
        if "ingressPolicy" in self.wanted and "prevResult" not in keys:
            conf["prevResult"] = self.on_bridge(self.attachment.result("1.1.0"))
        return self.attachment.run(verb, conf, None, "eth0", None, **({"CNI_TEST_FAULT": fault} if fault else {}))

    def on_bridge(self, result: Conf) -> Conf:
        """What the bridge plugin would have said."""
        port, inside = result["interfaces"]
        ips = [{**ip, "interface": 2} for ip in result["ips"]]
        return {**result, "interfaces": [{"name": "br-lab"}, port, inside], "ips": ips}

    def records(self) -> list[str]:
        return self.attachment.records()

    def reset(self) -> None:
        """The sysctl."""
        self.attachment.inside("sysctl -q -w net.ipv4.conf.eth0.arp_filter=0")

    def state(self) -> dict[str, object]:
        shaping = f"tc qdisc show; tc filter show dev {self.attachment.host_veth} parent ffff:"
        return {
            "container": self.attachment.lab.snapshot(self.attachment.id),
            "host": host_of(self.attachment.lab.snapshot("host")),
            "shaping": self.attachment.lab["host"].run(["sh", "-c", shaping]).stdout,
            "rules": self.attachment.inside("ip rule"),
            "sysctl": self.attachment.inside("sysctl -n net.ipv4.conf.eth0.arp_filter"),
        }


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    need_root()
    with Lab.from_yaml("lan.yaml") as lab:
        yield lab


@pytest.fixture(scope="module", params=[*WANTED])
def subject(request: pytest.FixtureRequest, lab: Lab, saboteurs: Plugins) -> Iterator[Chained]:
    need_kind(lab, str(request.param))
    attachment = VethAttachment(lab, saboteurs, str(request.param).partition(" ")[0])
    if request.param in ("sbr", "vrf"):
        attachment.inside("ip address add 192.0.2.2/24 dev eth0")
        attachment.inside("ip address add 2001:db8::2/64 dev eth0 nodad")
        attachment.inside("ip route add default via 192.0.2.1")
    yield Chained(attachment, WANTED[request.param])
    attachment.close()


@pytest.mark.parametrize(("step", "how"), [("apply", "fail-after"), ("call", "fail")])
def test_an_add_that_fails_anywhere_leaves_nothing(subject: Chained, step: str, how: str) -> None:
    trial.fail_add(subject, step, how)


def test_what_a_killed_add_left_is_removed_by_del(subject: Chained) -> None:
    trial.kill_add(subject, trial.delete)


@pytest.mark.parametrize("then", trial.RECOVERIES)
def test_what_a_killed_add_left_is_removed_by_others(subject: Chained, then: str) -> None:
    """At every other point: after the one before it the same is there, or less."""
    trial.kill_add(subject, trial.RECOVERIES[then], start=1, step=2)


@pytest.mark.parametrize("how", ["kill", "fail"])
def test_a_del_that_is_killed_or_fails_can_be_done_again(subject: Chained, how: str) -> None:
    trial.spoil_del(subject, how)

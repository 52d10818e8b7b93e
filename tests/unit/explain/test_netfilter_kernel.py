"""explain/netfilter.py against the kernel: the same rulesets, the same packets, the same verdicts and translations."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.unit.explain import firewalls, rulesets

GROUPS = {
    "matches": rulesets.MATCHES,
    "verdicts, marks, NAT": (*rulesets.VERDICTS, *rulesets.MARKS, *rulesets.NAT),
    "iptables": firewalls.IPTABLES,
    "programs": firewalls.PROGRAMS,
}


@pytest.mark.netns
@pytest.mark.parametrize("group", GROUPS)
def test_the_kernel_agrees(group: str) -> None:
    from tests.unit.explain.kernel_lab import Kernel

    kernel, wrong = Kernel(), []
    try:
        for case in GROUPS[group]:
            with kernel.rules(case.nft, case.iptables, case.ip6tables, case.legacy):
                packets = [kernel.send(*sent) for sent in case.sent]
                found, unknown = kernel.compare(packets)
            wrong += [f"{case.name}: {one}" for one in found]
            if unknown != case.unknown:
                wrong.append(f"{case.name}: {unknown} packets are unknown, not {case.unknown}")
    finally:
        kernel.close()
    assert not wrong, "\n".join(wrong)


BRIDGE_SENT = (
    ("web", "10.88.0.3", 80, rulesets.TCP),
    ("db", "10.88.0.2", 53, rulesets.UDP),
    ("web", "fd00:88::3", 80, rulesets.UDP),
)


@pytest.mark.netns
def test_the_kernel_agrees_on_bridged_frames() -> None:
    """In the family bridge, and in the IP families where br_netfilter hands them over."""
    from cni_py.explain.netfilter import decide, decide_frame
    from cni_py.kernel.nf_tables import BRIDGE, INET
    from tests.unit.explain.kernel_lab import Kernel, write_sysctl

    kernel = Kernel()
    wrong: list[str] = []

    def ask(cases: tuple[rulesets.Case, ...], family: int) -> None:
        for case in cases:
            with kernel.rules(case.nft, case.iptables):
                packets = [kernel.send(*sent) for sent in BRIDGE_SENT]
                outs = ["db0" if packet.source_mac.endswith("12") else "web0" for packet in packets]
                said = decide if family == INET else decide_frame
                ways = [kernel.walk_bridge(packet, out, said) for packet, out in zip(packets, outs, strict=True)]
                found = kernel.lasting_disagreements(packets, ways, family)
                wrong.extend(f"{case.name}: {one}" for one in found)

    try:
        ask((*rulesets.FRAMES, rulesets.Case("cni-py", firewalls.OUR_BRIDGE)), BRIDGE)
        for version in ("iptables", "ip6tables"):
            write_sysctl(f"net/bridge/bridge-nf-call-{version}", "1")
        ask(firewalls.BRIDGED, INET)
    finally:
        kernel.close()
    assert not wrong, "\n".join(wrong)


@pytest.mark.netns
def test_the_kernel_agrees_on_ingress() -> None:
    from cni_py.explain.netfilter import decide
    from tests.unit.explain.kernel_lab import Kernel

    kernel = Kernel()
    chain = "chain c { type filter hook ingress device lan0 priority 0; policy accept;\n"
    rules = "ip daddr 10.88.0.2 tcp dport 80 drop\nip6 saddr 2001:db8::/32 udp dport 53 drop\n"
    sent = (("client", "10.88.0.2", 80, rulesets.TCP), ("client", "2001:db8::1", 53, rulesets.UDP))
    passing = (("client", "10.88.0.2", 81, rulesets.TCP), ("client", "2001:db8::1", 54, rulesets.UDP))
    try:
        for family in ("netdev", "inet"):
            with kernel.rules(f"table {family} t {{\n{chain}{rules}}}\n}}\n"):
                dropped = [kernel.send(*one) for one in sent]
                arriving = [kernel.send(*one) for one in passing]
                assert all("prerouting" in one for one in kernel.seen(arriving))
                assert not any("prerouting" in one for one in kernel.seen(dropped, wait=False))
                silent = kernel.model  # nft 1.0.6 leaves the device out
                told = replace(silent, nftables=silent.nftables.replace('"prio": 0', '"prio": 0, "dev": "lan0"'))
                assert {decide(told, "ingress", one).verdict for one in dropped} == {"drop"}
                assert {decide(told, "ingress", one).verdict for one in arriving} == {"accept"}
                elsewhere = replace(dropped[0], iif="cni0")
                assert decide(told, "ingress", elsewhere).verdict == "accept"
                if '"dev"' not in silent.nftables:
                    assert decide(silent, "ingress", dropped[0]).verdict == "unknown"
                    assert decide(silent, "ingress", arriving[0]).verdict == "accept"
    finally:
        kernel.close()

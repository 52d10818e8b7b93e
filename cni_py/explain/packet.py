"""A packet, and what a hook of netfilter does with it: what the two halves of `explain` agree on. Values alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Certainty = Literal["checked", "assumed", "unknown"]
Hook = Literal["ingress", "prerouting", "input", "forward", "output", "postrouting"]
Verdict = Literal["accept", "drop", "reject", "queue", "unknown"]


@dataclass(frozen=True, slots=True)
class Packet:
    """The first packet of a connection, as it is at one point of its way."""

    family: int  # 4 or 6
    protocol: str  # "tcp", "udp", "sctp"
    source: str
    source_port: int  # 0: any free port; a rule that asks for it is unknown
    destination: str
    destination_port: int
    iif: str = ""  # name of the link it came by; "" before it has one
    oif: str = ""
    mark: int = 0
    bridge_in: str = ""  # bridge ports, where br_netfilter hands a bridged packet to the IP hooks
    bridge_out: str = ""
    source_mac: str = ""
    ct_state: str = "new"  # "new", "established", "related", "invalid", "untracked"
    ct_status: frozenset[str] = frozenset()  # "dnat", "snat"
    ct_mark: int = 0
    original_destination: str = ""  # before DNAT; "" where there was none
    original_port: int = 0
    socket: bool = False  # a socket of this host waits for it (nft: socket)
    # What a rule may have changed to something that is not known: "mark", "ct_mark", "source_port", "destination_port",
    # "saddr", "daddr", "snat" (of ct_status), "pkttype". Who needs one of these answers "unknown".
    unsure: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Step:
    """A rule, map element or policy that took part in a decision."""

    backend: str  # "nftables", "iptables"
    table: str  # "inet cni_py"; "filter" of iptables-nft: "ip filter (iptables-nft)"
    chain: str
    handle: int = 0  # of the rule; 0 for a policy, and in iptables-legacy
    text: str = (
        ""  # the rule in nft's or iptables' words; the element: "element tcp . 8080 : 10.88.0.2 . 80 in map any4"
    )
    effect: str = ""  # "dnat to 10.88.0.2:80", "drop", "jump published4", "mark 0x2000", "policy accept"
    owner: str = ""  # "cni-py", "Docker", "firewalld", "ufw", "kube-proxy", "Tailscale", "the Go plugins", ""
    certainty: Certainty = "checked"
    why: str = ""  # of "assumed" and "unknown": which expression, and what it would need


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a hook does with a packet, by all tables of a namespace in the order of their priorities."""

    verdict: Verdict
    packet: Packet  # as it leaves the hook: NAT and marks applied
    steps: tuple[Step, ...] = field(default=())
    certainty: Certainty = "checked"
    nat: str = (
        ""  # "dnat", "snat", "masquerade", "redirect"; with masquerade `packet.source` is "" until the way out is known
    )
    alternatives: tuple[Outcome, ...] = ()  # of verdict "unknown": what may happen instead, as far as it can be told

    @property
    def deciding(self) -> Step | None:
        """The step that dropped it, could not be evaluated, or translated it; the last one where none did."""
        if self.verdict == "accept" and self.nat:
            return next((step for step in reversed(self.steps) if step.effect.startswith(self.nat)), None)
        return self.steps[-1] if self.steps else None

"""The command that lets a packet pass which a rule drops: in the words of the rule's owner. Pure."""

from __future__ import annotations

from shlex import quote

from cni_py.explain.packet import Hook, Packet, Step

# By hook and owner; {port}, {protocol}, {from}, {to} and {tool} (iptables, ip6tables) are the packet's.
BY_OWNER = {
    ("input", "ufw"): "ufw allow {port}/{protocol}",
    ("input", "firewalld"): "firewall-cmd --add-port={port}/{protocol}   # and once more with --permanent",
    ("forward", "ufw"): "ufw route allow proto {protocol} to {to} port {port}",
    # It decides by the zone of the source: a zone for the interface that the packet leaves by would not help
    (
        "forward",
        "firewalld",
    ): "firewall-cmd --zone=trusted --add-source={from}   # if that is a container: cni-py restore",
    ("forward", "Docker"): "{tool} -I DOCKER-USER -p {protocol} -d {to} --dport {port} -j ACCEPT",
    ("forward", "cni-py"): "cni-py restore   # or another ingressPolicy of the network's firewall plugin",
}
BY_IPTABLES = {
    "input": "{tool} -I INPUT -p {protocol} --dport {port} -j ACCEPT",
    # Both directions: the answers are forwarded, too
    "forward": "{tool} -I FORWARD -d {to} -j ACCEPT; {tool} -I FORWARD -s {to} -j ACCEPT   # or the network's firewall plugin",
}


def mend_for(step: Step | None, hook: Hook, packet: Packet, *, answer: bool = False) -> str:
    """The command. `answer`: the packet is one, so what lets the request pass does not help."""
    if step is None:
        return "nft list ruleset"
    tool = "ip6tables" if packet.family == 6 else "iptables"
    by_iptables = step.backend == "iptables" or "iptables" in step.table
    text = BY_OWNER.get((hook, step.owner)) or (BY_IPTABLES.get(hook) if by_iptables else "")
    if text and answer:
        chain = hook.upper()
        return f"{tool} -I {chain} -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT"
    if text:
        words = {"port": packet.destination_port, "protocol": packet.protocol, "tool": tool}
        return text.format(**words, **{"from": packet.source, "to": packet.destination})
    table = step.table.partition(" (")[0]
    if by_iptables:
        return f"{tool} -t {table.split()[-1]} -S {quote(step.chain)}   # then delete the rule, or accept the packet before it"
    if step.handle:
        return f"nft delete rule {table} {quote(step.chain)} handle {step.handle}   # or accept the packet before it"
    ip = "ip6" if packet.family == 6 else "ip"
    accept = "ct state established accept" if answer else f"{ip} daddr {packet.destination} accept"
    return f"nft insert rule {table} {quote(step.chain)} {accept}"

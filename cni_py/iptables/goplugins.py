"""What newer Go plugins have in nftables tables of their own, to be taken out when their container goes.

    ip, ip6 cni_hostport           portmap: rules with the containerID as comment
    inet cni_plugins_masquerade    ipMasq: rules whose comment begins with digests of the network and of ifname:containerID

Rules are found by their comments and removed by their handles; tables and chains stay, as the Go plugins leave them.
"""

from cni_py.errors import CniError
from cni_py.iptables.names import GO_CHECKS, GO_HOSTPORT, GO_HOSTPORTS, GO_MASQUERADE
from cni_py.kernel import libnftables
from cni_py.protocol import gojson
from cni_py.sha import sha512_hex

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterator

    from cni_py.attachment.naming import Attachment

HOSTPORT_CHAINS = (GO_HOSTPORTS, "hostip_hostports", "masquerading")
DIGITS = 16  # of each digest in a comment of ipMasq


def digest(text: str) -> str:
    """A name as a comment of ipMasq has it."""
    return sha512_hex(text)[:DIGITS]


def mark_of(key: "Attachment") -> str:
    """How the comments of an attachment's rules begin."""
    return f"{digest(key.network)}-{digest(f'{key.ifname}:{key.container_id}')}"


def forget_masquerading(key: "Attachment") -> None:
    """DEL: the attachment's rules of ipMasq."""
    mark = mark_of(key)
    remove("inet", GO_MASQUERADE, (GO_CHECKS,), lambda comment, _: comment.startswith(mark))


def sweep_masquerading(network: str, valid: "Container[str]") -> None:
    """GC: the network's rules of ipMasq, but for those whose comments begin with a valid mark."""
    ours = digest(network) + "-"

    def stale(comment: str, _: object) -> bool:
        return comment.startswith(ours) and comment[: 2 * DIGITS + 1] not in valid

    remove("inet", GO_MASQUERADE, (GO_CHECKS,), stale)


def forget_ports(family: int, container_id: str, addresses: "Container[str]") -> None:
    """DEL: the container's published ports; where its addresses in the network are known only those that lead there.

    The comment does not tell the networks of a container apart.
    """

    def gone(comment: str, rule: object) -> bool:
        return comment == container_id and (not addresses or any(text in addresses for text in texts_in(rule)))

    remove("ip" if family == 4 else "ip6", GO_HOSTPORT, HOSTPORT_CHAINS, gone)


def remove(family: str, table: str, chains: "Container[str]", wanted: "Callable[[str, object], bool]") -> None:
    """Take the rules out whose comment and content are wanted. CniError."""
    lines = [
        f"delete rule {family} {table} {rule.get('chain')} handle {int(str(rule.get('handle')))}\n"
        for rule in rules_of(family, table)
        if rule.get("chain") in chains and wanted(str(rule.get("comment", "")), rule.get("expr"))
    ]
    if lines:
        libnftables.run("".join(lines))


def rules_of(family: str, table: str) -> "Iterator[gojson.Object]":
    """The rules of a table, which is there. CniError."""
    nft = libnftables.binding().Nftables()
    nft.set_json_output(True)
    nft.set_handle_output(True)
    status, text, refusal = nft.cmd(f"list table {family} {table}")
    if status != 0:
        raise CniError(f"cannot read the nftables table {family} {table}", str(refusal).strip())
    document = gojson.decode(str(text).encode())
    entries = document.get("nftables") if isinstance(document, gojson.Object) else None
    for entry in entries if isinstance(entries, list) else ():
        rule = entry.get("rule") if isinstance(entry, gojson.Object) else None
        if isinstance(rule, gojson.Object):
            yield rule


def texts_in(value: object) -> "Iterator[str]":
    """Every text in a rule's expressions."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | gojson.Object):
        for part in [part for _, part in value.items()] if isinstance(value, gojson.Object) else value:
            yield from texts_in(part)

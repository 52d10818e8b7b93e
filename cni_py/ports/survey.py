"""Everything that publishes ports on this host, from the records and the kernel: the content of a new index (index.py).

It costs time for each published port, and is done once a boot.
"""

from cni_py.addr import ip_text, parse_address
from cni_py.attachment import records
from cni_py.attachment.engine import split_texts
from cni_py.attachment.naming import Attachment
from cni_py.errors import CniError
from cni_py.iptables.names import ENTRIES, concerned
from cni_py.kernel.nf_tables import NftUnavailable
from cni_py.nftables.ruleset import has_table
from cni_py.ports import publication
from cni_py.ports.publication import Publication

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from cni_py.attachment.context import Kernel
    from cni_py.protocol.gojson import Object

PLUGIN = "portmap"
MAPS = ("hairpin", "any", "specific")
RANGES = ("tcp", "udp", "sctp")
PORT = 4  # bytes of a port at the end of a value, padded

Found = tuple[str, Attachment | None, str]  # hex, attachment, address


def survey(kernel: "Kernel") -> dict[str, Publication]:
    """By hex. What cannot be asked is left out: that is no reason to fail."""
    found: dict[str, Publication] = {}
    for source in (of_records, of_nftables, of_iptables, of_go_tables, of_portfwd):
        try:
            for hexed, key, address in source(kernel):
                one = found.setdefault(hexed, Publication(hexed, key, ()))
                one.key = one.key or key
                if address:
                    one.addresses.add(address)
        except (CniError, OSError):
            continue
    return found


def of_records(_kernel: "Kernel") -> "Iterator[Found]":
    """The attachments with a record."""
    for record in records.all_records(PLUGIN):
        yield record.key.hex, record.key, ""
        for address in addresses_in(record):
            yield record.key.hex, record.key, address


def addresses_in(record: "records.Record") -> set[str]:
    """The container's addresses, as the operations of a record name them."""
    found = set()
    for fields in record.ops:
        said = split_texts(fields, "address", "addresses") if isinstance(fields, dict) else {}
        texts = [each for name in ("address", "addresses") if isinstance(each := said.get(name), list)]
        for text in [str(text) for each in texts for text in each]:
            try:
                found.add(ip_text(parse_address(text if "/" in text else f"{text}/0").packed))
            except ValueError:
                continue
    return found


def of_nftables(kernel: "Kernel") -> "Iterator[Found]":
    """The elements of our maps, by their comments."""
    try:
        if not has_table(kernel.nft):
            return
    except NftUnavailable:
        return
    for family, length in ((4, 4), (6, 16)):
        names = [f"{name}{family}" for name in MAPS] + [f"range{family}_{protocol}" for protocol in RANGES]
        for name in names:
            for element in kernel.nft.dump(name):
                value = element.key if name.startswith("hairpin") else element.value
                if isinstance(value, bytes) and len(value) in (length, length + PORT) and element.comment:
                    yield *records.attachment_in(element.comment), ip_text(value[:length])


def of_iptables(kernel: "Kernel") -> "Iterator[Found]":
    """The chains of iptables' nat table that no record speaks of: the Go plugins'."""
    families = concerned(kernel, ENTRIES)
    if not families:
        return
    from cni_py.iptables import masquerade_rules
    from cni_py.iptables.tool import Rules
    from cni_py.kernel.xtables import NAT
    from cni_py.ports import iptables_rules

    known = {(record.key.network, record.key.container_id) for record in records.all_records(PLUGIN)}
    for family in families:
        rules = Rules.read(family, NAT)
        for entry in rules.chains.get((NAT, ENTRIES), ()):
            key = Attachment(*masquerade_rules.label_in(entry), "")
            if not key.network or (key.network, key.container_id) in known:
                continue
            for mapping in map(iptables_rules.mapping_of, rules.chains.get((NAT, entry[-1]), ())):
                if mapping is not None:
                    yield key.hex, key, ip_text(mapping.container_ip)


def of_go_tables(kernel: "Kernel") -> "Iterator[Found]":
    """The rules of newer Go plugins, which name the container alone."""
    from cni_py.ports import go_tables

    for container_id, mapping in go_tables.everything(kernel):
        key = Attachment("", container_id, "")
        yield key.hex, key, ip_text(mapping.container_ip)


def of_portfwd(_kernel: "Kernel") -> "Iterator[Found]":
    """The mappings of portfwd, if it runs."""
    from cni_py.ports import relay

    service = relay.Service.connect(relay.AUTO_S)
    if service is None:
        return
    with service:
        for one in service.mappings():
            hexed = relay.owner_of(one)
            if hexed:
                _, key = records.attachment_in(f"{hexed} {one.get('label', '')}")
                for address in targets_of(one):
                    yield hexed, key, address


def targets_of(mapping: "Object") -> list[str]:
    """Where a mapping of portfwd's leads."""
    listed = mapping.get("targets")
    targets = listed if isinstance(listed, list) else []
    found = [str(target.get("address", "")) for target in targets if isinstance(target, dict)]
    return [text for text in found if publication.is_address(text)]

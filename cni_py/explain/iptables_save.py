"""The text of iptables-save as tables and chains, each rule translated into nft's expressions."""

from __future__ import annotations

from functools import lru_cache

from cni_py.explain import ruleset
from cni_py.explain.chains import Chain, Rule, Table
from cni_py.explain.iptables_rules import translate
from cni_py.explain.nft_text import clean
from cni_py.iptables.tool import split

FAMILIES = {"iptables": 4, "ip6tables": 6}
HOOKS = {
    "PREROUTING": "prerouting",
    "INPUT": "input",
    "FORWARD": "forward",
    "OUTPUT": "output",
    "POSTROUTING": "postrouting",
}
PRIORITIES = {"raw": -300, "mangle": -150, "filter": 0, "security": 50}  # linux/netfilter_ipv4.h
NAMES = (*PRIORITIES, "nat")


def read(program: str, text: str) -> dict[str, Table]:
    """The tables by name. `program`: iptables-nft, ip6tables-legacy, ..."""
    family = FAMILIES.get(program.partition("-")[0], 4)
    tables: dict[str, Table] = {}
    table: Table | None = None
    for line in text.splitlines():
        if line.startswith("*"):
            name = line[1:].strip()
            ip = "ip" if family == 4 else "ip6"
            table = tables[name] = Table("iptables", ip, name, f"{ip} {name} ({program})")
        elif table is not None and line.startswith(":"):
            _declare(table, line)
        elif table is not None:
            _add(table, line, family)
    return tables


def _declare(table: Table, line: str) -> None:
    """:FORWARD DROP [0:0]."""
    name, policy = [*line[1:].split(), "-", "-"][:2]
    chain = table.chains.setdefault(name, Chain(table, name))
    if policy == "-" or name not in HOOKS:
        return
    chain.hook, chain.policy = HOOKS[name], policy.lower()
    if table.name == "nat":
        chain.kind = "nat"
        chain.priority = 100 if name in ("INPUT", "POSTROUTING") else -100
    else:
        chain.priority = PRIORITIES.get(table.name, 0)


def _add(table: Table, line: str, family: int) -> None:
    """[0:0] -A FORWARD ..."""
    rest = line.partition("] ")[2] if line.startswith("[") else line
    words = split(rest)
    if len(words) < 2 or words[0] != "-A":
        return
    chain = table.chains.setdefault(words[1], Chain(table, words[1]))
    found = translate(words[2:], family)
    chain.rules.append(Rule(found.expressions, words=clean(rest), comment=found.comment))


@lru_cache(maxsize=16)
def combined(listing: str, programs: tuple[tuple[str, str], ...]) -> tuple[tuple[Table, ...], str]:
    """All tables of a namespace, and why they cannot be read. `listing` is nft's, `programs` as in model.Namespace.

    Tables of iptables-nft are in both; nft's listing does not tell what modules of xtables ask for.
    """
    if not listing.strip():
        return (), "the ruleset of nftables could not be read"
    tables, problem = ruleset.read(listing)
    found = dict(tables)
    others: list[Table] = []
    for program, text in programs:
        for name, table in read(program, text).items():
            if not program.endswith("-nft"):
                others.append(table)
                continue
            listed = tables.get((table.family, name))
            if listed is None or is_same(listed, table):
                found[table.family, name] = with_handles(table, listed)
    return (*found.values(), *others), problem


def is_same(listed: Table, saved: Table) -> bool:
    """Whether iptables-save has printed all that is there: it cannot print every rule that nft can make."""
    return all(
        len(chain.rules) == len(saved.chains[name].rules) if name in saved.chains else not chain.rules
        for name, chain in listed.chains.items()
    )


def with_handles(saved: Table, listed: Table | None) -> Table:
    """The table as iptables-save prints it, with priorities and handles from nft's listing."""
    if listed is None:
        return saved
    saved.handle = listed.handle
    for name, chain in saved.chains.items():
        other = listed.chains.get(name)
        if other is None or not other.hook:
            chain.hook = ""  # iptables-nft prints chains that it would make; they are not there
        if other is None:
            continue
        chain.priority, chain.kind, chain.handle = other.priority, other.kind, other.handle
        for rule, one in zip(chain.rules, other.rules, strict=True):
            rule.handle = one.handle
    return saved

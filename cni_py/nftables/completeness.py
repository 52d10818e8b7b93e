"""Whether one of our tables has all that its attachments share: no record lists what `nft flush chain` takes from it.

The rules of a chain for one subnet or condition follow from its name only in the operation that made it. Such a chain is lost
when it is empty, or gone while its sets are there.
"""

from cni_py.errors import CniError
from cni_py.kernel.nf_tables import BRIDGE, INET, TABLE, NftUnavailable
from cni_py.nftables import ruleset

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from cni_py.attachment.engine import Op
    from cni_py.kernel.nf_tables import Nft

FAMILIES = {INET: "inet", BRIDGE: "bridge"}
MADE_WHEN_NEEDED = (*ruleset.MADE_WHEN_NEEDED, "direct_access", "policies")
SHOWN_MAX = 3


def lost(
    bridge: bool, chains: "Collection[str]", rules: "Sequence[str]", sets: "Collection[str]"
) -> tuple[list[str], list[str]]:
    """What a table of today's layout lacks, in words: of its constant part, and of the chains made when needed. Pure.

    `chains` and `sets` (and maps): the names of those in the table; `rules`: the name of its chain for each rule.
    """
    text = ruleset.table(bridge)
    expected, named = _rules_in(text), _sets_in(text)
    made = {name for name in chains if name.startswith(MADE_WHEN_NEEDED)}
    made |= set(filter(None, map(ruleset.chain_of, sets))) - expected.keys()
    fewer = [name for name, count in expected.items() if rules.count(name) < count]
    return (
        [*(f"set {name}" for name in named if name not in sets), *_worded(fewer, chains)],
        _worded(sorted(name for name in made if name not in rules), chains),
    )


def of_others(bridge: bool, rules: "Sequence[str]") -> list[str]:
    """The chains of the constant part in which somebody has put rules, in words. Pure."""
    expected = _rules_in(ruleset.table(bridge))
    return [f"chain {name} without rules of others" for name, count in expected.items() if rules.count(name) > count]


def of_kernel(nft: "Nft", family: int) -> tuple[list[str], list[str]]:
    """lost(), of a table in the kernel. NftUnavailable."""
    return lost(family == BRIDGE, nft.chains(family), nft.rules(family), nft.sets(family))


def check(nft: "Nft", plan: "Iterable[Op]") -> None:
    """CHECK: CniError when a table that operations of the plan have elements in is not whole.

    A table of another version's layout is not looked at: the next ADD, or `cni-py restore`, brings it up to date.
    """
    for family in dict.fromkeys(op.nft_family for op in plan if op.nft_family):
        try:
            constant, made = of_kernel(nft, family) if ruleset.has_table(nft, family) else ([], [])
        except NftUnavailable:  # nothing of ours can be there, of which the operations have said what there is to say
            continue
        if found := [*constant, *made]:
            raise CniError(f"{sentence(family, found)} (`cni-py restore` puts it back)")


def sentence(family: int, found: "Sequence[str]") -> str:
    """What the table of a family lacks, in words."""
    return f"the nftables table {FAMILIES[family]} {TABLE} has lost {listed(found)}"


def listed(found: "Sequence[str]") -> str:
    """The first things of a list, and how many more there are."""
    more = f" and {len(found) - SHOWN_MAX} more" if len(found) > SHOWN_MAX else ""
    return ", ".join(found[:SHOWN_MAX]) + more


def _worded(names: "Iterable[str]", chains: "Collection[str]") -> list[str]:
    return [f"rules of chain {name}" if name in chains else f"chain {name}" for name in names]


def _rules_in(text: str) -> dict[str, int]:
    """Chain -> number of rules in `text`, the commands that make a table."""
    chains = [line.split()[4] for line in text.splitlines() if line.startswith("add rule ")]
    return {chain: chains.count(chain) for chain in chains}


def _sets_in(text: str) -> list[str]:
    """The sets and maps that such a text makes."""
    return [line.split()[4] for line in text.splitlines() if line.startswith(("add set ", "add map "))]

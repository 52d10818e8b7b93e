"""Which chains, rules and sets one of our tables lacks."""

from __future__ import annotations

import pytest

from cni_py.nftables import completeness, ruleset


def made(bridge: bool) -> tuple[list[str], list[str], list[str]]:
    """Chains, rules and sets as the text makes them."""
    words = [line.split() for line in ruleset.table(bridge).splitlines()]
    kinds = (("chain",), ("rule",), ("set", "map"))
    chains, rules, sets = ([w[4] for w in words if w[:1] == ["add"] and w[1] in kind] for kind in kinds)
    return list(dict.fromkeys(chains)), rules, sets


@pytest.mark.parametrize("bridge", [False, True])
def test_a_table_as_it_is_made_is_whole(bridge: bool) -> None:
    assert completeness.lost(bridge, *made(bridge)) == ([], [])


def test_what_is_gone_has_a_name() -> None:
    chains, rules, sets = made(False)
    chains.remove("published4")
    rules = [name for name in rules if name not in ("published4", "output")]
    rules.remove("prerouting")
    sets.remove("any6")
    constant, _ = completeness.lost(False, chains, rules, sets)
    assert constant == ["set any6", "rules of chain prerouting", "rules of chain output", "chain published4"]
    assert completeness.listed(constant) == "set any6, rules of chain prerouting, rules of chain output and 1 more"


def test_what_others_put_in_is_not_lost() -> None:
    chains, rules, sets = made(False)
    chains.append("theirs")
    rules.append("output")
    assert completeness.lost(False, chains, rules, [*sets, "theirs"]) == ([], [])
    assert completeness.of_others(False, rules) == ["chain output without rules of others"]


def test_a_chain_made_when_needed_is_lost_when_empty_or_gone_beside_its_sets() -> None:
    chains, rules, sets = made(False)
    assert completeness.lost(False, [*chains, "policies"], [*rules, "policies"], [*sets, "policed"]) == ([], [])
    assert completeness.lost(False, [*chains, "policies"], rules, [*sets, "policed"])[1] == ["rules of chain policies"]
    assert completeness.lost(False, chains, rules, [*sets, "policed"])[1] == ["chain policies"]
    assert completeness.lost(False, [*chains, "outside_x"], rules, sets)[1] == ["rules of chain outside_x"]

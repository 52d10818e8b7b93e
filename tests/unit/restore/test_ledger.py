"""The ledger does to our tables what the kernel does: the same transactions are refused, and the same ruleset comes of them."""

from __future__ import annotations

import errno
import random

import pytest

from cni_py.kernel.nf_tables import BRIDGE, INET, Change, Element, Nft
from cni_py.nftables import ruleset
from cni_py.restore import ledger
from cni_py.restore.ledger import Ledger, portions

SETS = {"hairpin4": 4, "masquerade4": 4, "claims4": 8, "any4": 8}
CHAIN = "masquerade_all"


def tables() -> Nft:
    """Our tables, empty."""
    nft = Nft()
    for family in (INET, BRIDGE):
        ruleset.ensure_table(nft, family)
    return nft


def element(rng: random.Random, name: str) -> Element:
    key = bytes(rng.choice((0, 1, 2)) for _ in range(1)).rjust(SETS[name], b"\0")
    if name in ("hairpin4", "masquerade4"):
        return Element(key, rng.choice((CHAIN, CHAIN, "no_such_chain")), "x")
    return Element(key, bytes((0, 0, 0, rng.choice((1, 2)))) if name == "claims4" else bytes(8), "x")


def tried(nft: Nft, changes: list[Change]) -> int | None:
    """The error number of a transaction, 0 when it was made."""
    try:
        nft.transaction(changes)
    except OSError as error:
        return error.errno
    return 0


def everything(nft: Nft) -> dict[str, set[Element]]:
    return {name: set(nft.dump(name)) for name in SETS}


@pytest.mark.netns
def test_transactions_are_refused_and_made_as_by_the_kernel() -> None:
    nft = tables()
    rng = random.Random(7)
    answers = set()
    for _ in range(150):
        drafted = Ledger(nft)
        before = everything(nft)
        names = [rng.choice([*SETS, "no_such_set"]) for _ in range(rng.choice((1, 1, 2, 3)))]
        changes = [Change(rng.random() < 0.6, name, [element(rng, name if name in SETS else "any4")]) for name in names]
        foretold = tried(drafted, changes)
        if foretold:
            assert everything(drafted) == before
        assert tried(nft, changes) == foretold, (changes, before)
        assert everything(drafted) == everything(nft)
        answers.add(foretold)
    assert answers == {0, errno.EEXIST, errno.ENOENT}


@pytest.mark.netns
def test_what_is_committed_is_what_was_drafted() -> None:
    nft = tables()
    nft.transaction([Change(True, "any4", [Element(b"\6\0\0\0\0\1\0\0", bytes(8), "old")])])
    drafted = Ledger(nft)
    drafted.make(ruleset.policy_chain())
    drafted.transaction([Change(False, "any4", [Element(b"\6\0\0\0\0\1\0\0")])])
    drafted.transaction([Change(True, "any4", [Element(b"\6\0\0\0\0\1\0\0", bytes(8), "new")])])
    drafted.transaction([Change(True, "policed", [Element(b"br0".ljust(16, b"\0"))])])
    interval = [Element(b"\0\2", bytes(4), "r"), Element(b"\0\4", end=True), Element(b"\0\4", bytes(4), "s")]
    drafted.transaction([Change(True, "range4_tcp", [*interval, Element(b"\0\x08", end=True)])])
    drafted.transaction([Change(True, "isolated", [Element(b"veth0".ljust(16, b"\0"))], BRIDGE)])
    assert drafted.commit()
    assert [one.comment for one in nft.dump("any4")] == ["new"]
    assert len(nft.dump("policed")) == len(nft.dump("isolated", BRIDGE)) == 1
    assert sum(not one.end for one in nft.dump("range4_tcp")) == 2
    assert not Ledger(nft).commit()


def test_a_transaction_has_a_limit_and_keeps_the_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "PORTION", 4)
    elements = [Element(bytes((number,))) for number in range(6)]
    changes = [Change(False, "any4", elements[:3]), Change(True, "any4", elements)]
    found = [[(one.add, [*one.elements]) for one in part] for part in portions(changes)]
    assert found == [[(False, elements[:3])], [(True, elements[:4])], [(True, elements[4:])]]

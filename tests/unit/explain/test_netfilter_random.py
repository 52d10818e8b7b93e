"""explain/netfilter.py against the kernel on rulesets that nobody thought of."""

from __future__ import annotations

import os
import time
from random import Random

import pytest

LOOKS_FOR_NEW = "CNI_PY_FUZZ" in os.environ  # make fuzz
RULESETS = 1000 if LOOKS_FOR_NEW else 40


@pytest.mark.netns
def test_the_kernel_agrees_on_random_rulesets() -> None:
    compare(time.time_ns() if LOOKS_FOR_NEW else 0, RULESETS)


def compare(seed: int, number: int) -> None:
    """So many rulesets. The one that fails is made as small as it can be, and told with its seed."""
    from tests.unit.explain.kernel_lab import Kernel
    from tests.unit.explain.random_rules import ruleset, smallest
    from tests.unit.explain.rulesets import ALL

    kernel = Kernel()
    sent = [one for one in ALL if one[1] != "::1"]  # which no translated packet leaves by
    told = {"packets": 0, "unknown": 0, "refused": 0}

    def wrong(lines: list[str]) -> list[str]:
        if not kernel.nft.accepts("\n".join(lines) + "\n"):
            told["refused"] += 1
            import os

            os.environ.get("DBG") and print(kernel.nft.nft.cmd("\n".join(lines) + "\n")[2][:300])
            return []
        with kernel.rules():
            packets = [kernel.send(*one) for one in sent]
            found, unknown = kernel.compare(packets)
        told["packets"] += len(packets)
        told["unknown"] += unknown
        return found

    try:
        for n in range(seed, seed + number):
            lines = ruleset(Random(n))
            if wrong(lines):
                lines = smallest(lines, lambda fewer: bool(wrong(fewer)))
                pytest.fail(f"seed {n}\n" + "\n".join(wrong(lines)) + "\n" + "\n".join(lines))
    finally:
        kernel.close()
    assert told["refused"] < number / 5, told
    assert told["unknown"] < told["packets"] / 10, told

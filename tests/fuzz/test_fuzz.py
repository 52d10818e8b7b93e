"""Hypothesis drives the installed executables with malformed environment, configuration, prevResult and state files.

Whatever comes in: an error object with a code of the specification on stdout or a success, never a traceback, in bounded
time; and a call that fails leaves nothing behind. Every execution has a throwaway host of its own (throwaway.py).
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from lab import Lab

from tests.conftest import need_root
from tests.fuzz.cases import VERBS, Case, spoiled
from tests.fuzz.throwaway import FAILED, judge_all

RANDOM = "CNI_PY_FUZZ" in os.environ  # `make fuzz` looks for new ones; `make test` says the same each time
CASES = 400 if RANDOM else 100  # of a verb
BATCH = 25
LIMIT_S = 300


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    need_root()
    with Lab.from_yaml("lan.yaml") as lab:
        yield lab


@pytest.mark.parametrize("verb", VERBS)
def test_no_input_breaks_the_protocol_or_is_half_done(lab: Lab, our_bin_dir: Path, verb: str) -> None:
    outcomes: Counter[str] = Counter()
    complaints: list[str] = []

    # Not shrunk: a case is a good call with one to three changes, and judging one takes longer than thinking of it.
    @settings(
        max_examples=CASES // BATCH,
        phases=[Phase.generate],
        deadline=None,
        database=None,
        derandomize=not RANDOM,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(spoiled(verb, str(our_bin_dir)), min_size=BATCH, max_size=BATCH))
    def drive(cases: list[Case]) -> None:
        verdicts = lab["host"].python(judge_all, cases, timeout_s=LIMIT_S)
        outcomes.update(verdict.outcome for verdict in verdicts)
        complaints.extend(
            f"{case}\n  {verdict.complaint}" for case, verdict in zip(cases, verdicts, strict=True) if verdict.complaint
        )

    drive()
    assert not complaints, "\n".join(sorted(complaints, key=len)[:5])
    assert outcomes.total() >= CASES
    refused = {"VERSION": 0, "DEL": CASES // 10}.get(verb, CASES // 5)  # DEL passes over most of what is wrong
    assert outcomes[FAILED] >= refused

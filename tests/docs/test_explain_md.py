"""docs/explain.md has every code that `cni-py explain` may print, and no other; the sources use these alone."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

from cni_py.explain.codes import CODES, FAILING, PASSING
from cni_py.explain.packet import Step
from cni_py.explain.text import as_json
from cni_py.explain.way import Hop
from tests.unit.explain import models

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/explain.md").read_text()
USE = re.compile(r'\.(?:passes|doubts|fails)\(\s*f?"([^"]+)"')
HOOKS = ("prerouting", "input", "forward", "output", "postrouting", "ingress")


def used() -> set[str]:
    """The codes that stand in calls of a trail, and those that are chosen before the call."""
    found = {f"filtered-{hook}" for hook in HOOKS} | {"container-firewall", "port-taken", "host-process"}
    for path in (ROOT / "cni_py/explain").glob("*.py"):
        found |= {code for code in USE.findall(path.read_text()) if "{" not in code}
    return found


def test_the_document_lists_the_codes() -> None:
    listed = dict(
        re.findall(
            r"^\| `([a-z0-9-]+)` \| ([^|]+?) \|", TEXT.partition("## Codes")[2].partition("## JSON")[0], re.MULTILINE
        )
    )
    assert listed == {code: entry.meaning for code, entry in CODES.items()}


def test_the_sources_use_the_codes_of_the_list() -> None:
    assert used() == set(CODES)


def test_what_fails_has_a_cause_and_a_remedy() -> None:
    assert not PASSING.keys() & FAILING.keys()
    for code, entry in FAILING.items():
        assert entry.cause, code
        assert entry.mend, code


def test_the_document_lists_the_keys_of_the_json() -> None:
    answer = json.loads(json.dumps(as_json(models.explained(models.host()))))
    table = TEXT.partition("## JSON")[2]
    keys = {*answer, *answer["clients"][0]}
    keys |= {field.name for kind in (Hop, Step) for field in dataclasses.fields(kind)}
    assert keys == set(re.findall(r"`([a-z]+)`", "".join(re.findall(r"`[a-z]+`(?=[,|: (]|$)", table)))) - VALUES


VALUES = {"answers", "fails", "unknown", "passes", "checked", "assumed", "place"}

"""The graph is in the DOT language, and has everything."""

from __future__ import annotations

import re

import pytest

from cni_py.host.model import Host
from cni_py.show import dot, words
from tests.unit.show import models

STRING = r'"(?:[^"\\\n]|\\.)*"'
ATTRIBUTES = rf"\[\w+={STRING}(?:, \w+={STRING})*\]"
STATEMENT = re.compile(rf" +(?:graph|\w+|\w+ -- \w+)(?: {ATTRIBUTES})?")
FRAME = re.compile(rf"graph {STRING} \{{|  subgraph cluster_host \{{|  \}}|\}}")


@pytest.mark.parametrize("host", [models.lone(), models.example(), models.crowd()], ids=("lone", "example", "crowd"))
def test_the_graph_is_well_formed_and_complete(host: Host) -> None:
    text = dot.dumps(host)
    lines = text.removesuffix("\n").split("\n")
    own = dot.HEAD.splitlines()
    assert [one for one in lines if one not in own and not STATEMENT.fullmatch(one) and not FRAME.fullmatch(one)] == []
    made = set(re.findall(r"^ +(\w+) \[", text, re.MULTILINE)) - {"graph"}
    used = {end for pair in re.findall(r"^ +(\w+) -- (\w+)", text, re.MULTILINE) for end in pair}
    assert used <= made
    for port in host.ports:
        assert f'"{words.listens(port)}"' in text
    for container in host.containers:
        assert dot.quoted(container.name)[1:-1] in text


def test_names_are_quoted() -> None:
    assert dot.quoted('a"\\N\n\x1b') == r'"a\"\\N\\n\\x1b"'

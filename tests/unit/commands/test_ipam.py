"""`cni-py ipam list` and `stats` of a saved host: any user may look at it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cni_py.commands.main import main
from cni_py.host import saved
from cni_py.host.model import SCHEMA, Host, Namespace, Pool, Reservation

POOLS = (
    Pool(
        "web",
        "/var/lib/cni/networks/web",
        ("192.0.2.2-192.0.2.5", "2001:db8::2-2001:db8::ffff:ffff:ffff:ffff"),
        size=1 << 64,
        sizes=(4, 1 << 63),
        reservations=(
            Reservation("192.0.2.2", "c1", "eth0", 1e9, "alive"),
            Reservation("192.0.2.3", "\x1b[31mc2", "eth0", 1e9, "dead", "its network namespace is gone"),
            Reservation("192.0.2.99", "operator: the printer", "", 1e9, "alive"),
            Reservation("2001:db8::2", "c1", "eth0", 1e9, "unknown", "podman does not answer"),
        ),
        last=("192.0.2.3", "2001:db8::2"),
    ),
    Pool("old", "/var/lib/cni/networks/old"),
)
LIST = """\
NETWORK  ADDRESS      SINCE                 HOLDER                 STATE
web      192.0.2.2    2001-09-09 01:46 UTC  c1 eth0                alive
web      192.0.2.3    2001-09-09 01:46 UTC  \\x1b[31mc2 eth0        dead: its network namespace is gone
web      192.0.2.99   2001-09-09 01:46 UTC  operator: the printer  alive
web      2001:db8::2  2001-09-09 01:46 UTC  c1 eth0                unknown: podman does not answer
"""
STATS = [
    ["web", "192.0.2.2-192.0.2.5", "4", "50", "%", "2", "1", "0", "192.0.2.3"],
    [
        "web",
        "2001:db8::2-2001:db8::ffff:ffff:ffff:ffff",
        "9,223,372,036,854,775,808",
        "-",
        "1",
        "0",
        "1",
        "2001:db8::2",
    ],
    ["web", "outside", "of", "its", "ranges", "-", "-", "1", "0", "0", "-"],
    ["old", "no", "configuration", "-", "-", "0", "0", "0", "-"],
]


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "host.json"
    path.write_text(saved.dumps(Host(SCHEMA, "0", 0, "h", "k", (Namespace("net:[1]"),), pools=POOLS)))
    return str(path)


def test_a_saved_host_is_told(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ipam", "list", "--from", file]) == 0
    assert capsys.readouterr().out == LIST
    assert main(["ipam", "stats", "--from", file]) == 0
    told = capsys.readouterr().out.splitlines()
    assert [line.split() for line in told[1:-1]] == STATS
    assert told[-1] == "`cni-py gc` gives back the addresses without a living holder"
    assert main(["ipam", "list", "--from", file, "--network", "old", "--json"]) == 0
    (pool,) = json.loads(capsys.readouterr().out)["pools"]
    assert pool["folder"] == "/var/lib/cni/networks/old"
    assert main(["ipam", "list", "--from", file, "--network", "none"]) == 3


@pytest.mark.parametrize(
    "command", [["gc"], ["enter"], ["ipam"], *(["ipam", act] for act in ("list", "stats", "release"))]
)
def test_help(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*command, "--help"])
    assert ended.value.code == 0
    assert f"usage: cni-py {' '.join(command)}" in capsys.readouterr().out

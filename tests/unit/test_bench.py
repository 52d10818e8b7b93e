"""bench/: its figures, tables and picture, what docs/performance.md has of them, and a run of it where the Go plugins are not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "bench"))  # whose modules import each other as scripts do

import document  # noqa: E402
import drawing  # noqa: E402
import figures  # noqa: E402
from hosts import Spent  # noqa: E402
from report import Chain, Report, printed  # noqa: E402
from sides import Container, Side, mappings  # noqa: E402

THEIRS = [Spent(100.0, 40.0), Spent(120.0, 44.0), Spent(90.0, 42.0)]
SVG = "{http://www.w3.org/2000/svg}"
DOCS = ROOT / "docs"


def halves(by: float) -> list[Spent]:
    return [Spent(one.wall_ms * by, one.cpu_ms * 2) for one in THEIRS]


def test_a_row_has_medians_means_and_ratios() -> None:
    row = figures.row("chain ADD", "direct", halves(0.5), THEIRS)
    assert row == {
        "step": "chain ADD",
        "side": "direct",
        "wall_ms": 50.0,
        "p90_ms": 60.0,
        "cpu_ms": 84.0,
        "wall_ratio": 0.5,
        "wall_between": [0.5, 0.5],  # every draw: the rounds stay together
        "cpu_ratio": 2.0,
    }
    alone = figures.row("chain ADD", "direct", halves(0.5), None)
    assert (alone["wall_ms"], alone["wall_ratio"], alone["cpu_ratio"]) == (50.0, None, None)


def test_an_interval_holds_the_ratio_and_is_as_wide_as_the_rounds_differ() -> None:
    theirs, noisy = [100.0] * 9, [60.0, 140.0, 100.0] * 3
    low, high = figures.between(noisy, theirs)
    assert low < 1.0 < high
    assert figures.between(noisy, theirs) == [low, high]


def made_up() -> Chain:
    times = {
        "direct": {"chain ADD": halves(0.9), "chain DEL": halves(0.6), "bridge ADD": halves(0.5)},
        "warm": {"chain ADD": halves(0.3), "chain DEL": halves(0.3)},
        "go": {"chain ADD": THEIRS, "chain DEL": THEIRS, "bridge ADD": THEIRS},
    }
    return Chain(family="IPv4", load="idle", rounds=3, others=0.5, rows=figures.rows(times, "go"))


def test_whole_lists_come_last_and_are_held_to_their_targets() -> None:
    rows = made_up()["rows"]
    assert [row["step"] for row in rows] == ["bridge ADD"] * 2 + ["chain ADD"] * 3 + ["chain DEL"] * 3
    nothing = Report(
        machine={}, date="", command="", load=[], absent={}, chains=[], bursts=[], starts=[], growth=None, parts={}
    )
    lines = [line.split() for line in printed({**nothing, "chains": [made_up()]}).splitlines()]
    assert {" ".join(words[:3]): " ".join(words[words.index("target") :]) for words in lines if "target" in words} == {
        "chain ADD direct": "target 0.75: wall NOT met, CPU NOT met",
        "chain DEL direct": "target 0.7: wall met, CPU NOT met",
        "chain ADD warm": "target 0.35: wall met, CPU NOT met",
        "chain DEL warm": "target 0.4: wall met, CPU NOT met",
    }


def test_a_table_has_a_dash_for_what_was_not_measured() -> None:
    other = made_up()
    other["rows"] = [row for row in other["rows"] if row["side"] != "warm"]
    lines = document.beside_targets([made_up(), other], ("chain ADD",), document.ratios).splitlines()
    assert lines[2:] == [
        "| direct | ADD | 0.75 | 0.90 / 2.00 | 0.90 / 2.00 |",
        "| warm | ADD | 0.35 | 0.30 / 2.00 | - |",
    ]


def test_the_picture_has_two_bars_and_a_mark_for_each_way() -> None:
    root = ElementTree.fromstring(drawing.drawing([made_up()]))
    bars = root.findall(f"{SVG}rect")
    assert len(bars) == 2 * 4
    wall, cpu = (float(one.get("width", "")) for one in bars[:2])
    assert cpu / wall == pytest.approx(2.0 / 0.9, rel=0.01)
    assert all(float(one.get("x", "")) + float(one.get("width", "")) <= float(root.get("width", "")) for one in bars)
    assert len([path for path in root.findall(f"{SVG}path") if path.get("stroke") == drawing.TARGET]) == 4


def test_ports_are_no_range_and_a_chain_holds_the_list() -> None:
    assert [one["hostPort"] for one in mappings(8080, 3)] == [8080, 8082, 8084]
    listed = Side("direct", "/bin", "IPv4", host=None).walk("DEL", Container("c"))  # type: ignore[arg-type]
    assert [call.name for call in listed] == ["tuning DEL", "firewall DEL", "portmap DEL", "bridge DEL"]
    one = next(Side("chain", "/bin", "dual stack", one_plugin=True, host=None).walk("ADD", Container("c")))  # type: ignore[arg-type]
    config = json.loads(one.config)
    assert (one.program, [plugin["type"] for plugin in config["plugins"]]) == (
        "/bin/chain",
        ["bridge", "portmap", "firewall", "tuning"],
    )
    assert config["runtimeConfig"]["portMappings"][0]["hostPort"] == 8080


def test_the_document_shows_the_figures_that_lie_beside_it() -> None:
    report = json.loads((DOCS / "performance.json").read_text())
    page = (DOCS / "performance.md").read_text()
    before = DOCS / "performance-before.json"
    parts = document.generated(report, json.loads(before.read_text()) if before.exists() else None)
    assert page == document.filled(page, parts), "python3 bench/document.py makes it anew"
    assert (DOCS / "performance.svg").read_text() == drawing.drawing(report["chains"])


def state() -> dict[str, list[str] | None]:
    """What the machine has in the folders of CNI plugins."""
    folders = (Path(name) for name in ("/run/netns", "/run/cni-py", "/var/lib/cni", "/var/lib/cni-py", "/etc/cni"))
    return {str(one): sorted(os.listdir(one)) if one.is_dir() else None for one in folders}


def test_ours_are_timed_where_there_are_no_go_plugins(our_bin_dir: Path, tmp_path: Path) -> None:
    command, found = Path(sys.executable).with_name("cni-py"), tmp_path / "found.json"
    folders = ["--ours", our_bin_dir, "--cni-py", command, "--go", tmp_path, "--json", found.name]
    counts = [
        "--families",
        "IPv4",
        "--loads",
        "idle",
        "--rounds",
        "1",
        "--bursts",
        "1",
        "--burst-size",
        "2",
        "--large",
        "0",
    ]
    before = state()
    done = subprocess.run(
        [sys.executable, str(ROOT / "bench/plugins.py"), *map(str, folders), *counts],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert state() == before
    assert (done.returncode, "not measured: go: there are no Go plugins" in done.stderr) == (0, True), done.stderr
    report = json.loads(found.read_text())
    steps = {row["step"] for chain in report["chains"] + report["bursts"] for row in chain["rows"]}
    assert {"chain ADD", "chain DEL", "ADDs", "DELs"} <= steps
    assert report["parts"]["bridge ADD"].keys() >= {"interpreter", "imports", "links, addresses, routes", "nftables"}

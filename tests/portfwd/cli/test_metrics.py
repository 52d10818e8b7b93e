"""Tables, and Prometheus' text format read back."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from portfwd.cli import metrics

WEB: dict[str, object] = {
    "id": "web",
    "protocol": "tcp",
    "host_ips": ["0.0.0.0", "::"],
    "first": 8080,
    "last": 8080,
    "targets": [{"address": "192.0.2.2", "port": 80}, {"address": "192.0.2.3", "port": 80}],
    "state": {
        "connections": 7,
        "active": 2,
        "refused": 1,
        "failed": 0,
        "errors": 3,
        "bytes_in": 1500,
        "bytes_out": 2_500_000,
        "spliced": 2_000_000,
        "dropped": 0,
        "evicted": 4,
        "dead_targets": ["192.0.2.3:80"],
        "served_by": "a socket",
    },
}
DNS: dict[str, object] = {
    "id": "portmap-00ff-1",
    "protocol": "udp",
    "host_ips": ["::1"],
    "first": 53,
    "last": 63,
    "targets": [{"address": "::1", "port": 53, "container": "c1"}],
    "owner": "attachment 00ff",
    "label": "net/c1/eth0",
    "state": {},
}
SERVICE: dict[str, object] = {"pid": 812, "version": "0.1.0", "started": 1800000000.5}


def test_ls_shows_what_leads_where_and_whose_it_is() -> None:
    assert metrics.ls([WEB, DNS]) == (
        "NAME            PORTS      HOST        TO                                      ACTIVE  SERVED BY  OWNER\n"
        "web             8080/tcp   0.0.0.0 ::  192.0.2.2:80, 192.0.2.3:80 (no answer)       2  a socket   -\n"
        "portmap-00ff-1  53-63/udp  ::1         [::1]:53 in container c1                     ?  -          net/c1/eth0\n"
    )


def test_ls_says_who_listens_in_vain() -> None:
    raw = {**WEB, "state": {"unheard": ["8080/tcp of nginx (pid 812)"]}}
    assert metrics.unheard([DNS, raw]) == [
        "port 8080/tcp of nginx (pid 812) gets no clients: they are steered to mapping web"
    ]


def test_stats_shows_what_was_counted() -> None:
    assert metrics.stats(SERVICE, [WEB]) == (
        "NAME  ACTIVE  TOTAL  REFUSED  FAILED  ERRORS  DROPPED      IN     OUT  IN KERNEL  EVICTED\n"
        "web        2      7        1       0       3        0  1.5 kB  2.5 MB        80%        4\n"
        "portfwd 0.1.0, pid 812\n"
    )


def test_a_mapping_that_cannot_be_published_yet_is_waiting() -> None:
    raw = WEB | {"state": {"waiting": True}}
    assert metrics.ls([raw]).splitlines()[1].split()[-3:] == ["waiting", "-", "-"]
    assert "portfwd_connections_total" not in metrics.prometheus({}, [raw])


def test_tables_without_mappings_have_their_heads() -> None:
    assert metrics.ls([]) == "NAME  PORTS  HOST  TO  ACTIVE  SERVED BY  OWNER\n"
    assert metrics.stats({}, []).startswith("NAME  ACTIVE")


def test_a_mapping_of_a_newer_service_is_shown_as_far_as_it_is_understood() -> None:
    later = WEB | {"weights": [1, 2]}
    assert metrics.ls([later]).splitlines()[1].split() == ["web", "?", "?", "?", "2", "?", "?"]
    assert 'portfwd_mapping_info{mapping="web"} 1' in metrics.prometheus({}, [later])


SAMPLE = re.compile(r'^([a-z_]+)(?:\{((?:[a-z_]+="(?:[^"\\\n]|\\.)*",?)*)\})? (\S+)$')


def read(text: str) -> dict[str, dict[str, float]]:
    """The samples by metric and labels; asserts the form: HELP, TYPE, then all samples of one metric together."""
    found: dict[str, dict[str, float]] = {}
    kind = name = ""
    assert text.endswith("\n")
    for line in text.removesuffix("\n").split("\n"):
        if line.startswith("# HELP "):
            name = line.split(" ")[2]
            assert name not in found
            found[name] = {}
        elif line.startswith("# TYPE "):
            assert line.split(" ")[2] == name
            kind = line.split(" ")[3]
            assert (kind == "counter") == name.endswith("_total")
        else:
            sample = SAMPLE.match(line)
            assert sample is not None, line
            assert sample[1] == name
            assert (sample[2] or "") not in found[name]
            found[name][sample[2] or ""] = float(sample[3])
    return found


def test_prometheus_gets_every_counter() -> None:
    found = read(metrics.prometheus(SERVICE, [WEB, DNS]))
    assert found["portfwd_connections_total"] == {'mapping="web"': 7}
    assert found["portfwd_sent_bytes_total"] == {'mapping="web"': 2_500_000}
    assert found["portfwd_targets_dead"] == {'mapping="web"': 1, 'mapping="portmap-00ff-1"': 0}
    assert found["portfwd_mappings"] == {"": 2}
    assert found["portfwd_start_time_seconds"] == {"": 1800000000.5}
    assert found["portfwd_service_info"] == {'version="0.1.0"': 1}
    assert len(found["portfwd_mapping_info"]) == 2


@given(st.text())
def test_any_label_is_escaped(text: str) -> None:
    raw = metrics.prometheus({"version": text}, [{"id": text, "state": {"connections": 1}}])
    found = read(raw)
    (label,) = found["portfwd_connections_total"]
    value = label.removeprefix('mapping="').removesuffix('"')
    back = re.sub(r"\\(.)", lambda escape: {"n": "\n"}.get(escape[1], escape[1]), value)
    assert back == text


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (99_940, "99.9 kB"),
        (99_960, "100 kB"),
        (999_499, "999 kB"),
        (999_999, "1.0 MB"),
        (123_000_000, "123 MB"),
        (10**30, "1000000000000 EB"),
    ],
)
def test_sizes_are_short(count: int, expected: str) -> None:
    assert metrics.size(count) == expected


@given(st.lists(st.tuples(st.text(), st.text()), min_size=1))
def test_a_table_has_one_line_a_row_whatever_is_in_it(rows: list[tuple[str, str]]) -> None:
    assert metrics.table(rows).count("\n") == len(rows)
    assert all(char == "\n" or char.isprintable() for char in metrics.table(rows, right={1}))

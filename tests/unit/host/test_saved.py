"""Saved models: what was written is read again, and whatever else is read is refused in a sentence."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cni_py.host import saved
from cni_py.host.model import SCHEMA, Attachment, Host, Pool, Reservation
from tests.unit.host import worlds

times = st.floats(0, saved.TIME_MAX)
texts = st.text(max_size=5) | st.just("\udcff\x1b[31m\n")
reservations = st.builds(Reservation, address=texts, since=times)
hosts = st.builds(
    Host,
    schema=st.just(SCHEMA),
    taken=times,
    namespaces=st.lists(st.just(worlds.healthy().root), min_size=1, max_size=1).map(tuple),
    attachments=st.lists(st.builds(Attachment, since=times), max_size=2).map(tuple),
    pools=st.lists(
        st.builds(Pool, reservations=st.lists(reservations, max_size=2).map(tuple), size=st.integers(0, 1 << 128)),
        max_size=2,
    ).map(tuple),
)
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=4,
)


@settings(max_examples=50, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(hosts)
def test_what_was_written_is_read_again(host: Host) -> None:
    assert saved.loads(saved.dumps(host)) == host


def test_a_whole_model_goes_to_a_file_of_its_owner_and_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "model.json"
    saved.write(str(path), worlds.healthy())
    assert path.stat().st_mode & 0o777 == 0o600
    assert saved.read(str(path)) == worlds.healthy()


def paths(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where there are values in a JSON document."""
    found = [at] if at else []
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in pairs:
        found += paths(inner, (*at, key))
    return found


DOCUMENT = saved.dumps(worlds.healthy())
PLACES = paths(json.loads(DOCUMENT))


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(PLACES), anything)
def test_a_wrong_value_anywhere_is_refused_or_is_one_of_the_right_type(place: tuple[Any, ...], value: Any) -> None:
    document = json.loads(DOCUMENT)
    inner = document
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    try:
        host = saved.loads(json.dumps(document))
    except saved.Unreadable:
        return
    assert saved.loads(saved.dumps(host)) == host


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "not a host saved by"),
        ('{"schema": 2}', "not a host saved by"),
        ('{"schema": 1}', "missing"),
        ('{"schema": 1, "namespaces": {}}', "host.namespaces is not an array"),
        (DOCUMENT.replace('"way": "nat"', '"way": "magic"', 1), "is 'magic', not one of"),
        (DOCUMENT.replace('"taken": 1', '"taken": 1e400, "x": 1', 1), "not a time"),
        (DOCUMENT.replace('"taken": 1', '"taken": NaN, "x": 1', 1), "not a time"),
        (DOCUMENT.replace('"taken": 1', '"taken": 1' + "0" * 400 + ', "x": 1', 1), "not a time"),
    ],
)
def test_the_refusal_says_what_is_wrong(text: str, why: str) -> None:
    with pytest.raises(saved.Unreadable, match=why):
        saved.loads(text)


def test_a_model_without_namespaces_is_refused() -> None:
    document = {**json.loads(DOCUMENT), "namespaces": []}
    with pytest.raises(saved.Unreadable, match=r"namespaces is empty"):
        saved.loads(json.dumps(document))


def test_fields_of_a_later_version_are_left_out() -> None:
    document = {**json.loads(DOCUMENT), "colour": "red"}
    assert saved.loads(json.dumps(document)) == worlds.healthy()


def test_what_is_not_utf8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.json"
    path.write_bytes(b'{"schema": "\xff"}')
    with pytest.raises(saved.Unreadable, match="not UTF-8"):
        saved.read(os.fspath(path))


def test_a_device_or_pipe_is_written_to_and_a_links_target_replaced(tmp_path: Path) -> None:
    """--snapshot /dev/full must not put a file in the device's place."""
    pipe, file, link = tmp_path / "pipe", tmp_path / "host.json", tmp_path / "latest"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDWR)
    host = replace(worlds.healthy(), taken=1.0)
    saved.write(str(pipe), host)
    assert pipe.is_fifo()
    assert json.loads(os.read(reader, 1 << 16))["taken"] == 1.0
    os.close(reader)
    link.symlink_to(file)
    saved.write(str(link), host)
    assert link.is_symlink()
    assert saved.read(str(file)) == host

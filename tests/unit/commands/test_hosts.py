"""--from: the model of a file in place of this host's."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import pytest

from cni_py.commands import hosts
from cni_py.commands.report import LACKING, USAGE, Failure
from cni_py.host import saved
from tests.unit.host import worlds


def options(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    hosts.add_options(parser)
    return parser.parse_args(words)


def test_a_saved_model_is_read_from_a_file_and_from_stdin(tmp_path: Path) -> None:
    path = tmp_path / "host.json"
    saved.write(str(path), worlds.healthy())
    assert hosts.load(options("--from", str(path))) == worlds.healthy()
    kept = os.dup(0)
    with path.open("rb") as file:
        os.dup2(file.fileno(), 0)
    try:
        assert hosts.load(options("--from", "-")) == worlds.healthy()
    finally:
        os.dup2(kept, 0)
        os.close(kept)


@pytest.mark.parametrize(
    ("content", "words", "status"),
    [
        (None, "cannot read", LACKING),
        ("{}", "not a host saved by `cni-py show --snapshot`", USAGE),
        ("{", "not JSON", USAGE),
    ],
)
def test_what_cannot_be_read_is_a_sentence(tmp_path: Path, content: str | None, words: str, status: int) -> None:
    path = tmp_path / "host.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(Failure, match=words) as caught:
        hosts.load(options("--from", str(path)))
    assert caught.value.status == status
    assert str(path) in str(caught.value)


def test_a_path_that_is_none() -> None:
    with pytest.raises(Failure):
        hosts.load(options("--from", "a\0b"))

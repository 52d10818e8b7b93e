"""The stage of the tests of UDP."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
from lab import Lab

from tests.portfwd.relay.udp_stage import Stage


@pytest.fixture
def stage(lab: Lab) -> Iterator[Stage]:
    made = Stage(lab)
    with contextlib.closing(made):
        yield made

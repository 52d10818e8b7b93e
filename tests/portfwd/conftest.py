"""What most tests of portfwd run in."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from lab import Lab

from tests.conftest import need_root


@pytest.fixture(scope="module")
def machine() -> Iterator[Lab]:
    """A lab for all tests of a file, each of which leaves nothing in it."""
    need_root()
    with Lab.from_yaml("lan.yaml") as lab:
        yield lab

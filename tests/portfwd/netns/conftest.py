"""The subject of these tests, for each of them a new one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from portfwd.netns.sockets import Places
from tests.conftest import need_root
from tests.portfwd.netns.inside import (
    Clock,
    here,
)


@pytest.fixture
def there() -> Iterator[Places]:
    """What is tested, with time standing still."""
    need_root()
    found = Places(Clock())
    home = here()
    yield found
    found.close()
    assert here() == home

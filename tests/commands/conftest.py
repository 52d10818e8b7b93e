"""The host of these tests, and who sits before it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from lab import Lab
from runtime import Plugins

from tests.commands.hand import NETWORK, Hand


@pytest.fixture
def hand(lab: Lab, plugins: Plugins, tmp_path: Path) -> Hand:
    network = {"cniVersion": plugins.versions[-1], **NETWORK}
    conf = tmp_path / "lab.conflist"
    conf.write_text(json.dumps(network))
    hand = Hand(lab, plugins.whose, plugins.directory, conf, network)
    hand.write("/etc/cni/net.d/50-lab.conflist", json.dumps(network))
    return hand

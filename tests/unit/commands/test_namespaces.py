"""Network namespaces as people name them."""

import os
from pathlib import Path

import pytest

from cni_py.commands.namespaces import find
from cni_py.commands.report import Failure


@pytest.mark.parametrize(
    ("text", "path", "container_id"),
    [
        ("web", "/run/netns/web", "web"),
        ("/run/netns/web", "/run/netns/web", "web"),
        ("/var/run/netns/web", "/run/netns/web", "web"),
        ("/run/netns/../netns/web", "/run/netns/web", "web"),
        ("999999999", "/proc/999999999/ns/net", "pid-999999999"),
        ("/proc/999999999/ns/net", "/proc/999999999/ns/net", "pid-999999999"),
    ],
)
def test_one_namespace_has_one_id_however_it_is_named(text: str, path: str, container_id: str) -> None:
    found = find(text)
    assert (found.path, found.container_id) == (path, container_id)


def test_the_id_of_a_path_does_not_depend_on_where_we_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find("./ns").container_id == find(f"{tmp_path}/ns").container_id
    assert find("./ns").container_id != find("/other/ns").container_id
    assert find("./ns").path == os.path.join(tmp_path, "ns")


def test_a_name_that_is_no_container_id_has_a_digest_for_one() -> None:
    assert find("my net").path == "/run/netns/my net"
    assert find("my net").container_id.startswith("netns-")


@pytest.mark.parametrize("text", [".", ".."])
def test_a_folder_is_no_name(text: str) -> None:
    with pytest.raises(Failure, match="is not the name of a network namespace"):
        find(text)

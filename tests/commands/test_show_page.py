"""The page of `cni-py show` in a real browser, as a file and live. The browser is in a lab, and reaches nothing else."""

from __future__ import annotations

import dataclasses
import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lab import Lab
from node import read_line

from cni_py.commands.main import main
from cni_py.host import saved
from cni_py.host.model import Host
from cni_py.show.page import page
from tests.browser import Browser, Page
from tests.clients import fetch_debs
from tests.lacking import missing, need_root, unavailable
from tests.unit.show import models

CNI_PY = str(Path(sys.executable).with_name("cni-py"))
START_S = 30.0


@pytest.fixture(scope="module")
def host() -> Iterator[Lab]:
    need_root()
    with Lab.from_yaml("lan.yaml") as lab:
        yield lab


@pytest.fixture(scope="module")
def browser(host: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    try:
        debs = fetch_debs.fetch_browser()
    except fetch_debs.Unknown as error:
        unavailable(str(error))
    except (fetch_debs.Unavailable, OSError, subprocess.SubprocessError) as error:
        missing(f"Debian's chromium cannot be had: {error}")
    with Browser(debs, tmp_path_factory.mktemp("browser"), host["host"].popen) as started:
        yield started


def opened(browser: Browser, folder: Path, model: Host, *, dark: bool = False) -> Page:
    path = folder / "host.html"
    path.write_text(page(model))
    return browser.open(path.as_uri(), dark=dark)


@pytest.mark.parametrize(
    ("options", "status", "said"),
    [
        (["--serve", "192.0.2.1:80"], 2, "it listens on this host's loopback addresses and on Unix sockets alone"),
        (["--serve", "8000"], 2, "neither an address and a port"),
        (["--serve", "unix:/proc/none"], 1, "cannot listen at /proc/none: No such file or directory"),
        (["--serve", "127.0.0.1", "--svg"], 2, "--serve and --svg do not go together"),
        (["--html", "--snapshot", "x"], 2, "--snapshot and --html do not go together"),
    ],
)
def test_what_is_refused(
    saved_host: Path, options: list[str], status: int, said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["show", "--from", str(saved_host), *options]) == status
    assert said in capfd.readouterr().err


@pytest.mark.parametrize("form", ["svg", "html"])
def test_files_are_utf_8_whatever_the_locale(saved_host: Path, form: str) -> None:
    latin = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [CNI_PY, "show", "--from", str(saved_host), f"--{form}"]
    done = subprocess.run(command, env=latin, capture_output=True, timeout=START_S, check=True)
    assert "✗" in done.stdout.decode()


@pytest.fixture
def saved_host(tmp_path: Path) -> Path:
    path = tmp_path / "host.json"
    saved.write(str(path), models.documented())
    return path


def listed(shown: Page) -> list[str]:
    found: list[str] = shown.value("[...document.querySelectorAll('#lists button')].map((one) => one.textContent)")
    return found


def test_a_page_asks_for_nothing_and_complains_of_nothing(browser: Browser, tmp_path: Path) -> None:
    shown = opened(browser, tmp_path, models.example())
    assert shown.requests == [(tmp_path / "host.html").as_uri()]
    assert shown.errors == []
    assert shown.value("document.title") == "node7: container networks"
    assert shown.value("document.querySelector('#findings h2').textContent").startswith("What is wrong: ")


def test_texts_fit_their_boxes_in_the_browser(browser: Browser, tmp_path: Path) -> None:
    """The widths of texts are estimated from above when the drawing is made."""
    shown = opened(browser, tmp_path, models.example())
    outside = shown.value("""[...document.querySelectorAll('g.member, g.chip, g.bar, g.publisher')].flatMap((group) => {
            const box = group.querySelector('rect').getBBox();
            return [...group.querySelectorAll('text')].filter((one) => {
                const text = one.getBBox();
                return text.x < box.x || text.x + text.width > box.x + box.width || text.y + text.height > box.y + box.height;
            });
        }).map((one) => one.textContent)""")
    assert outside == []


def test_the_search_finds_names_ids_addresses_and_ports(browser: Browser, tmp_path: Path) -> None:
    shown = opened(browser, tmp_path, models.example())
    everything = len(listed(shown))
    for text, expected in (
        ("old-web", "old-web"),
        ("beefbeef", "camera"),
        ("10.89.0.2", "00055f3c9a1b"),
        ("8443", "8443/tcp"),
    ):
        shown.press("/", "/")  # the key, and no character in the field
        shown.value("byId('search').select()")
        shown.write(text)
        found = listed(shown)
        assert any(expected in one for one in found), text
        assert 0 < len(found) < everything / 3
        assert shown.value("byId('count').textContent") == f"{len(found)} found"
        dimmed, clear = (
            shown.value(f"document.querySelectorAll('#picture .member{one}').length")
            for one in (":not(.match)", ".match")
        )
        assert dimmed > clear > 0


def test_a_click_shows_all_fields_and_what_belongs_to_it(browser: Browser, tmp_path: Path) -> None:
    shown = opened(browser, tmp_path, models.example())
    web = "#picture .member[data-id='namespace:4026532001']"
    shown.click(web)
    details = shown.value("byId('details').innerText")
    for part in ("web", "docker.io/library/nginx", "4001", "/run/netns/cni-1", "0.0.0.0:8080/tcp", "veth00000001"):
        assert part in details
    assert shown.value(f"document.querySelector(\"{web}\").classList.contains('selected')")
    shown.click("#details [data-object='port:0']")
    assert "198.51.100.0/24" in shown.value("byId('details').innerText")
    shown.press("Escape")
    assert shown.value("byId('details').childElementCount") == 0
    shown.click("#findings .error")
    assert models.example().findings[0].what in shown.value("byId('details').innerText")


def test_the_keyboard_reaches_every_object(browser: Browser, tmp_path: Path) -> None:
    shown = opened(browser, tmp_path, models.lone())
    reached = set()
    for _ in range(60):
        shown.press("Tab")
        reached.add(shown.value("document.activeElement.dataset?.id ?? document.activeElement.id"))
        if "namespace:4026532001" in reached:
            break
    assert {"search", "theme", "port:0", "namespace:4026532001"} <= reached
    shown.press("Enter")
    assert "container web" in shown.value("byId('details').innerText")
    shown.press("Escape")
    assert shown.value("document.activeElement.dataset.id") == "namespace:4026532001"


def test_dark_and_light(browser: Browser, tmp_path: Path) -> None:
    """As the system has it, and as the button says."""
    shown = opened(browser, tmp_path, models.lone(), dark=True)

    def colours() -> list[bool]:
        """Whether page and drawing are dark."""
        said = shown.value(
            "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.querySelector('.member rect')).fill]"
        )
        return [sum(map(int, one.strip("rgb()").split(","))) < 3 * 128 for one in said]

    assert colours() == [True, True]
    shown.scheme("light")
    assert colours() == [False, False]
    shown.click("#theme")
    assert colours() == [True, True]
    shown.scheme("dark")
    shown.click("#theme")
    assert colours() == [False, False]
    assert shown.value("byId('theme').textContent") == "Theme: light"


def test_hostile_names_run_nothing(browser: Browser, tmp_path: Path) -> None:
    """In every place of the model where a text can be, and with every object looked at."""
    evil = "</script></title></style></text><img src=x onerror=alert(1)><script>alert(2)</script>'\"&lt;{{data}}\x1b\u202e\u2028"
    host: Host = changed(models.example(), evil)
    shown = opened(browser, tmp_path, host)
    seen = shown.value("""(async () => { let seen = 0;
        for (const one of state.objects) { select(one.id); seen += 1; }
        byId('search').value = 'onerror'; showLists(); paint(); showDrawing(byId('picture').innerHTML); show();
        await new Promise((done) => setTimeout(done, 50));
        return seen; })()""")
    assert seen > 50
    assert shown.value("document.images.length + document.querySelectorAll('script').length") == 2  # the data, and ours
    assert shown.errors == []
    assert shown.requests == [(tmp_path / "host.html").as_uri()]


def changed(value: Any, evil: str) -> Any:
    """The same with a text behind each text that the model does not choose from a list."""
    fixed = (
        "level",
        "live",
        "source",
        "way",
        "kind",
        "key",
        "peer_namespace",
        "namespace",
        "protocol",
        "operstate",
        "runtime",
        "type",
    )
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {one.name: getattr(value, one.name) for one in dataclasses.fields(value)}
        return dataclasses.replace(
            value, **{name: one if name in fixed else changed(one, evil) for name, one in fields.items()}
        )
    if isinstance(value, tuple):
        return tuple(changed(one, evil) for one in value)
    return f"{value}{evil}" if isinstance(value, str) and value else value


def test_hundreds_of_containers(browser: Browser, tmp_path: Path) -> None:
    shown = opened(browser, tmp_path, models.crowd(1, 300))
    assert shown.value("document.querySelectorAll('#picture .member').length") == 300
    shown.value("byId('search').focus()")
    shown.write("net0-app123")
    shown.press("Enter")
    assert "net0-app123" in shown.value("byId('details').innerText")
    assert shown.errors == []


def test_a_live_page_follows_the_kernel(browser: Browser, host: Lab) -> None:
    """`cni-py show --serve` in a namespace; the links that appear there and go."""
    server = host["host"].popen([CNI_PY, "show", "--serve"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert server.stdout is not None
    try:
        url = read_line(server.stdout.fileno(), START_S)
        shown = browser.open(url)
        assert shown.value("byId('live').textContent") == "live"
        assert "lan0" in shown.value("byId('picture').textContent")
        host["host"].run(["ip", "link", "add", "bridge-of-test", "type", "bridge"], check=True)
        shown.until("byId('picture').textContent.includes('bridge bridge-of-test')")
        shown.click("#picture .bar[data-id^='link:']")
        assert "bridge-of-test" in shown.value("byId('details').innerText")
        host["host"].run(["ip", "link", "del", "bridge-of-test"], check=True)
        shown.until("!byId('picture').textContent.includes('bridge-of-test')")
        assert shown.value("byId('details').childElementCount") == 0
        # The kernel may have changed something, too
        asked = {re.sub(r"\?since=\d+$", "?since=N", one) for one in shown.requests}
        assert asked == {url, f"{url}events?since=N"}
        assert shown.errors == []
        assert browser.open(f"{url[:-2]}/").value("document.body.textContent") == "403 Forbidden\n"
    finally:
        server.terminate()
        server.stdout.close()
        assert server.wait(START_S) == 0


def test_a_live_part_outlives_what_it_shows(host: Lab) -> None:
    """`cni-py show LINK --serve`, and the link goes; without a browser."""
    host["host"].run(["ip", "link", "add", "br-part", "type", "bridge"], check=True)
    words = [CNI_PY, "show", "br-part", "--serve", "localhost"]
    server = host["host"].popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert server.stdout is not None
    try:
        url = read_line(server.stdout.fileno(), START_S)
        events = ["curl", "--silent", "--no-buffer", "--max-time", "30", f"{url}events?since=1"]
        with host["host"].popen(events, stdout=subprocess.PIPE) as client:
            assert client.stdout is not None
            host["host"].run(["ip", "link", "del", "br-part"], check=True)
            state = ""
            while not state.startswith("data: ") or "br-part" in state:  # something else may change before it
                state = read_line(client.stdout.fileno(), START_S)
                assert client.poll() is None
            client.terminate()
        assert json.loads(state.removeprefix("data: "))["objects"][0]["kind"] == "host"
        assert server.poll() is None
    finally:
        server.send_signal(signal.SIGINT)
        server.stdout.close()
        assert server.wait(START_S) == 130

"""The documents and the example configurations are run as they stand, on a lab's host."""

from __future__ import annotations

import json
import os
import re
import sys
from importlib.util import find_spec
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from lab import Lab

import cni_py
from cni_py.commands import exec as command
from cni_py.protocol import conflist
from cni_py.run import MODULES
from tests.plugins.conftest import RARE, need_kind

ROOT = Path(__file__).parents[2]
HOME = Path(cni_py.__file__).resolve().parent.parent
DOCS = sorted((ROOT / "docs").glob("*.md"))
CONFS = sorted((ROOT / "conf").glob("*.conflist"))


def blocks(document: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", document.read_text(), re.DOTALL | re.MULTILINE)


@pytest.fixture
def commands(tmp_path: Path) -> Path:
    """A directory with our two commands, as an environment's bin/ has them."""
    for name, module in (("cni-py", "main"), ("cni-py-exec", "exec")):
        start = (
            f"import sys; sys.path.append({str(HOME)!r}); from cni_py.commands.{module} import main; sys.exit(main())"
        )
        (tmp_path / name).write_text(f"#!{sys.executable}\n{start}\n")
        (tmp_path / name).chmod(0o755)
    return tmp_path


def shell(lab: Lab, commands: Path, script: str, *bin_dirs: Path) -> CompletedProcess[str]:
    environ = {"PATH": f"{commands}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
    if bin_dirs:
        environ |= {"CNI_PATH": ":".join(map(str, bin_dirs)), "PYTHONPATH": str(HOME)}
    text = f"set -eux\ncd {commands}\n{script}"
    return lab["host"].run(["bash", "-c", text], env=environ, timeout_s=60)


def put(path: str, text: str) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text)


GUIDE = ROOT / "docs" / "guide.md"
# A command of the guide whose output is shown: <!-- output: COMMAND -->, the block, <!-- end -->
SHOWN = re.compile(r"(<!-- output: (.*?) -->\n```\n)(.*?)(```\n<!-- end -->)", re.DOTALL)
MARK = "@@@ "
# What differs from host to host, and from run to run
VARIES = (
    (r"veth[0-9a-f]{8}", "veth…"),
    (r"(?:[0-9a-f]{2}:){5}[0-9a-f]{2}", "MAC"),
    (r"handle \d+", "handle N"),
    (r"\((pid )?\d+\)", "(PID)"),
    (r"(?m)^.* lladdr .*\n", ""),  # a neighbour's entry, which comes and goes
    (r"net:\[\d+\]", "net:[N]"),
    (r"\d{4}-\d\d-\d\d \d\d:\d\d UTC", "then"),
    (r"(?m)^.*, cni-py [0-9].*$", "kernel, version, time"),
    (r"(?m)^[\w.-]+(?=  \d+ containers? in )", "host"),
)


def without_varying(text: str) -> str:
    for pattern, word in VARIES:
        text = re.sub(pattern, word, text)
    return re.sub(r"[ ─]+", " ", text)


def outputs(stdout: str) -> dict[str, str]:
    """What each of the marked commands has printed."""
    parts = stdout.split(MARK)[1:]
    return {command: text for command, _, text in (part.partition("\n") for part in parts) if command}


def test_the_guide_runs_as_it_stands(lab: Lab, commands: Path) -> None:
    if find_spec("cni_py.conf") is None:  # a bare checkout: only the installed package has it to install
        lab["host"].python(put, "/etc/cni/net.d/10-cni-py.conflist", (ROOT / "conf" / "cni-py.conflist").read_text())
    before = lab.snapshot("host")
    script = "".join(blocks(GUIDE, "sh"))
    shown = {match[2]: match[3] for match in SHOWN.finditer(GUIDE.read_text())}
    assert len(shown) >= 4, "the reading of the guide is broken"
    for line in shown:
        assert line in script
        script = re.sub(
            rf"(?m)^({re.escape(line)}(?: \|\| true)?)$", rf"echo '{MARK}{line}'\n\1\necho '{MARK}'", script
        )
    done = shell(lab, commands, f"export COLUMNS=110\n{script}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "\n200\n" in done.stdout
    assert "tcp . 8080 comment" in done.stdout
    assert "everything is as ADD made it" in done.stdout
    after = lab.snapshot("host")
    assert sorted(after["links"]) == sorted([*before["links"], "cni-py0"])  # type: ignore[call-overload, misc]  # dicts
    printed = outputs(done.stdout)
    if os.environ.get("CNI_PY_WRITE_DOCS"):  # python -m pytest with it writes the outputs anew
        GUIDE.write_text(SHOWN.sub(lambda match: f"{match[1]}{printed[match[2]]}{match[4]}", GUIDE.read_text()))
    for line, text in shown.items():
        assert without_varying(printed[line]) == without_varying(text), f"the guide shows another output of {line}"


def test_the_examples_of_the_manual_run_as_they_stand(lab: Lab, commands: Path, our_bin_dir: Path) -> None:
    lab["host"].python(put, "/etc/cni/net.d/10.conflist", (ROOT / "conf" / "cni-py.conflist").read_text())
    for block in blocks(ROOT / "docs" / "cni-py-exec.md", "sh"):
        done = shell(lab, commands, block, our_bin_dir)
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_manual_lists_every_option() -> None:
    text = (ROOT / "docs" / "cni-py-exec.md").read_text()
    documented = set(
        re.findall(r"(?<![\w-])(--?[a-z][a-z-]*)", text.partition("## Options")[2].partition("\n## Plans")[0])
    )
    real = {option for action in command.parser()._actions for option in action.option_strings}
    assert documented == real
    assert all(f"`{verb}`" in text for verb in command.VERBS)


def test_the_documented_plugin_works(lab: Lab, commands: Path, our_bin_dir: Path) -> None:
    document = ROOT / "docs" / "writing-a-plugin.md"
    (code,), (conf,), (script,) = (blocks(document, language) for language in ("python", "json", "sh"))
    plugin = commands / "behind"
    plugin.write_text(f"#!{sys.executable}\n" + code.partition("\n")[2])
    plugin.chmod(0o755)
    (commands / "routed.conflist").write_text(conf)
    done = shell(lab, commands, script, our_bin_dir, commands)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "203.0.113.0/24 via 10.91.0.2 dev cni-routed" in done.stdout
    route = "ip route show 203.0.113.0/24; ip -6 route show 2001:db8:113::/48"
    gone = shell(lab, commands, route)
    assert (gone.returncode, gone.stdout) == (0, "")

    add, check, delete = (f"cni-py-exec {verb} ./routed.conflist vpn" for verb in ("ADD", "CHECK", "DEL"))
    done = shell(lab, commands, f"{add}\nip route delete 203.0.113.0/24\n{check}", our_bin_dir, commands)
    assert done.returncode == 1
    assert "there is no route to 203.0.113.0/24 via 10.91.0.3" in done.stderr
    done = shell(lab, commands, delete, our_bin_dir, commands)
    assert done.returncode == 0, done.stderr

    forgotten = f"{add}\nrm /var/lib/cni/results/routed-vpn-eth0\ncni-py-exec GC ./routed.conflist\n{route}"
    done = shell(lab, commands, forgotten, our_bin_dir, commands)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " via " not in done.stdout

    (commands / "bad.conflist").write_text(conf.replace("203.0.113.0/24", "203.0.113.0"))
    done = shell(lab, commands, "cni-py-exec ADD ./bad.conflist vpn", our_bin_dir, commands)
    assert (done.returncode, "plugin behind (code 7)" in done.stderr) == (1, True)


@pytest.mark.parametrize("document", [ROOT / "README.md", ROOT / "CHANGELOG.md", *DOCS], ids=lambda path: path.name)
def test_files_named_in_a_document_exist(document: Path) -> None:
    text = document.read_text()
    named = re.findall(r"`((?:cni_py|plugins|portfwd|conf|bench|tests|tools|netns-fixtures)/[\w./-]+)`", text)
    linked = re.findall(r"\]\((?!http)([^)#]+)\)", text)
    assert [name for name in named if not (ROOT / name).exists()] == []
    assert [name for name in linked if not (document.parent / name).exists()] == []


def test_there_is_an_example_for_every_plugin() -> None:
    assert {path.stem for path in CONFS} == {"cni-py", *MODULES}


# dhcp needs a server: tests/plugins/test_dhcp.py
@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, marks=[pytest.mark.debian_kernel] if path.stem in RARE else [])
        for path in CONFS
        if path.stem != "dhcp"
    ],
    ids=lambda path: path.name,
)
def test_every_example_runs(lab: Lab, commands: Path, our_bin_dir: Path, path: Path) -> None:
    network = conflist.read(path)
    for plugin in network.types:
        need_kind(lab, plugin)
    if network.types[0] == "host-device":
        lab["host"].run(["ip", "link", "add", "lan1", "type", "veth", "peer", "name", "port1"], check=True)
    ports = "-p 8080:80" if network.declares("portMappings") else ""
    ifname = "--ifname lo" if network.types == ["loopback"] else ""
    ip = "--ip 10.88.0.20" if path.stem == "host-local" else ""
    words = f"{path} c1 {ifname}"
    script = "\n".join(f"cni-py-exec {verb} {path}" for verb in ("VERSION", "STATUS", "GC"))
    done = shell(lab, commands, f"cni-py-exec ADD {words} {ports} {ip} --json", our_bin_dir)
    assert done.returncode == 0, done.stderr
    addresses = [entry["address"] for entry in json.loads(done.stdout)["ips"]]
    assert len(addresses) == 2
    assert not ip or addresses == ["10.88.0.20/24", "fd00:88::10/64"]
    done = shell(lab, commands, f"{script}\ncni-py-exec CHECK {words}\ncni-py-exec DEL {words}", our_bin_dir)
    assert done.returncode == 0, done.stdout + done.stderr

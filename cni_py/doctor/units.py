"""Services of systemd: those of cni-py that are installed, and those that a network needs."""

from __future__ import annotations

from collections.abc import Iterator

from cni_py.doctor.checks import of_facts, some
from cni_py.doctor.values import Facts, Unit
from cni_py.host.model import Finding, Host


def own(facts: Facts) -> Iterator[Unit]:
    return (unit for unit in facts.units if unit.name.startswith(("cni-py", "portfwd")))


@of_facts("the programs of installed units are there", "unit-program-missing")
def programs(_host: Host, facts: Facts) -> Iterator[Finding]:
    for unit in own(facts):
        if unit.missing:
            yield Finding(
                "error",
                "unit-program-missing",
                f"unit {unit.name}",
                f"it starts {some(unit.missing)}, which is not there",
                "it cannot start",
                f"set the path in {unit.path}, then systemctl daemon-reload",
            )


@of_facts("no unit has failed", "unit-failed")
def failed(_host: Host, facts: Facts) -> Iterator[Finding]:
    for unit in own(facts):
        if unit.active == "failed":
            yield Finding(
                "error",
                "unit-failed",
                f"unit {unit.name}",
                "systemd says that it has failed",
                "",
                f"journalctl -u {unit.name}; systemctl reset-failed {unit.name}; systemctl start {unit.name}",
            )


@of_facts("installed units start at boot", "unit-not-enabled")
def enabled(_host: Host, facts: Facts) -> Iterator[Finding]:
    names = {unit.name for unit in facts.units if unit.enabled}
    for unit in own(facts):
        # A timer or socket starts its service
        starters = {f"{unit.name.rpartition('.')[0]}{suffix}" for suffix in (".timer", ".socket", ".path")}
        if not unit.enabled and not names & starters:
            yield Finding(
                "note",
                "unit-not-enabled",
                f"unit {unit.name}",
                "it is installed, and will not start at boot"
                + (", though it runs now" if unit.active == "active" else ""),
                "",
                f"systemctl enable --now {unit.name}, or remove {unit.path}",
            )


@of_facts("portfwd runs where a network needs it", "portfwd-needed")
def portfwd(host: Host, facts: Facts) -> Iterator[Finding]:
    asking = [one.path for one in facts.configs if '"userlandProxy"' in one.text and '"always"' in one.text]
    if asking and host.portfwd and not host.portfwd.startswith("running"):
        yield Finding(
            "error",
            "portfwd-needed",
            "service portfwd",
            f"{some(asking)} has `userlandProxy: always`, and portfwd is {host.portfwd}",
            "no container with published ports can be started there",
            "systemctl enable --now portfwd.socket portfwd (conf/portfwd.service)",
        )


CHECKS = (programs, failed, enabled, portfwd)

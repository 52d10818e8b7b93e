"""A check: a small pure function that looks at the model of a host, at the facts, or at both, and yields findings.

    @of_host("containers can reach other networks", "ip-forward-off")       needs the model alone
    @of_facts("the kernel has what the plugins need", "kernel-lacks")        needs the facts too, which a saved host does not have

The title says what is true where a check finds nothing: the report lists it then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from cni_py.attachment.gc import LOCK_PREFIX
from cni_py.attachment.naming import HEX
from cni_py.doctor.values import Facts
from cni_py.host.model import Finding, Host

ORDER = {"error": 0, "warning": 1, "note": 2}


@dataclass(frozen=True, slots=True)
class Check:
    """A check, with the codes of what it may find. `subject` groups checks: the module that it is in."""

    subject: str
    title: str
    codes: tuple[str, ...]
    run: Callable[[Host, Facts | None], Iterable[Finding]]
    needs_facts: bool = False


@dataclass(frozen=True, slots=True)
class Report:
    """What was found, worst first; what is fine; what could not be looked at."""

    findings: tuple[Finding, ...]
    fine: tuple[Check, ...]
    gaps: tuple[str, ...]
    about: tuple[str, ...] = ()  # sentences on what was looked at: versions, and where runtimes find plugins

    def count(self, level: str) -> int:
        return sum(one.level == level for one in self.findings)


def of_host(title: str, *codes: str) -> Callable[[Callable[[Host], Iterable[Finding]]], Check]:
    """Make a check of a function of the model."""

    def made(function: Callable[[Host], Iterable[Finding]]) -> Check:
        return Check(_subject(function), title, codes, lambda host, _: function(host))

    return made


def of_facts(title: str, *codes: str) -> Callable[[Callable[[Host, Facts], Iterable[Finding]]], Check]:
    """Make a check of a function of model and facts."""

    def made(function: Callable[[Host, Facts], Iterable[Finding]]) -> Check:
        def run(host: Host, facts: Facts | None) -> Iterable[Finding]:
            assert facts is not None, "diagnose() leaves it out"
            return function(host, facts)

        return Check(_subject(function), title, codes, run, needs_facts=True)

    return made


def _subject(function: object) -> str:
    return str(getattr(function, "__module__", "")).rpartition(".")[2]


def diagnose(checks: Iterable[Check], host: Host, facts: Facts | None) -> Report:
    """Run the checks. What the model itself found (host/health.py) comes with it; a finding that two report counts once."""
    own = host.findings if facts is None else [one for one in host.findings if not is_known_better(one, host, facts)]
    found: dict[tuple[str, str, str], Finding] = {(one.code, one.subject, one.what): one for one in own}
    fine, left_out = [], []
    for check in checks:
        if check.needs_facts and facts is None:
            left_out.append(check)
            continue
        its = list(check.run(host, facts))
        assert all(one.code in check.codes for one in its), check.title
        found |= {(one.code, one.subject, one.what): one for one in its}
        if not its:
            fine.append(check)
    gaps = [one.what for one in host.gaps]
    gaps += [f"a saved host does not tell whether {check.title}" for check in left_out]
    gaps += facts.gaps if facts is not None else ()
    ordered = sorted(found.values(), key=lambda one: (ORDER[one.level], one.code, one.subject, one.what))
    return Report(tuple(ordered), tuple(fine), tuple(dict.fromkeys(gaps)), tuple(about(host, facts)))


def about(host: Host, facts: Facts | None) -> Iterator[str]:
    """Versions, and where each runtime finds plugins."""
    versions = [f"cni-py {host.version}", f"Linux {host.kernel}"]
    if facts is not None:
        versions += [f"Python {facts.python}", f"nft {facts.nft}" if facts.nft else "no nft"]
        versions += [f"{name} {version}" for name, version in facts.iptables]
    yield ", ".join(versions)
    for runtime in facts.runtimes if facts is not None else ():
        if not runtime.without:
            yield f"{runtime.name} looks for plugins in {', then '.join(runtime.folders)} ({runtime.source})"


def is_known_better(finding: Finding, host: Host, facts: Facts) -> bool:
    """Whether the facts tell more than a finding of the model: of a configuration, or of an ADD, which may be under way."""
    if finding.code == "add-unfinished":
        locked = {name.removeprefix(LOCK_PREFIX)[:HEX] for name in facts.locked if name.startswith(LOCK_PREFIX)}
        unlocked = [one.container_id for one in host.attachments if one.unfinished and one.hex not in locked]
        return not any(finding.subject == f"container {name}" for name in unlocked)
    return finding.code == "network-unreadable"  # configs.py looks at the same files


def sysctls(host: Host) -> dict[str, str]:
    """The sysctls of the host's namespace, by the names of sysctl(8)."""
    return dict(host.root.sysctls)


def number(text: str | None) -> int | None:
    """A value as a number; None where it is none."""
    return int(text) if text is not None and text.strip().isdecimal() else None


def some(names: Iterable[str], most: int = 4) -> str:
    """ "a, b, c and 7 more"."""
    listed = list(names)
    rest = len(listed) - most
    return ", ".join(listed[:most]) + (f" and {rest} more" if rest > 0 else "")

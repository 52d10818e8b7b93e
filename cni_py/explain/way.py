"""The way of one client's first packet, and of the answer: a list of hops. Values, and the trail that collects them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NoReturn

from cni_py.explain.codes import CODES, UNKNOWN
from cni_py.explain.packet import Certainty, Packet, Step

Result = Literal["passes", "fails", "unknown"]
Verdict = Literal["answers", "fails", "unknown"]
HOPS_MAX = 150  # the walk ends there


@dataclass(frozen=True, slots=True)
class Hop:
    """One thing that happens to the packet."""

    code: str  # of codes.CODES
    where: str  # "this host", "container web"
    result: Result
    what: str  # one sentence
    evidence: tuple[str, ...] = ()  # rules with handles, elements, routes, entries: as the tools print them
    certainty: Certainty = "checked"
    steps: tuple[Step, ...] = ()  # every rule that was looked at
    back: bool = False  # it happens to the answer
    cause: str = ""  # of "fails" and "unknown"
    mend: str = ""  # the command that mends it


class Stopped(Exception):
    """The walk has ended: the trail's last hop says why."""


@dataclass(slots=True)
class Trail:
    """Hops in the order in which they happen."""

    hops: list[Hop] = field(default_factory=list)
    back: bool = False
    where: str = ""  # of the hops that are added now
    at: str = ""  # prefix of commands there
    source: str = ""  # address that the container sees
    words: dict[str, str] = field(default_factory=dict)  # for the braces in all commands

    def passes(
        self,
        code: str,
        what: str,
        *evidence: str,
        certainty: Certainty = "checked",
        steps: tuple[Step, ...] = (),
    ) -> None:
        """Add a hop. Stopped after HOPS_MAX of them."""
        self.hops.append(Hop(code, self.where, "passes", what, evidence, certainty, steps, self.back))
        if len(self.hops) > HOPS_MAX:
            self.fails("too-many-hops", f"{HOPS_MAX} hops, and no end")

    def doubts(
        self, code: str, what: str, *evidence: str, steps: tuple[Step, ...] = (), mend: str = "", **words: str
    ) -> None:
        """Add a hop that cannot be decided; the walk may go on."""
        self.hops.append(self._bad(code, "unknown", what, evidence, steps, mend, words))

    def fails(
        self,
        code: str,
        what: str,
        *evidence: str,
        steps: tuple[Step, ...] = (),
        mend: str = "",
        cause: str = "",
        **words: str,
    ) -> NoReturn:
        """Add the last hop, which fails, or is "unknown" for some codes, and raise Stopped."""
        result: Result = "unknown" if code in UNKNOWN else "fails"
        hop = self._bad(code, result, what, evidence, steps, mend, words, cause)
        self.hops.append(hop)
        raise Stopped

    def _bad(
        self,
        code: str,
        result: Result,
        what: str,
        evidence: tuple[str, ...],
        steps: tuple[Step, ...],
        mend: str,
        words: dict[str, str],
        cause: str = "",
    ) -> Hop:
        entry = CODES[code]
        certainty: Certainty = "unknown" if result == "unknown" else "checked"
        words = {**self.words, **words}
        filled = fill(entry.mend, {**words, "at": self.at, "mend": mend})
        return Hop(
            code,
            self.where,
            result,
            what,
            evidence,
            certainty,
            steps,
            self.back,
            fill(cause or entry.cause, words),
            filled,
        )


def fill(text: str, words: dict[str, str]) -> str:
    """The text with its words in braces replaced; those that are not given become "..."."""
    for name in {part.partition("}")[0] for part in text.split("{")[1:]}:
        text = text.replace(f"{{{name}}}", words.get(name, "..."))
    return text


@dataclass(frozen=True, slots=True)
class Way:
    """What becomes of one client's attempt."""

    kind: str  # of clients.KINDS
    family: int
    client: str  # "another machine", "container a2"
    packet: Packet  # the first, as the client sends it
    promised: bool  # the publication promises that this client is served
    verdict: Verdict
    hops: tuple[Hop, ...]
    sees: str = ""  # the client's address as the server sees it; "" if nothing arrives
    server: str = ""  # who answers: "container web"

    @property
    def deciding(self) -> Hop | None:
        """The first hop that fails; else the first that cannot be decided; None if it answers."""
        bad = [hop for hop in self.hops if hop.result != "passes"]
        return next((hop for hop in bad if hop.result == "fails"), bad[0] if bad else None)


def verdict_of(hops: list[Hop]) -> Verdict:
    """ "fails" if a hop fails, even after one that cannot be decided: if that one lets the packet pass, this one does not."""
    results = {hop.result for hop in hops}
    return "fails" if "fails" in results else "unknown" if "unknown" in results else "answers"

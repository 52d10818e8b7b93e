"""A rule of iptables, as iptables-save prints it, in the expressions of nft's JSON: one evaluation serves both.

A match that has no such form, or asks for what cannot be known (limits, ipsets, random numbers), is `Open`; a target that cannot
be followed is `Closed`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from cni_py.explain.chains import Open
from cni_py.explain.iptables_matches import About, Option, Part, Unclear, extension, general
from cni_py.explain.iptables_targets import target
from cni_py.explain.values import Json

FAMILIES = {4: "ip", 6: "ip6"}
ALONE = {  # options without a word
    *("-f", "--physdev-is-in", "--physdev-is-out", "--physdev-is-bridged", "--limit-iface-in", "--limit-iface-out"),
    *("--invert", "--validmark", "--loose", "--accept-local", "--notrack", "--random", "--random-fully"),
    *("--persistent", "--save-mark", "--restore-mark"),
}


@dataclass(slots=True)
class Translation:
    """What a rule's words come to."""

    expressions: list[Json] = field(default_factory=list)
    comment: str = ""


def translate(words: list[str], family: int) -> Translation:
    """The expressions of a rule, from its words after `-A CHAIN`."""
    result = Translation()
    first, matches, last, goto = _parts(words)
    protocol = next((one.words[0] for one in first.options if one.name == "-p" and one.words and not one.negated), "")
    about = About(FAMILIES[family], protocol)
    result.expressions += _understood(Part("-", first.options), about)
    for part in matches:
        if part.name == "comment":
            result.comment = next((one.words[0] for one in part.options if one.words), "")
        else:
            result.expressions += _understood(part, about)
    if last is not None:
        result.expressions += target(last, about, goto=goto)
    return result


def _understood(part: Part, about: About) -> list[Json]:
    try:
        if part.name == "-":
            return [expression for option in part.options for expression in general(option, about)]
        return extension(part, About(about.ip, about.protocol or part.name))
    except (Unclear, ValueError, IndexError, KeyError):
        name = f"-m {part.name}" if part.name != "-" else " ".join(option.name for option in part.options)
        return [Open(f"`{name}` cannot be evaluated here")]


def _parts(words: list[str]) -> tuple[Part, list[Part], Part | None, bool]:
    """General options, matches, target, and whether that is a goto. Each match's options follow its name."""
    first, matches, last, goto = Part(""), list[Part](), None, False
    part, negated, position = first, False, 0
    while position < len(words):
        word = words[position]
        following = words[position + 1] if position + 1 < len(words) else ""
        position += 1
        if word == "!":
            negated = True
            continue
        if word == "-m":
            part = Part(following)
            matches.append(part)
            position += 1
        elif word in ("-j", "-g"):
            part = last = Part(following)
            goto = word == "-g"
            position += 1
        else:
            found = _words(word, words[position:])
            position += len(found)
            (first if len(word) == len("-x") else part).options.append(Option(word, negated, found))
        negated = False
    return first, matches, last, goto


def _words(option: str, following: list[str]) -> list[str]:
    """The words that belong to an option."""
    if option in ALONE:
        return []
    if option == "--comment":
        return following[:1]
    found = []
    for word in following:
        if word == "!" or (word.startswith("-") and not word[1:2].isdigit()):
            break
        found.append(word)
    return found

"""Manual pages, made of what the parsers say with --help. Pure, but for show() and write(), which are `cni-py man`."""

import argparse
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator

from cni_py.commands.report import USAGE, Failure, did_you_mean

SECTION = 8  # commands of an administrator
SUMMARY = "show or write the manual pages"
DESCRIPTION = """\
Show the manual page of a command, or write all pages to a folder. A page has the text of the command's --help.

examples:
  {0} man {1}
  {0} man --dir /usr/local/share/man     # then `man {0}-{1}` works
  {0} man {1} | less                     # the source, in the language of man(7)
"""
HEADING = re.compile(r"(examples?|exit status)(:| and [^:]*:|, [^:]*:)\s*", re.IGNORECASE)
Parser = argparse.ArgumentParser


def add_parser(commands: "argparse._SubParsersAction[Parser]", tops: Callable[[], Iterable[Parser]]) -> None:
    """The command's options. `tops`: the programs that there are pages of, this one first."""
    first = commands._prog_prefix.split()[0]
    parser = commands.add_parser(
        "man",
        help=SUMMARY,
        description=DESCRIPTION.format(first, next(iter(commands.choices))),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("topic", metavar="COMMAND", nargs="*", help="whose page (default: the overview)")
    parser.add_argument("--dir", metavar="DIR", default="", help=f"write all pages to DIR/man{SECTION}")
    parser.set_defaults(run=lambda options: run(options, tops()), asked=True, parser=parser)


def run(options: argparse.Namespace, tops: Iterable[Parser]) -> int:
    """Show or write."""
    return write(tops, options.dir) if options.dir else show(tops, "-".join(options.topic))


def pages(tops: Iterable[Parser]) -> dict[str, str]:
    """The pages of programs and of their subcommands, by name: "cni-py-show"."""
    return {name: text for top in tops for name, text in _pages_of(top)}


def _pages_of(top: Parser, summary: str = "", above: str = "") -> Iterator[tuple[str, str]]:
    """`above`: the page of the command that this one is a subcommand of."""
    known = subcommands(top)
    others = [above] if above else []
    yield page_name(top), page(top, summary, [*others, *(page_name(one) for one, _ in known.values())])
    for one, said in known.values():
        yield from _pages_of(one, said, page_name(top))


def subcommands(top: Parser) -> dict[str, tuple[Parser, str]]:
    """Name -> parser and summary of each subcommand."""
    found = {}
    for action in top._actions:
        if isinstance(action, argparse._SubParsersAction):
            summaries = {choice.dest: choice.help or "" for choice in action._choices_actions}
            found.update({name: (one, summaries.get(name, "")) for name, one in action.choices.items()})
    return found


def page_name(parser: Parser) -> str:
    """ "cni-py show" has the page cni-py-show."""
    return parser.prog.replace(" ", "-")


def page(parser: Parser, summary: str, others: list[str]) -> str:
    """One manual page."""
    name = page_name(parser)
    body, sections = divided(f"{parser.description or ''}\n\n{parser.epilog or ''}")
    short = summary or first_sentence(body)
    lines = [f'.TH "{escaped(name.upper())}" {SECTION} "" "cni-py" "System administration"']
    lines += [".SH NAME", f"{escaped(name)} \\- {escaped(short)}"]
    usage = re.sub(r"\s+", " ", parser.format_usage().removeprefix("usage:")).strip()
    lines += [".SH SYNOPSIS", f".B {escaped(usage)}", ".SH DESCRIPTION", *text(body)]
    known = subcommands(parser)
    if known:
        lines.append(".SH COMMANDS")
        for word, (_, said) in known.items():
            lines += [".TP", f".B {escaped(word)}", escaped(said)]
    lines += options(parser)
    for title, content in sections:
        lines += [f".SH {escaped(title.upper())}", *text(content)]
    lines += [".SH SEE ALSO", ", ".join(f"{escaped(one)}({SECTION})" for one in others)] if others else []
    return "\n".join(lines) + "\n"


def divided(whole: str) -> tuple[str, list[tuple[str, str]]]:
    """The description, and the parts that have a title: "examples:", "exit status:"."""
    sections: list[tuple[str, list[str]]] = [("", [])]
    for line in whole.splitlines():
        match = HEADING.match(line)
        if match:
            sections.append((match[1], [line[match.end() :]] if line[match.end() :] else []))
        else:
            sections[-1][1].append(line)
    return "\n".join(sections[0][1]).strip(), [(title, "\n".join(lines).strip("\n")) for title, lines in sections[1:]]


def first_sentence(body: str) -> str:
    """For the line under NAME, without its full stop."""
    return re.split(r"\.(?:\s|$)|;\s|:\s", " ".join(body.split()), maxsplit=1)[0]


def options(parser: Parser) -> list[str]:
    """ARGUMENTS and OPTIONS."""
    formatter = parser._get_formatter()
    lines = []
    for title, named in (("ARGUMENTS", False), ("OPTIONS", True)):
        actions = [
            action
            for action in parser._actions
            if bool(action.option_strings) == named
            and action.help is not argparse.SUPPRESS
            and not isinstance(action, argparse._SubParsersAction)
        ]
        lines += [f".SH {title}"] if actions else []
        for action in actions:
            said = formatter._expand_help(action) if action.help else ""
            lines += [".TP", f".B {escaped(formatter._format_action_invocation(action))}", *text(said)]
    return lines


def text(body: str) -> list[str]:
    """Paragraphs are filled; indented lines stay as they are."""
    lines: list[str] = []
    fixed = False
    for line in body.splitlines():
        indented = line.startswith(" ")
        if indented != fixed and line:
            lines.append(".nf" if indented else ".fi")
            fixed = indented
        if line.strip():
            lines.append(escaped(line))
        elif lines and lines[-1] != ".PP":
            lines.append(".PP")
    return [*lines, ".fi"] if fixed else lines


def escaped(line: str) -> str:
    """The characters that man(7) would interpret, escaped."""
    line = line.replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{line}" if line.startswith((".", "'")) else line


def show(tops: Iterable[Parser], topic: str) -> int:
    """Print the page; on a terminal by man(1), if it is there. Failure 2 for a page that there is not."""
    import shutil
    import subprocess

    known = pages(tops)
    first = next(iter(known))
    name = next((one for one in (topic, f"{first}-{topic}") if one in known), "") if topic else first
    if not name:
        near = did_you_mean(topic, [one.removeprefix(f"{first}-") for one in known])
        raise Failure(f"there is no page {topic}{near}", USAGE)
    program = shutil.which("man") if sys.stdout.isatty() else None
    if program is None:
        sys.stdout.write(known[name])
        return 0
    return subprocess.run([program, "-l", "-"], input=known[name], text=True, check=False).returncode


def write(tops: Iterable[Parser], folder: str) -> int:
    """Write all pages below a folder. Failure 1."""
    target = os.path.join(folder, f"man{SECTION}")
    for name, source in pages(tops).items():
        path = f"{target}/{name}.{SECTION}"
        try:
            os.makedirs(target, exist_ok=True)
            with open(path, "w", encoding="utf-8") as file:
                file.write(source)
        except OSError as error:
            raise Failure(f"cannot write {path}: {error.strerror}") from error
        print(f"write {path}")
    return 0

"""Run iptables: one reading and one `iptables-restore --noflush` per family and call.

    rules = Rules.read(4, "nat")                   iptables-save -t nat
    rules.ensure_chain(NAT, "CNI-HOSTPORT-DNAT")   noted when it is missing
    rules.ensure(NAT, "PREROUTING", rule)          noted when it is missing
    rules.commit()                                 iptables-restore --noflush: all of it or nothing, or not run at all

Rules are tuples of words as iptables prints them (man iptables, iptables-save(8)), since they are found again by their text.
Both variants of iptables work, iptables-nft and iptables-legacy: whichever the host has under that name.
"""

from cni_py import files
from cni_py.attachment.locks import Lock
from cni_py.errors import CniError, os_error
from cni_py.lean import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    Rule = tuple[str, ...]

FOLDERS = ("/usr/sbin", "/sbin", "/usr/bin", "/bin", "/usr/local/sbin")  # after PATH, which runtimes leave without sbin
TOOLS = {4: "iptables", 6: "ip6tables"}
SHOWN_MAX = 2000  # characters of what a tool has refused, in an error
WAIT_S = "5"  # for xtables' own lock, which iptables-legacy takes; ours keeps our own calls from meeting there
UNQUOTED = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.:/,!=+[]@%")
_batches: "list[Batch]" = []  # the one that runs, if any
COMMENT_MAX = 255  # XT_MAX_COMMENT_LEN - 1, linux/netfilter/xt_comment.h


class IptablesFailed(CniError):
    """iptables-save or iptables-restore has refused."""


class Rules:
    """The chains and rules of some tables of one family, and what is to be changed in them."""

    __slots__ = ("chains", "changes", "family", "new_chains", "policies")

    def __init__(self, family: int, saved: str = "") -> None:
        """`saved` is the output of iptables-save."""
        self.family = family
        self.chains: dict[tuple[str, str], list[Rule]] = {}
        self.policies: dict[tuple[str, str], str] = {}  # ACCEPT or DROP; "-" for a chain that others lead to
        self.new_chains: dict[str, list[str]] = {}  # by table; those not named by the first reading
        self.changes: dict[str, list[str]] = {}  # by table, lines for iptables-restore
        self.add(saved)

    def add(self, saved: str) -> None:
        """Take in what iptables-save says of a table."""
        table = ""
        for line in saved.splitlines():
            if line.startswith("# Table ") and "incompatible" in line:  # and iptables-nft-save ends with 0
                raise CniError("iptables cannot read its own table: somebody has changed it by other means", line[2:])
            if line.startswith("*"):
                table = line[1:]
            elif line.startswith(":"):
                chain, policy = line[1:].split(" ")[:2]
                self.chains[table, chain] = []
                self.policies[table, chain] = policy
            elif line.startswith("-A "):
                chain, *words = split(line[3:])
                self.chains.setdefault((table, chain), []).append(tuple(words))

    @classmethod
    def read(cls, family: int, *tables: str) -> "Rules":
        """What is there now; in a Batch, what will be there. CniError."""
        if _batches:
            return _batches[0].rules(family, tables)
        return cls(family, "".join(run.output() for run in start_reading(family, tables)))

    def has_chain(self, table: str, chain: str) -> bool:
        """Whether the chain is there, or will be."""
        return (table, chain) in self.chains

    def has(self, table: str, chain: str, rule: "Rule") -> bool:
        """Whether the rule is there, or will be."""
        return rule in self.chains.get((table, chain), ())

    def leads_to(self, table: str, chain: str) -> bool:
        """Whether a rule leads to the chain."""
        found = (rules for (where, _), rules in self.chains.items() if where == table)
        return any(rule[-2:] in (("-j", chain), ("-g", chain)) for rules in found for rule in rules)

    def ensure_chain(self, table: str, chain: str) -> None:
        """Make the chain, empty, if it is missing."""
        if not self.has_chain(table, chain):
            self.chains[table, chain] = []
            self.new_chains.setdefault(table, []).append(chain)

    def ensure(self, table: str, chain: str, rule: "Rule", *, first: bool = False) -> None:
        """Put the rule into the chain if it is missing: at its end, or `first`."""
        there = self.chains.setdefault((table, chain), [])
        if rule in there:
            return
        if first:
            there.insert(0, rule)
            self._note(table, "-I", chain, "1", *rule)
        else:
            there.append(rule)
            self._note(table, "-A", chain, *rule)

    def fill(self, table: str, chain: str, rules: "Sequence[Rule]") -> None:
        """Let the chain consist of these rules."""
        if self.chains.get((table, chain)) == list(rules):
            return
        if self.chains.get((table, chain)):
            self._note(table, "-F", chain)
        self.ensure_chain(table, chain)
        self.chains[table, chain] = list(rules)
        for rule in rules:
            self._note(table, "-A", chain, *rule)

    def remove(self, table: str, chain: str, wanted: "Callable[[Rule], bool]") -> None:
        """Take out the rules of a chain that `wanted` says."""
        there = self.chains.get((table, chain), [])
        for rule in [rule for rule in there if wanted(rule)]:
            there.remove(rule)
            self._note(table, "-D", chain, *rule)

    def remove_chain(self, table: str, chain: str) -> None:
        """Take out the chain and every rule that leads to it."""
        if not self.has_chain(table, chain):
            return
        for other_table, other in list(self.chains):
            if other_table == table and other != chain:
                self.remove(table, other, lambda rule: rule[-2:] in (("-j", chain), ("-g", chain)))
        self._note(table, "-F", chain)
        self._note(table, "-X", chain)
        del self.chains[table, chain]

    def _note(self, table: str, *words: str) -> None:
        self.changes.setdefault(table, []).append(" ".join(map(quote, words)))

    def text(self) -> str:
        """What iptables-restore is given; empty when nothing is to be changed."""
        lines = []
        for table in sorted(self.new_chains.keys() | self.changes.keys()):
            lines.append(f"*{table}")
            lines += [f"-N {quote(chain)}" for chain in self.new_chains.get(table, ())]
            lines += [*self.changes.get(table, ()), "COMMIT"]
        return "".join(f"{line}\n" for line in lines)

    @property
    def size(self) -> int:
        """How many changes are noted."""
        return sum(map(len, self.changes.values())) + sum(map(len, self.new_chains.values()))

    def commit(self, lock: Lock) -> "Run | None":
        """Start making the changes, all or none of a table: done when the run has ended. None when there are none."""
        text = self.text()
        self.changes, self.new_chains = {}, {}
        return Run(self.family, "-restore", ("--noflush", "-w", WAIT_S), text, lock.fd) if text else None


class Batch:
    """`with Batch() as batch:` every change() of this process only notes what it would do, until batch.commit().

    Each family is read once, and changed by one iptables-restore. Who makes one holds iptables_lock() (see locks.Holding).
    """

    __slots__ = ("_read", "_rules")

    def __init__(self) -> None:
        self._rules: dict[int, Rules] = {}
        self._read: set[tuple[int, str]] = set()

    def __enter__(self) -> "Batch":
        _batches.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        _batches.remove(self)

    def rules(self, family: int, tables: "Sequence[str]") -> Rules:
        """The rules of a family, with these tables among others."""
        rules = self._rules.setdefault(family, Rules(family))
        unread = [table for table in tables if (family, table) not in self._read]
        for run in start_reading(family, unread):
            rules.add(run.output())
        self._read.update((family, table) for table in unread)
        return rules

    def commit(self, lock: Lock) -> None:
        """Make all changes: all of a table's, or none. CniError."""
        for run in [rules.commit(lock) for rules in self._rules.values()]:
            if run is not None:
                run.output()


def change(families: "Iterable[int]", tables: "Sequence[str]", decide: "Callable[[Rules], None]") -> bool:
    """Read, let `decide` note changes and make them, for each family, under our lock. Whether there were any. CniError.

    The families are two programs beside each other: neither waits for the other.
    """
    wanted = sorted(set(families))
    if not wanted:
        return False
    if _batches:
        noted = [_batches[0].rules(family, tables) for family in wanted]
        before = sum(rules.size for rules in noted)
        for rules in noted:
            decide(rules)
        return sum(rules.size for rules in noted) > before
    with iptables_lock() as lock:
        try:
            return _change(wanted, tables, decide, lock)
        except IptablesFailed:  # maybe somebody else has changed what this rests on since the reading
            return _change(wanted, tables, decide, lock)


def _change(families: "Sequence[int]", tables: "Sequence[str]", decide: "Callable[[Rules], None]", lock: Lock) -> bool:
    reading = [(family, start_reading(family, tables)) for family in families]
    making = []
    for family, runs in reading:
        rules = Rules(family, "".join(run.output() for run in runs))
        decide(rules)
        making.append(rules.commit(lock))
    for run in making:
        if run is not None:
            run.output()
    return any(making)


def start_reading(family: int, tables: "Sequence[str]") -> "list[Run]":
    """iptables-save, for each table."""
    return [Run(family, "-save", ("-t", table)) for table in tables]


def iptables_lock() -> Lock:
    """Held over a reading of iptables' rules and the change that rests on it. Taken after those of nftables."""
    return Lock(files.lock_path("iptables"), "iptables", needed=False)  # as locks.nftables_lock()


def split(line: str) -> list[str]:
    """The words of a line as iptables prints it: parted by blanks, some in double quotes with backslashes."""
    words: list[str] = []
    word: str | None = None
    quoted = escaped = False
    for char in line:
        if escaped or (char not in '\\" ' or (char == " " and quoted)):
            word = (word or "") + char
            escaped = False
        elif char == "\\":
            escaped = True
        elif char == '"':
            quoted = not quoted
            word = word or ""
        elif word is not None:
            words.append(word)
            word = None
    return words if word is None else [*words, word]


def quote(word: str) -> str:
    """A word for iptables-restore. CniError for one that no line can hold."""
    if not word.isprintable():
        raise CniError("iptables cannot be given a control character", repr(word))
    if word and UNQUOTED.issuperset(word):
        return word
    return '"' + word.replace("\\", "\\\\").replace('"', '\\"') + '"'


def is_there(family: int) -> bool:
    """Whether the host has iptables for the family."""
    try:
        find(TOOLS[family] + "-restore")
    except CniError:
        return False
    return True


def find(name: str) -> str:
    """The path of a tool. CniError when it is not installed."""
    for folder in (*os.environ.get("PATH", "").split(":"), *FOLDERS):
        path = f"{folder}/{name}"
        if folder.startswith("/") and os.access(path, os.X_OK) and not os.path.isdir(path):
            return path
    why = "for the iptables backend, and where iptables' FORWARD drops by policy"
    raise CniError(f"{name} is needed {why} (Debian: apt install iptables)", "not found in PATH, or not executable")


class Run:
    """iptables-save or iptables-restore under way. It is killed when the call is given up: it must not outlive it."""

    __slots__ = ("name", "process", "text")

    def __init__(self, family: int, suffix: str, arguments: "Sequence[str]", text: str = "", lock_fd: int = -1) -> None:
        """Start it, with `text` on its stdin. CniError when it is not installed.

        It inherits the lock: if we are killed, nobody goes on before it has ended.
        """
        from cni_py.kernel.spawn import Process

        self.name = TOOLS[family] + suffix
        self.text = text
        path = find(self.name)
        try:
            self.process = Process([path, *arguments], os.environ, text.encode(), kept=lock_fd)
        except OSError as error:
            raise os_error(f"cannot start {path}", error) from error

    def output(self) -> str:
        """What it printed, when it has ended. CniError with its own words."""
        status = self.process.wait()
        printed, refusal = (text.decode("utf-8", "replace") for text in (self.process.stdout, self.process.stderr))
        if status != 0:
            ended = f"killed by signal {-status}" if status < 0 else f"exit status {status}"
            why = refusal.strip() or ended
            text = self.text.strip()
            shown = text if len(text) <= SHOWN_MAX else text[:SHOWN_MAX] + "..."
            raise IptablesFailed(f"{self.name} failed", "\nin:\n".join(filter(None, (why, shown))))
        return printed

"""`cni-py restore --watch`: puts back what attachments lost, at the moment when the kernel says that it went.

    notification ─→ losses ─→ look: restoration.restore_all() ─→ log: what was lost, what was put back, in how many ms
                              at once for a table, a chain, a bridge, an address, which no DEL takes away;
                              DEL_S later for elements and ports, which are a loss only if their attachment stands then

It waits in poll(2) for two netlink sockets, for the D-Bus on which firewalld says that it has reloaded, and for signals. Its own
changes send messages as well; they take nothing away, and where messages were lost the look after them finds nothing to do.
Somebody who takes the same away again and again is answered less and less often: Pace.
"""

import _socket
import errno
import os
import select
import signal
import time
from collections.abc import Callable, Sequence

from cni_py import files
from cni_py.attachment.locks import Lock
from cni_py.errors import CniError
from cni_py.kernel import libnftables, sd_notify
from cni_py.kernel.rtnl import Rtnl
from cni_py.restore import losses, restoration
from cni_py.restore.link_losses import LinkLosses, of_links
from cni_py.restore.losses import Losses, Pace, concerns_attachments, of_iptables, of_nftables
from cni_py.restore.outcome import Restored
from cni_py.restore.reloads import Reloads

DEL_S = 0.5  # after an element went: a DEL removes its elements first, and its record last
AGAIN_S = 1.0  # after messages were lost, and after a look that left out attachments that calls work on
PACE_S, WITHIN_S = 0.1, 10.0  # the second time in 10 s waits 0.1 s, the third 0.2 s, and so on
BUFFER = 32 << 20  # bytes of queued messages: a container's elements put back are 20 of them
DATAGRAM_MAX = 1 << 17
SHOWN = 5  # operations in the log, of those that were put back at once

Say = Callable[[str], None]


class Watch:
    """See the module. `say` takes a line of the log, `complain` an error."""

    def __init__(self, say: Say, complain: Say) -> None:
        self.say, self.complain = say, complain
        self.rules, self.links, self.reloads = Losses(), LinkLosses(), Reloads()
        self.iptables = False  # what leads to chains of ours in iptables is gone
        self.pace = Pace(PACE_S, WITHIN_S)
        self.due = 0.0  # when to look, of the monotonic clock; 0: not at all
        self.lost: dict[str, None] = {}  # what the next look is for
        self.told: set[str] = set()  # errors that were told
        self.held_up = False  # whether it was said that the next look waits
        self.put_back = float("-inf")  # when something was put back last
        self.ended = False
        self.sockets = (of_nftables(BUFFER), of_links(BUFFER))
        self.wakeup, self._signalled = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_DGRAM | _socket.SOCK_NONBLOCK)

    def run(self) -> None:
        """Watch until SIGTERM or SIGINT. CniError when there can be no look at all."""
        signal.set_wakeup_fd(self._signalled.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._end)
        self._load()
        self._look_now(first=True)
        sd_notify.notify(os.environ.get("NOTIFY_SOCKET", ""), "READY=1")
        while not self.ended:
            self._wait()
            self._read()
            if self.due and time.monotonic() >= self.due and not self.ended:
                self._look()
        sd_notify.notify(os.environ.get("NOTIFY_SOCKET", ""), "STOPPING=1")

    def _wait(self) -> None:
        """Until there is something to read, or it is time for a look, or for another try to reach the D-Bus."""
        poll = select.poll()
        for sock in (*self.sockets, self.wakeup):
            poll.register(sock.fileno(), select.POLLIN)
        times = [self.due] if self.due else []
        if self.reloads.fileno() >= 0:
            poll.register(self.reloads.fileno(), select.POLLIN)
        elif self.reloads.is_lost:
            times.append(self.reloads.next_try)
        poll.poll(max(0, int((min(times) - time.monotonic()) * 1000) + 1) if times else None)

    def _end(self, *_: object) -> None:
        self.ended = True

    def _load(self) -> None:
        """Load what a look may need, so that none of it is loaded while ports do not answer."""
        try:
            libnftables.binding()
        except CniError as error:
            self.complain(str(error))

    def _read(self) -> None:
        """Take in all messages that there are."""
        nft, links = self.sockets
        for data in self._datagrams(nft, self.rules.everything):
            self.rules.note(data, time.time())
            self.iptables = self.iptables or of_iptables(data)
        for data in self._datagrams(links, self.links.everything):
            self.links.note(data)
        self.reloads.read()
        while True:
            try:
                self.wakeup.recv(64)
            except BlockingIOError:
                break
        self._plan()

    def _datagrams(self, sock: "_socket.socket", lost: Callable[[], None]) -> "list[bytes]":
        found = []
        while True:
            try:
                found.append(sock.recv(DATAGRAM_MAX))
            except BlockingIOError:
                return found
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                lost()

    def _plan(self) -> None:
        """Decide when to look next, from what was read."""
        found = self.links.take_now()
        if self.rules.structure or self.rules.chains:
            found.append(self.rules.described())
            self.rules.take_settled(0.0)
        if self.iptables:
            found.append("rules of iptables")
            self.iptables = False
        if self.reloads.take():
            found.append("what firewalld forgets when it reloads")
        if found and losses.has_attachments():
            self.lost |= dict.fromkeys(found)
            self._look_at(time.monotonic())
        elif self.rules or self.links.later:
            self._look_at(time.monotonic() + DEL_S)

    def _look_at(self, when: float) -> None:
        """Look then, or earlier; not before its time when it was done again and again."""
        earliest = self.pace.earliest()
        if when < earliest:
            when = earliest
            if self.lost and not self.held_up and earliest - time.monotonic() > 1:
                self.held_up = True
                self.say(
                    f"lost again: {', '.join(self.lost)}; somebody removes it again and again, so the next "
                    f"look is {earliest - time.monotonic():.0f} s away"
                )
        self.due = min(self.due, when) if self.due else when

    def _look(self) -> None:
        self.due = 0.0
        settled = self.rules.take_settled(time.time() - DEL_S)
        if concerns_attachments(settled):
            self.lost[settled.described()] = None
        if self.links.later:
            host = Rtnl()
            try:
                self.lost |= dict.fromkeys(self.links.take_later(host))
            finally:
                host.close()
        if self.rules:
            self._look_at(time.monotonic() + DEL_S)
        if self.lost:
            self._look_now()

    def _look_now(self, *, first: bool = False) -> None:
        """Put back what is missing, and say what."""
        begun, mended, unread = time.monotonic(), list[str](), list[str]()
        lost, self.lost, self.held_up = list(self.lost), {}, False
        try:
            found = restoration.restore_all(wait=False, mended=mended, unread=unread)
        except CniError as error:
            if first:
                raise
            self._tell({str(error)})
            return
        spent_ms = 1000 * (time.monotonic() - begun)
        done = [(one, text) for one in found for text in one.done]
        # What comes in a moment later belongs to what was put back: the kernel tells of a bridge's addresses before the bridge
        late = not done and not mended and begun - self.put_back < AGAIN_S
        if lost and not late:
            self.say(f"lost: {', '.join(lost)}")
        if first:
            self.say(f"watching over {restoration.attachments(found)} attachments")
        for words in mended:
            self.say(f"put back: {words}")
        if done or mended:
            self.put_back = time.monotonic()
            self.pace.done(self.put_back)
            self._say_what(done, spent_ms)
        elif lost and not late:
            self.say(f"nothing of an attachment is missing (looked for {spent_ms:.0f} ms)")
        errors = [f"{one.key.label} {one.plugin}: error: {error}" for one in found for error in one.errors]
        self._tell({*errors, *(f"error: {words}" for words in unread)})
        if any(one.skipped == restoration.BUSY for one in found) and (done or lost):
            self.lost["what calls were at work on"] = None
            self._look_at(time.monotonic() + AGAIN_S)

    def _say_what(self, done: "Sequence[tuple[Restored, str]]", spent_ms: float) -> None:
        for one, text in done[:SHOWN]:
            self.say(f"put back: {one.key.label} {one.plugin}: {text}")
        more = len(done) - SHOWN
        if more > 0:
            self.say(f"put back: {more} more")
        count = restoration.attachments(one for one, _ in done)
        what = f": {len(done)} operations of {count} attachments" if done else ""
        self.say(f"put back in {spent_ms:.0f} ms{what}")

    def _tell(self, errors: set[str]) -> None:
        """Errors that were not told already: each look meets the same ones."""
        for error in sorted(errors - self.told):
            self.complain(error)
        self.told = errors

    def close(self) -> None:
        for sock in (*self.sockets, self.wakeup, self._signalled, self.reloads):
            sock.close()


def watch(say: Say, complain: Say) -> None:
    """Watch until SIGTERM or SIGINT. CniError: the lock's TryAgainLater when another one watches; OSError without sockets."""
    with Lock(files.lock_path(losses.WATCHER), "`cni-py restore --watch`", 0, remove=True):
        watching = Watch(say, complain)
        try:
            watching.run()
        finally:
            watching.close()

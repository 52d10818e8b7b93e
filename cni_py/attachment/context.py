"""The kernel as one call sees it: the two namespaces and our nftables tables, each opened when first used."""

from cni_py.errors import CniError, InvalidNetns, warn
from cni_py.kernel import netns
from cni_py.lean import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from cni_py.attachment.naming import Attachment
    from cni_py.kernel.nf_tables import Nft
    from cni_py.kernel.rtnl import Rtnl


class NetnsGone(CniError):
    """There is no namespace of the container at CNI_NETNS; code 999 as libcni's own plugins give it."""


class Kernel:
    """What an operation's apply(), undo() and check() are given.

    In a DEL or GC the path may lead to another namespace by now. `is_own` is asked before anything in it is touched. If it
    says no, or if the path leads to no network namespace, the container counts as gone.

    `hurried`: links are deleted without waiting until the kernel has freed them, since the process ends soon.
    """

    __slots__ = (
        "_container", "_container_fd", "_former", "_gone", "_host", "_host_fd", "_nft", "flows", "hurried", "is_own", "key",
        "netns_path", "recorded_path",
    )  # fmt: skip

    def __init__(
        self,
        key: "Attachment",
        netns_path: str,
        is_own: "Callable[[Kernel], bool] | None" = None,
        *,
        hurried: bool = False,
    ) -> None:
        self.key = key
        self.hurried = hurried
        self.netns_path = netns_path
        self.is_own = is_own
        self.flows: list[tuple[Any, bool]] | None = None  # see ports/flows.py
        self.recorded_path = ""  # where the namespace was at the ADD whose record is being undone
        self._former: Kernel | None = None
        self._gone = ""  # why the container counts as gone
        self._host: Rtnl | None = None
        self._container: Rtnl | None = None
        self._nft: Nft | None = None
        self._container_fd = -1
        self._host_fd = -1

    @property
    def host(self) -> "Rtnl":
        """Links, addresses and routes of the namespace we run in."""
        if self._host is None:
            from cni_py.kernel.rtnl import Rtnl

            self._host = Rtnl(hurried=self.hurried)
        return self._host

    @property
    def container(self) -> "Rtnl":
        """Links, addresses and routes of CNI_NETNS."""
        if self._container is None:
            from cni_py.kernel.rtnl import Rtnl

            self._container = Rtnl(self.container_fd, hurried=self.hurried)
        return self._container

    @property
    def nft(self) -> "Nft":
        """Our tables in the namespace we run in."""
        if self._nft is None:
            from cni_py.kernel.nf_tables import Nft

            self._nft = Nft()
        return self._nft

    @property
    def host_fd(self) -> int:
        """A descriptor of the namespace we run in."""
        if self._host_fd < 0:
            self._host_fd = netns.open_netns("/proc/self/ns/net")
        return self._host_fd

    @property
    def container_fd(self) -> int:
        """A descriptor of CNI_NETNS. NetnsGone when the container is gone; CniError when the path is no network namespace."""
        if self._gone:
            raise NetnsGone(self._gone)
        if self._container_fd < 0:
            try:
                self._container_fd = netns.open_netns(self.netns_path)
            except FileNotFoundError as error:
                raise NetnsGone(f'failed to open netns "{self.netns_path}": no such file or directory') from error
            except InvalidNetns as error:
                if self.is_own is not None:
                    self._disown(str(error))
                raise CniError(  # 999, as clients of the Go plugins know it
                    f'failed to open netns "{self.netns_path}"', str(error)
                ) from error
            if self.is_own is not None and not self.is_own(self):
                self._disown(f'the network namespace at "{self.netns_path}" is not that of {self.key.label} any more')
        return self._container_fd

    def _disown(self, why: str) -> None:
        """Let the container count as gone from now on. Raises NetnsGone."""
        warn(f"{why}; it is left alone")
        self._gone = why
        self.close_container()
        raise NetnsGone(why)

    def close_container(self) -> None:
        """Close what is open in the container."""
        if self._container is not None:
            self._container.close()
            self._container = None
        if self._container_fd >= 0:
            os.close(self._container_fd)
            self._container_fd = -1
        if self._former is not None:
            self._former.close_container()
            self._former = None

    def of_another(
        self, key: "Attachment", netns_path: str, is_own: "Callable[[Kernel], bool] | None" = None
    ) -> "Kernel":
        """For another attachment, with what is open of the host shared: a close() of nftables waits (see Nft.leave())."""
        kernel = Kernel(key, netns_path, is_own)
        kernel._host, kernel._nft = self.host, self.nft
        return kernel

    @property
    def has_container(self) -> bool:
        """Whether the container's namespace is there. CniError when the path is none, unless there is `is_own`."""
        if not self.netns_path:
            return False
        try:
            return self._container_fd >= 0 or self.container_fd >= 0
        except NetnsGone:
            return False

    @property
    def container_cookie(self) -> int:
        """The cookie of the container's namespace (SO_NETNS_COOKIE), unique until the next boot; 0: none, or no container."""
        return self.container.cookie if self.has_container else 0

    @property
    def container_file(self) -> str:
        """Device and inode of the container's namespace, "" without one. Unlike cookies, inodes are used again."""
        return netns.file_of(self.container_fd) if self.has_container else ""

    def lives(self, cookie: int) -> bool:
        """Whether the container's namespace is there and has that cookie. Never an error."""
        try:
            return self.has_container and self.container_cookie == cookie
        except CniError:
            return False

    def at(self, cookie: int) -> "Kernel | None":
        """The kernel with the namespace of that cookie as the container's: at CNI_NETNS, which may be empty by now or lead to
        another one, or where it was at the ADD. None when it is gone. Never an error.
        """
        if self.lives(cookie):
            return self
        if self.recorded_path and self._former is None:
            self._former = self.of_another(self.key, self.recorded_path)
        return self._former if self._former is not None and self._former.lives(cookie) else None

    @property
    def host_cookie(self) -> int:
        """The cookie of the namespace we run in."""
        return self.host.cookie

    def number_container(self) -> int:
        """The number by which the host knows the container's namespace, given now if it has none; -1 where that is refused.

        It tells later whether the namespace exists (kernel/nsid). So an ADD does not fail for want of it.
        """
        try:
            return self.host.give_nsid(self.container_fd)
        except OSError:
            return -1

    def in_container(self) -> "netns.Enter":
        """`with kernel.in_container():` runs in the container's namespace. For /proc/sys/net, which has no socket."""
        return netns.Enter(self.container_fd)

    def leave(self) -> None:
        """The call is over: end without waiting until the kernel has freed what was deleted (see Nft.leave())."""
        if self._nft is not None:
            self._nft.leave()

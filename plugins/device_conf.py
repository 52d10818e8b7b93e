"""Which device of the host a network of host-device is about: by name, MAC address, kernel path, PCI or auxiliary bus.

Source: Linux Documentation/ABI/testing/sysfs-class-net, sysfs-bus-pci; Documentation/driver-api/auxiliary_bus.rst.
"""

from cni_py.addr import parse_mac
from cni_py.errors import CniError, InvalidNetworkConfig
from cni_py.lean import os
from cni_py.protocol.netconf import string

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_py.attachment.call import Call
    from cni_py.kernel.rtnl import Link, Rtnl

PCI, AUXILIARY = "/sys/bus/pci/devices", "/sys/bus/auxiliary/devices"
DEVICES = "/sys/devices/"
# Drivers with which a program has the device to itself (DPDK): the kernel has no link for it
USERSPACE_DRIVERS = ("vfio-pci", "uio_pci_generic", "igb_uio")
LONG = (8, 20)  # bytes of a hardware address that is not of Ethernet: EUI-64, InfiniBand


class DeviceConf:
    """The keys of the configuration, "" for those that are not given; runtimeConfig.deviceID is `pci` or `auxiliary`."""

    __slots__ = ("auxiliary", "device", "device_id", "hwaddr", "path", "pci")

    def __init__(self, call: "Call") -> None:
        raw, runtime = call.conf.raw, call.conf.runtime_config
        self.device = string(raw, "device")
        self.hwaddr = string(raw, "hwaddr")
        self.path = string(raw, "kernelpath")
        self.pci = string(raw, "pciBusID")
        self.auxiliary = ""
        self.device_id = string(runtime, "deviceID") if runtime is not None else ""
        if self.device_id and is_on(PCI, self.device_id):
            self.pci = self.device_id
        elif self.device_id and is_on(AUXILIARY, self.device_id):
            self.pci, self.auxiliary = "", self.device_id

    def named(self) -> bool:
        """Whether any device is named."""
        return any((self.device, self.hwaddr, self.path, self.pci, self.auxiliary, self.device_id))

    def verify(self) -> None:
        """InvalidNetworkConfig where no device is named, or a deviceID that is not on this host."""
        if self.device_id and self.device_id not in (self.pci, self.auxiliary):
            raise InvalidNetworkConfig(
                f"runtime config DeviceID {self.device_id} not found or unsupported: it is not in {PCI} or {AUXILIARY}"
            )
        if not self.named():
            raise InvalidNetworkConfig('specify either "device", "hwaddr", "kernelpath" or "pciBusID"')

    def is_userspace(self) -> bool:
        """Whether a program has the PCI device to itself. InvalidNetworkConfig where there is none, or it has no driver."""
        if not self.pci:
            return False
        try:
            if not is_on(PCI, self.pci):
                raise FileNotFoundError(2, "no such file or directory", f"{PCI}/{self.pci}")
            driver = os.readlink(f"{PCI}/{self.pci}/driver")
        except OSError as error:
            what = "has no driver" if is_on(PCI, self.pci) else "is not on this host"
            raise InvalidNetworkConfig(
                f"error with host device: PCI device {self.pci} {what}", f"{PCI}/{self.pci}: {error.strerror}"
            ) from error
        return driver.rpartition("/")[2] in USERSPACE_DRIVERS

    def find(self, host: "Rtnl") -> "tuple[Link, str]":
        """The device's link on the host, and the name that it is to come back with. CniError where there is none."""
        link = self._find(host)
        if link is not None:
            return link, link.name
        link = fallen(host, self.device) if self.device else None
        if link is None:
            raise CniError(f"failed to find host device: {self._missing()}")
        return link, self.device

    def _find(self, host: "Rtnl") -> "Link | None":
        if self.device:
            return host.link(self.device)
        if self.hwaddr:
            mac = hardware_address(self.hwaddr)
            return next((link for link in host.links() if link.mac == mac), None)
        if self.path:
            if not self.path.startswith(DEVICES) or ".." in self.path.split("/"):
                raise InvalidNetworkConfig(
                    f'failed to find host device: kernel device path "{self.path}" must be absolute and begin with {DEVICES}'
                )
            return first_in(host, self.path)
        if self.pci:
            device = f"{PCI}/{self.pci}"
            if os.path.lexists(f"{device}/net"):
                return first_in(host, device)
            # A virtio card: the link belongs to the device on the bus virtio, which is below that of the bus PCI.
            virtio = [
                name for name in listed(device) if name.startswith("virtio") and os.path.isdir(f"{device}/{name}/net")
            ]
            if not virtio:
                raise CniError(f"failed to find host device: no net directory under pci device {self.pci}")
            return first_in(host, f"{device}/{min(virtio)}")
        return first_in(host, f"{AUXILIARY}/{self.auxiliary}")

    def _missing(self) -> str:
        """What was looked for."""
        if self.device:
            return f"Link not found: the host has no interface {self.device}"
        if self.hwaddr:
            return f"failed to find physical interface: none has the MAC address {self.hwaddr}"
        return "Link not found: the interface named in /sys is not in this network namespace"


def is_on(bus: str, device: str) -> bool:
    """Whether the device is in that folder of sysfs. A name that leads elsewhere is none."""
    return "/" not in device and "\0" not in device and device not in (".", "..") and os.path.exists(f"{bus}/{device}")


def hardware_address(text: str) -> bytes:
    """The bytes of a hardware address of any length there is. InvalidNetworkConfig."""
    groups = text.split(":")
    try:
        long = len(groups) in LONG and all(len(group) == 2 for group in groups)
        mac = bytes.fromhex("".join(groups)) if long else parse_mac(text)
    except ValueError as error:
        raise InvalidNetworkConfig(
            f'failed to find host device: failed to parse MAC address "{text}"', str(error)
        ) from error
    return mac


def first_in(host: "Rtnl", device: str) -> "Link | None":
    """The first link of a device in sysfs. CniError where it has none."""
    folder = f"{device}/net"
    try:
        names = sorted(os.listdir(folder))
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "there is a null byte in it"
        raise CniError(f"failed to find host device: failed to read directory {folder}", str(why)) from error
    if not names:
        raise CniError(f"failed to find host device: failed to find network device in path {folder}")
    return host.link(names[0])


def listed(folder: str) -> list[str]:
    """The names in a folder; none if it cannot be read."""
    try:
        return os.listdir(folder)
    except OSError:
        return []


def fallen(host: "Rtnl", name: str) -> "Link | None":
    """A device that an ended namespace has given back, with the container's name for it and the alias `name`."""
    return next((link for link in host.links() if link.alias == name and not link.up), None)

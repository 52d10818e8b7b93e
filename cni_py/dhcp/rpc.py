"""The daemon's end of the calls in ipam/dhcp.py: one connection, whoever wrote the plugin at its other end."""

from __future__ import annotations

import asyncio
import os
import socket
import struct

from cni_py.attachment.naming import Attachment
from cni_py.dhcp.answer import result_of
from cni_py.dhcp.holder import say
from cni_py.dhcp.leases import Leases
from cni_py.errors import CniError, os_error
from cni_py.ipam import gob
from cni_py.ipam.dhcp import GREETING, NOTHING, RESPONSE, RESULT, UNKNOWN, WELCOME, from_result
from cni_py.ipam.dhcp_options import provided, requested
from cni_py.ipam.gob import GobError, Struct
from cni_py.protocol.gojson import Object
from cni_py.protocol.netconf import NetConf, integer
from cni_py.protocol.result import Result

CHUNK = 1 << 16
HEAD_MAX = 8192
LISTEN_S = 0.5  # how often a caller is looked at that waits
BEGIN_S = 30.0  # for a caller to say what it wants
_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid: struct ucred, unix(7)

Fields = dict[str, "gob.Value"]


class Call:
    """What a CmdArgs says. CniError for a configuration that cannot be read."""

    def __init__(self, args: Fields) -> None:
        text = args.get("StdinData", b"")
        self.conf = NetConf.parse(text if isinstance(text, bytes) else b"")
        self.ipam = self.conf.ipam or Object()
        words = {name: str(args.get(name, "")) for name in ("ContainerID", "IfName", "Netns", "Args")}
        self.key = Attachment(self.conf.name, words["ContainerID"], words["IfName"])
        self.netns, self.args = words["Netns"], words["Args"]


class Service:
    """Answers calls with the leases."""

    def __init__(self, leases: Leases) -> None:
        self.leases = leases

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, from its beginning to its end."""
        sock = writer.get_extra_info("socket")
        try:
            if is_trusted(sock):
                await self._converse(reader, writer)
            else:
                say(None, "a caller that is not root was sent away")
        except (OSError, ValueError) as error:  # ValueError: GobError, or a line that is too long
            say(None, f"a caller was not understood: {error}")
        finally:
            writer.close()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with asyncio.timeout(BEGIN_S):
            line = await reader.readline()
            if not line:
                return  # somebody who only looks whether it is there
            if line.split()[:2] != GREETING.split()[:2]:
                raise GobError("not a caller of Go's net/rpc")
            while (await reader.readline()).strip():
                pass
        writer.write(WELCOME)
        decoder, encoder = gob.Decoder(), gob.Encoder()
        waiting: list[Fields] = []
        while data := await reader.read(CHUNK):
            waiting += decoder.feed(data)
            while len(waiting) >= 2:
                request, args, *waiting = waiting
                await self._answer(reader, writer, encoder, request, args)

    async def _answer(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        encoder: gob.Encoder,
        request: Fields,
        args: Fields,
    ) -> None:
        method = str(request.get("ServiceMethod", ""))
        head: Fields = {"ServiceMethod": method, "Seq": request.get("Seq", 0)}
        kind, body = NOTHING, Fields()
        try:
            kind, body = await self._do(reader, method, args)
        except CniError as error:
            head["Error"] = str(error)
        except OSError as error:
            head["Error"] = str(os_error("the daemon failed", error))
        if "Error" in head:
            say(None, f"{method}: {head['Error']!s}")
        writer.write(encoder.encode(RESPONSE, head) + encoder.encode(kind, body))
        await writer.drain()

    async def _acquire(self, reader: asyncio.StreamReader, call: Call) -> Result:
        """A lease, unless the caller hangs up meanwhile: then nobody would know of it. CniError."""
        options = provided(call.ipam, call.args), requested(call.ipam)
        task = asyncio.ensure_future(self.leases.acquire(call.key, call.netns, *options))
        while not (await asyncio.wait({task}, timeout=LISTEN_S))[0]:
            if reader.at_eof():
                task.cancel()
        if task.cancelled():
            raise CniError("the caller hung up")
        try:
            return result_of(task.result(), integer(call.ipam, "priority"))
        except CniError:
            self.leases.release(call.key)
            raise

    async def _do(self, reader: asyncio.StreamReader, method: str, args: Fields) -> tuple[Struct, Fields]:
        """CniError, OSError."""
        leases = self.leases
        if method == "DHCP.Status":
            return NOTHING, {}
        if method not in ("DHCP.Allocate", "DHCP.Check", "DHCP.Release", "DHCP.Collect"):
            raise CniError(f"rpc: {UNKNOWN} {method}")
        call = Call(args)
        if method == "DHCP.Allocate":
            return RESULT, from_result(await self._acquire(reader, call))
        if method == "DHCP.Check":
            return RESULT, from_result(result_of(leases.lease(call.key), integer(call.ipam, "priority")))
        if method == "DHCP.Release":
            leases.release(call.key)
        valid = call.conf.valid_attachments if method == "DHCP.Collect" else None
        if valid is not None:
            leases.collect(call.conf.name, {Attachment(call.conf.name, *each).hex for each in valid})
        return NOTHING, {}


def is_trusted(sock: socket.socket) -> bool:
    """Whether the other end is root's, or ours."""
    _, uid, _ = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return uid in (0, os.geteuid())

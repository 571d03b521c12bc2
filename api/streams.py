"""An answer of any length: through a pipe, which the server reads only as fast as the client does.

The server's own stream takes whatever it is given and keeps it in memory until the client has it. A
file it reads piece by piece, and a pipe is one: 64 KiB are under way, and who writes waits.
"""

import asyncio
import fcntl
import os
import struct
import termios
from typing import Any, Final

# A client that takes nothing for so long is gone, or as good as gone.
STUCK_S_MAX: Final = 60.0
# The server opens a pipe within a millisecond; where it never does, the client has left before.
OPENED_S_MAX: Final = 5.0
OPENED_LOOK_S: Final = 0.002


class Gone(OSError):
    """Nobody takes the rest of a stream."""


class Pipe:
    """The body of one answer. Used from one event loop, by one task."""

    def __init__(self, protocol: Any, status: int, headers: list[tuple[str, str]]) -> None:
        """Begin the answer. Holds a thread of the server while it waits for the next piece."""
        self._reading: int | None
        self._reading, self._writing = os.pipe()
        os.set_blocking(self._writing, False)
        self._written = 0
        protocol.response_file(status, headers, f"/dev/fd/{self._reading}")

    async def write(self, piece: bytes) -> None:
        """Hand on a piece, and return when the client has taken nearly all. Raises: Gone."""
        rest = memoryview(piece)
        try:
            async with asyncio.timeout(STUCK_S_MAX):
                while rest:
                    try:
                        count = os.write(self._writing, rest)
                    except BlockingIOError:
                        await self._room()
                        continue
                    self._written += count
                    rest = rest[count:]
            await self._opened()
        except (TimeoutError, BrokenPipeError) as error:
            raise Gone from error

    async def _room(self) -> None:
        loop = asyncio.get_running_loop()
        room = asyncio.Event()
        loop.add_writer(self._writing, room.set)
        try:
            await room.wait()
        finally:
            loop.remove_writer(self._writing)

    async def _opened(self) -> None:
        """Give up this end of the pipe as soon as the server has its own: then it ends with it."""
        if self._reading is None:
            return
        async with asyncio.timeout(OPENED_S_MAX):
            while self._written == _held(self._reading):  # noqa: ASYNC110
                await asyncio.sleep(OPENED_LOOK_S)
        os.close(self._reading)
        self._reading = None

    def close(self) -> None:
        """End the answer where it is."""
        os.close(self._writing)
        if self._reading is not None:
            os.close(self._reading)


def _held(pipe: int) -> int:
    """Return how many bytes a pipe holds."""
    return int(struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)))[0])

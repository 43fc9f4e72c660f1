"""Carries one TCP connection's bytes from a chosen source address: what a network does for whoever is in it."""

import asyncio
import contextlib


async def carry(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, to: tuple[str, int], source: tuple[str, int]
) -> None:
    """Connect to `to` from `source`, and carry bytes both ways until either side closes. Raises OSError."""
    with contextlib.closing(writer):
        far_reader, far_writer = await asyncio.open_connection(*to, local_addr=source)
        with contextlib.closing(far_writer):
            await _join((reader, far_writer), (far_reader, writer))


async def _join(*ways: tuple[asyncio.StreamReader, asyncio.StreamWriter]) -> None:
    """Carry bytes both ways until either side closes."""
    tasks = [asyncio.create_task(_carry(*way)) for way in ways]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()

"""`python -m demo.kube --folder F --port P [--tls]`: the stand-in as a process; ends on SIGTERM and SIGINT."""

import argparse
import asyncio
import signal
from pathlib import Path

from demo.kube import keys, resources
from demo.kube.server import Server, serve
from demo.kube.store import Store


def main() -> None:
    """Serve one cluster, whose keys and objects stand in --folder."""
    parser = argparse.ArgumentParser(prog="python -m demo.kube", description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="keys and objects of this cluster; made if missing")
    parser.add_argument("--port", type=int, required=True, help="on 127.0.0.1")
    parser.add_argument("--tls", action="store_true", help="HTTPS with the certificate in the folder")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    asyncio.run(_run(arguments.folder, arguments.port, arguments.tls))


async def _run(folder: Path, port: int, tls: bool) -> None:
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    prepared = keys.prepare(folder)
    server = Server(Store(folder / "objects.ndjson", resources.ALL), prepared)
    print(f"Kubernetes API stand-in on {'https' if tls else 'http'}://127.0.0.1:{port}", flush=True)
    await serve(server, port=port, tls=prepared if tls else None, stopped=stopped)


if __name__ == "__main__":
    main()

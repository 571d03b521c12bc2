"""A receiver that fails for a part of what it hears; a process, so that it can be killed.

`python -m tests.core.webhook_receiver PORT SECRET PERCENT SEED LOG`: a line a request is in LOG
before it is answered: the event's id and the status.
"""

import asyncio
import random
import sys
from pathlib import Path

from standardwebhooks.webhooks import Webhook, WebhookVerificationError


async def main(port: int, secret: str, percent: int, seed: int, log: Path) -> None:
    chance = random.Random(seed)
    judge = Webhook(secret)
    with log.open("a", buffering=1) as lines:

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            rows = (line.partition(": ") for line in head.split("\r\n")[1:-2])
            headers = {name.lower(): value for name, _, value in rows}
            body = await reader.readexactly(int(headers["content-length"]))
            try:
                judge.verify(body, headers)
                status = 500 if chance.random() * 100 < percent else 204
            except WebhookVerificationError:
                status = 401
            lines.write(f"{headers['webhook-id']} {status}\n")
            writer.write(f"HTTP/1.1 {status} X\r\nContent-Length: 0\r\n\r\n".encode())
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", port)
        print("ready", flush=True)
        async with server:
            await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(
        main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), Path(sys.argv[5]))
    )

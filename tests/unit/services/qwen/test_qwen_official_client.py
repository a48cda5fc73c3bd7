"""The official openai client against a whole tier over TLS: what the lab's model cannot show, calls of tools."""

import asyncio
import json
import os
import ssl
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from conftest import KEYS, StartTier
from qwen_doubles import MODEL, SAID

from tests.unit.services.authority import Authority

ROOT = Path(__file__).resolve().parents[4]


@asynccontextmanager
async def tls_before(url: str, authority: Authority) -> AsyncIterator[str]:
    """The URL of a server that takes TLS off and hands on, as the gateway does."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*authority.issue("gateway"))
    port = int(url.rpartition(":")[2])

    async def one_way(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while chunk := await reader.read(65536):
            writer.write(chunk)
            await writer.drain()
        writer.close()

    async def both_ways(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(one_way(reader, inner_writer), one_way(inner_reader, writer), return_exceptions=True)

    server = await asyncio.start_server(both_ways, "127.0.0.1", 0, ssl=context)
    async with server:
        yield f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def test_it_works_with_base_url_key_and_ca_alone(start: StartTier, tmp_path: Path) -> None:
    tier = await start(probe_s=60)
    authority = Authority(tmp_path, "ca")
    async with tls_before(tier.url, authority) as url:
        told = {"OPENAI_BASE_URL": f"{url}/v1", "OPENAI_API_KEY": KEYS["lab"], "SSL_CERT_FILE": str(authority.path)}
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.integration.official_client", cwd=ROOT, env={**os.environ, **told},
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    found = json.loads(out)
    assert found["models"] == [MODEL, "vectors"]
    assert found["whole"] == {"text": SAID, "tokens": 5}
    assert (found["stream"]["text"], found["stream"]["finish"], found["stream"]["tokens"]) == (SAID, "stop", 5)
    assert found["tools_stream"]["tools"] == [{"name": "weather", "arguments": '{"city":"Bonn"}'}]
    assert found["tools_stream"]["finish"] == "tool_calls"
    assert found["served_by"] == "engine"
    assert (found["no_such_model"], found["no_such_key"]) == ("NotFoundError", "AuthenticationError")

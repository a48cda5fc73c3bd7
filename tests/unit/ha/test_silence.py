"""Silence is told from an answer, over real sockets: a probe of a leader and of the own server (probe.py, sql.py)."""

import asyncio
import json
import socket
import time

import pytest

from devmentor.pgagent.probe import Probe
from devmentor.pgagent.settings import Settings

LEADER, OWN = "127.0.0.1", "127.0.0.2"


@pytest.fixture
def port():
    with socket.create_server((LEADER, 0)) as server:
        return server.getsockname()[1]


@pytest.fixture
def witness(tmp_path, port):
    (tmp_path / "cluster.json").write_text(json.dumps({"postgres": {"pg2": {"address": OWN}}}))
    settings = Settings(
        node="pg2",
        port=5440,
        token_file=tmp_path / "token",
        cluster_file=tmp_path / "cluster.json",
        state_dir=tmp_path,
        pg_port=port,
        probe_interval_s=0.2,
        probe_failures=1,
        probe_excuses=1,
    )
    return Probe(settings, "pg1", LEADER)


async def one_round(witness, port, listening):
    """Of servers that accept connections and say nothing."""
    sockets = [socket.create_server((address, port)) for address in listening]
    try:
        began = time.monotonic()
        await witness.once()
        return time.monotonic() - began
    finally:
        for one in sockets:
            one.close()
        witness.close()


@pytest.mark.parametrize("listening", [(LEADER, OWN), (LEADER,)], ids=["own silent", "own refuses"])
async def test_silence_is_excused_where_the_own_server_does_not_answer(witness, port, listening):
    took = await one_round(witness, port, listening)
    assert witness.suspicion is None
    assert 0.2 <= took < 1.8, "its own limit, not the two seconds that libpq takes at least"


@pytest.mark.parametrize("listening", [(OWN,), ()], ids=["own silent", "own refuses"])
async def test_a_refused_connection_is_an_answer_and_counts(witness, port, listening):
    await one_round(witness, port, listening)
    assert witness.suspicion is not None


@pytest.mark.parametrize("says", [b"", b"E" + (4 + 26).to_bytes(4, "big") + b"SFATAL\0C57P03\0Mstarting\0\0"])
async def test_a_connection_that_is_closed_is_an_answer_and_counts(witness, port, says):
    async def close(_reader, writer):
        writer.write(says)
        writer.close()

    server = await asyncio.start_server(close, LEADER, port)
    try:
        await one_round(witness, port, [OWN])
    finally:
        server.close()
    assert witness.suspicion is not None

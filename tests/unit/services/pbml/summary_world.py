"""What the tests of summaries run against: a private PostgreSQL, and a pretended engine on loopback."""

import asyncio
from contextlib import asynccontextmanager, contextmanager

from aiohttp import web
from private_postgres import NO_FSYNC, Postgres

from devmentor.pbml import indexes, schema
from devmentor.pbml.db import Database
from devmentor.pbml.settings import Settings
from devmentor.pbml.store.acceptance import accept_turn
from devmentor.pbml.summaries import Folder
from devmentor.pbml.tokens import ByteTokenCounter


@contextmanager
def prepared_postgres():
    """The conninfo of a server of its own, with PBML's schema; gone afterwards."""
    with Postgres({**NO_FSYNC, "max_connections": "50"}, locale=None) as server:
        conninfo = server.conninfo("postgres")
        schema.migrate(conninfo)
        indexes.ensure(conninfo)
        yield conninfo


class PretendedEngine:
    """Says how busy it is as llama.cpp does, and answers with a count of what it was asked, or as `answer` has it."""

    def __init__(self) -> None:
        self.running = self.waiting = 0
        self.metrics_status = 200
        self.asked: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.answer = None
        self.url = ""

    async def metrics(self, _request):
        lines = f"llamacpp:requests_processing {self.running}\nllamacpp:requests_deferred {self.waiting}\n"
        return web.Response(text=lines, status=self.metrics_status)

    async def chat(self, request):
        body = await request.json()
        self.asked.append(body["messages"][1]["content"])
        self.headers.append(dict(request.headers))
        said = await self.answer() if self.answer is not None else f"summary {len(self.asked)}"
        if isinstance(said, web.Response):
            return said
        return web.json_response({"choices": [{"message": {"role": "assistant", "content": said}}]})


@asynccontextmanager
async def pretended_engine():
    engine = PretendedEngine()
    app = web.Application()
    app.router.add_get("/metrics", engine.metrics)
    app.router.add_post("/v1/chat/completions", engine.chat)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    engine.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield engine
    finally:
        await runner.cleanup()


class World:
    """A ledger, an engine, and workers that fold."""

    def __init__(self, conninfo: str, engine: PretendedEngine) -> None:
        self.conninfo = conninfo
        self.engine = engine
        self.settings = self.settings_with()
        self.db = Database(self.settings, "test")
        self.folder = self.worker("one")

    def settings_with(self, **changes) -> Settings:
        return Settings(
            **{
                "database": self.conninfo,
                "tenants_file": None,
                "summary_urls": [self.engine.url],
                "summary_model": "pretended",
                "summary_turns": 4,
                "summary_keep_turns": 4,
                "summary_fanout": 2,
                "summary_idle_s": 0.0,
                "summary_settled_s": 0.0,
                "summary_every_s": 0.01,
                "summary_timeout_s": 60.0,
                "database_timeout_s": 60.0,
                "summary_max_attempts": 3,
                **changes,
            }
        )

    def worker(self, name: str, **changes) -> Folder:
        settings = self.settings_with(replica=name, **changes)
        return Folder(settings, self.db, ByteTokenCounter(4.0))

    async def say(self, conversation: str, number: int, first: int = 0, tenant: str = "t") -> None:
        for turn in range(first, first + number):
            name = f"~turn/{conversation}/{turn}"

            async def accept(c, name=name, turn=turn):
                await accept_turn(c, tenant, conversation, name, "user", f"turn number {turn} of it")

            await self.db.write(accept)

    async def rows(self, statement: str, *values) -> list[dict]:
        async with self.db.read() as c:
            cursor = await c.execute(statement, values)
            return await cursor.fetchall()

    async def run(self, statement: str, *values) -> None:
        await self.db.write(lambda c: c.execute(statement, values or None))

    async def all(self) -> list[dict]:
        """Every summary, from the top, in the order of time."""
        return await self.rows(
            "SELECT s.level, s.first_seq, s.last_seq, s.turns, s.body, s.shown, s.parent_seq FROM summaries s"
            " ORDER BY level DESC, first_seq"
        )

    async def shown(self) -> list[tuple[int, int, int]]:
        """(level, first, last) of what readers get, in the order of time; turns are counted from 0."""
        found = await self.rows("SELECT min(seq) AS first FROM versions WHERE kind = 'turn'")
        first = found[0]["first"] or 0
        return [
            (row["level"], row["first_seq"] - first, row["last_seq"] - first)
            for row in sorted(await self.all(), key=lambda row: row["first_seq"])
            if row["shown"]
        ]


@asynccontextmanager
async def world(conninfo: str):
    async with pretended_engine() as engine:
        made = World(conninfo, engine)
        await made.db.open()
        await made.folder._engine.open()
        try:
            await made.run(
                "TRUNCATE summaries, folds, versions, documents, conversations, generations, chunks RESTART IDENTITY"
            )
            await made.run("UPDATE maintenance SET holder = NULL, state = '{}'")
            async with asyncio.timeout(300):
                yield made
        finally:
            await made.folder._engine.close()
            await made.db.close()

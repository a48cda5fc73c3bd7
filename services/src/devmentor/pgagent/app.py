"""The agent's HTTP side (docs/postgres-ha-protocol.md, "The agents' API")."""

import contextlib
import hmac
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from devmentor.common.auth import bearer_key
from devmentor.common.errors import ApiError
from devmentor.common.health import Check, Readiness
from devmentor.common.web import create_app
from devmentor.pgagent.agent import Agent, refused
from devmentor.pgagent.duties import Duties
from devmentor.pgagent.operator import Operator
from devmentor.pgagent.settings import Settings
from devmentor.pgagent.sql import Silent
from devmentor_ha.rules import Need, Rule, RuleError

log = logging.getLogger(__name__)

Body = dict[str, Any]


def application(settings: Settings) -> tuple[Starlette, Duties]:
    """The application and its loops."""
    agent = Agent(settings)
    duties = Duties(agent)
    operator = Operator(agent, duties)

    async def fence(body: Body) -> Body:
        return await agent.fence(int(body["epoch"]), str(body["controller"]))

    async def demote(body: Body) -> Body:
        return await agent.demote(int(body["epoch"]), str(body["controller"]))

    async def lead(body: Body) -> Body:
        need = Need(int(body["need"]["count"]), frozenset(map(str, body["need"]["among"])))
        rule = Rule.from_dict(body["rule"])
        await agent.lead(int(body["epoch"]), str(body["controller"]), rule, need, list(map(str, body["fenced"])))
        return {"accepted": True}

    async def repoint(body: Body) -> Body:
        await agent.repoint(int(body["epoch"]), str(body["controller"]), dict(body["leader"]))
        return {"done": True}

    async def checkpoint(_body: Body) -> Body:
        await agent.postgres.checkpoint(290)
        return {"done": True}

    async def retarget(body: Body) -> Body:
        if agent.pooler is None:
            raise refused(f"{settings.node} has no pooler")
        return await agent.pooler.retarget(Rule.from_dict(body["rule"]), list(map(str, body["replicas"])))

    async def pool(body: Body) -> Body:
        if agent.pooler is None:
            raise refused(f"{settings.node} has no pooler")
        if body["action"] not in ("pause", "resume", "reload", "kill"):
            raise ValueError(f"action {body['action']!r} is none of pause, resume, reload, kill")
        return await agent.pooler.act(str(body["action"]), float(body.get("deadline_s", 2)))

    calls: dict[str, Callable[[Body], Awaitable[Body]]] = {
        "fence": fence,
        "demote": demote,
        "lead": lead,
        "repoint": repoint,
        "checkpoint": checkpoint,
        "retarget": retarget,
        "pool": pool,
        "failover": operator.failover,
        "switchover": operator.switchover,
        "members": operator.members,
        "pause": operator.pause,
        "rejoin": operator.rejoin,
        "restart": operator.restart,
    }

    def authenticate(request: Request) -> None:
        if not hmac.compare_digest(bearer_key(request.headers.get("authorization")).encode(), settings.token.encode()):
            raise ApiError(401, "invalid_token", "the agents' token is another one (pgagent_token)")

    async def status(request: Request) -> JSONResponse:
        authenticate(request)
        return JSONResponse(agent.status())

    async def post(request: Request) -> JSONResponse:
        authenticate(request)
        name = request.path_params["call"]
        if name not in calls:
            raise ApiError(404, "unknown_call", f"there is no call {name}")
        try:
            body = json.loads(await request.body() or b"{}")
            if not isinstance(body, dict):
                raise ValueError("an object is expected")
            return JSONResponse(await calls[name](body), status_code=202 if name == "lead" else 200)
        except Silent as silent:
            raise refused(str(silent)) from silent
        except (KeyError, TypeError, ValueError, RuleError) as error:
            raise ApiError(400, "invalid_value", f"{name}: {type(error).__name__}: {error}") from error

    async def primary(_request: Request) -> JSONResponse:
        rule = agent.leading.rule
        leads = rule is not None and agent.in_recovery is False
        return JSONResponse({"leads": leads, "rule": rule.name if rule else ""}, status_code=200 if leads else 503)

    async def replica(_request: Request) -> JSONResponse:
        streams = agent.in_recovery is True and bool(agent.observed and agent.observed["streaming"])
        return JSONResponse({"streams": streams}, status_code=200 if streams else 503)

    async def server_answers() -> str:
        if agent.server != "running":
            raise RuntimeError(f"PostgreSQL is {agent.server}")
        return "running"

    async def pooler_answers() -> str:
        assert agent.pooler is not None
        await agent.pooler.observe()
        return "running"

    checks = [Check("postgres", server_answers)] if agent.has_postgres else []
    if agent.pooler is not None:
        checks.append(Check("pooler", pooler_answers))

    @contextlib.asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        await agent.peers.open()
        if agent.has_postgres:
            await agent.observe()
        duties.begin()
        log.info("agent begins", extra={"node": settings.node, "duties": settings.duties})
        yield
        await duties.end()
        await agent.close()

    app = create_app(
        "pgagent",
        readiness=Readiness("pgagent", checks),
        routes=[
            Route("/v1/status", status, methods=["GET"]),
            Route("/v1/{call}", post, methods=["POST"]),
            Route("/primary", primary, methods=["GET"]),
            Route("/replica", replica, methods=["GET"]),
        ],
        lifespan=lifespan,
        max_body_bytes=1024 * 1024,
    )
    return app, duties

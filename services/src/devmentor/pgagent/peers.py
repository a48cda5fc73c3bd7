"""Calls to the other agents: mutual TLS, the shared token, and a hard limit on each call."""

import asyncio
import json
from collections.abc import Iterable
from typing import Any

import aiohttp

from devmentor.common import tls
from devmentor.pgagent.settings import Node, Settings


class CallFailed(Exception):
    """A node that did not answer, or refused. `status` is its HTTP status, 0 where there was no answer."""

    def __init__(self, node: str, message: str, status: int = 0, body: dict[str, Any] | None = None) -> None:
        super().__init__(f"{node}: {message}")
        self.node = node
        self.status = status
        self.body = body or {}


class Peers:
    """The other agents of the cluster, by name."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._nodes: dict[str, Node] = {**settings.cluster["pgbouncer"], **settings.cluster["postgres"]}
        self._session: aiohttp.ClientSession | None = None

    async def open(self) -> None:
        """Needs a running loop."""
        settings = self._settings
        context: Any = False
        if settings.tls_ca and settings.tls_cert and settings.tls_key:
            context = tls.client_context(settings.tls_ca, settings.tls_cert, settings.tls_key)
        connector = aiohttp.TCPConnector(ssl=context, keepalive_timeout=30)
        self._session = aiohttp.ClientSession(
            connector=connector, headers={"Authorization": f"Bearer {settings.token}"}, trust_env=False
        )

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def call(self, node: str, method: str, body: dict[str, Any] | None = None, limit_s: float = 2.0) -> Any:
        """POST /v1/METHOD, or GET where there is no body. Raises CallFailed; never takes longer than `limit_s`."""
        assert self._session is not None
        url = f"https://{self._nodes[node].address}:{self._settings.port}/v1/{method}"
        try:
            async with asyncio.timeout(limit_s):
                request = self._session.get(url) if body is None else self._session.post(url, json=body)
                async with request as response:
                    answer = json.loads(await response.text())
                    if response.status < 300:
                        return answer
        except TimeoutError:
            raise CallFailed(node, f"no answer to {method} in {limit_s:g} s") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise CallFailed(node, f"{method}: {type(error).__name__}: {error}") from error
        details = answer.get("error", {}) if isinstance(answer, dict) else {}
        message = str(details.get("message", f"status {response.status}"))
        raise CallFailed(node, message, response.status, answer if isinstance(answer, dict) else {})

    async def many(
        self, nodes: Iterable[str], method: str, body: dict[str, Any] | None = None, limit_s: float = 2.0
    ) -> tuple[dict[str, Any], dict[str, CallFailed]]:
        """The same call to several nodes at once: answers, and failures."""
        names = list(nodes)
        results = await asyncio.gather(
            *(self.call(name, method, body, limit_s) for name in names), return_exceptions=True
        )
        answers, failures = {}, {}
        for name, result in zip(names, results, strict=True):
            if isinstance(result, CallFailed):
                failures[name] = result
            elif isinstance(result, BaseException):
                raise result
            else:
                answers[name] = result
        return answers, failures

"""A fetch while the index is being filled again after a loss."""

from pbml_doubles import Ledger

from devmentor.pbml import context
from devmentor.pbml.context import ContextService
from devmentor.pbml.models import ContextRequest
from devmentor.pbml.settings import Settings
from devmentor.pbml.store import maintenance
from devmentor.pbml.tokens import ByteTokenCounter


class Index:
    """It knows of nothing; how often it was asked."""

    searched = 0

    async def search(self, *_arguments, **_options):
        self.searched += 1
        return []


class Embedder:
    """Every text is the same."""

    async def embed(self, texts):
        return [[1.0] for _ in texts]


async def test_an_index_that_is_being_filled_is_not_relied_on(monkeypatch):
    ledger, index = Ledger(), Index()
    asked = []

    async def full_text(*arguments):
        asked.append(arguments)
        return []

    async def generations(*_arguments):
        return 1, 1

    monkeypatch.setattr(context.chunks, "full_text", full_text)
    monkeypatch.setattr(context.generations, "current", generations)
    service = ContextService(Settings(tenants_file=None), ledger, index, Embedder(), ByteTokenCounter(1.0))
    request = ContextRequest(query="what?", token_budget=10)
    assert not (await service.fetch("t", request))["degraded"]
    await maintenance.want_rebuild(ledger, {}, incomplete=True)
    found = await service.fetch("t", request)
    assert (found["degraded"], found["degraded_parts"]) == (True, ["index"])
    assert found["context_version"].endswith(".degraded")
    assert (index.searched, len(asked)) == (1, 1)

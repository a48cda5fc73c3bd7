"""Fetch: what is known that bears on a query, within a token budget, with where it comes from."""

from devmentor.pbml.context.service import ContextService, context_version

__all__ = ["ContextService", "context_version"]

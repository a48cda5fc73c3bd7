"""How a revision runs SQL."""

from devmentor.common.schema import execute

__all__ = ["execute"]

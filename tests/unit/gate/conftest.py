"""What the tests of the gate share: verify's certificates."""

from __future__ import annotations

from tests.unit.verify.conftest import tls

__all__ = ["tls"]

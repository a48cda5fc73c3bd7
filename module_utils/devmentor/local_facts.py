"""What a host says of itself by roles/base's local fact (ansible_local.devmentor), as far as it can be believed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def held(variables: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    """`releases`, `artifacts` or `settled` of the host whose task variables these are.

    Empty where facts were not gathered, or with anything else in their place (a fact that fails is a text): who asks
    then looks on the host.
    """
    found: object = variables
    for name in ("ansible_facts", "ansible_local", "devmentor", kind):
        if not isinstance(found, Mapping):
            return {}
        found = found.get(name)
    return found if isinstance(found, Mapping) else {}

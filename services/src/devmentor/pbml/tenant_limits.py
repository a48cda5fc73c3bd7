"""What an operator sets for each tenant: how much it may store, and for how long it is kept."""

import json
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints
from pydantic_settings import NoDecode

DEFAULT = "default"
"""Stands for every tenant that has no entry of its own."""

_Limit = Annotated[int, Field(ge=1, lt=2**63)]
_Days = Annotated[int, Field(ge=1, le=36500)]


class _Limits(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Quota(_Limits):
    """The most that a tenant may store; None is no limit. `bytes` is UTF-8 of the raw texts, turns' too."""

    bytes: _Limit | None = None
    documents: _Limit | None = None
    turns: _Limit | None = None


class Retention(_Limits):
    """Days after which what a tenant stored is removed; None keeps it."""

    documents_days: _Days | None = None
    turns_days: _Days | None = None


L = TypeVar("L", bound=_Limits)


def _from_json(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error}") from None


_Tenant = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
Quotas = Annotated[dict[_Tenant, Quota], NoDecode, BeforeValidator(_from_json)]
"""Written in the environment as JSON: {"TENANT": {"bytes": N, "documents": N, "turns": N}}."""
Retentions = Annotated[dict[_Tenant, Retention], NoDecode, BeforeValidator(_from_json)]
"""Written in the environment as JSON: {"TENANT": {"documents_days": N, "turns_days": N}}."""


def of(table: Mapping[str, L], tenant: str) -> L | None:
    """A tenant's entry, to which nothing of the default is added; None where there is neither."""
    return table.get(tenant, table.get(DEFAULT))


def limits(entry: _Limits | None) -> dict[str, Any]:
    """The limits that an entry sets, by name."""
    return entry.model_dump(exclude_none=True) if entry is not None else {}

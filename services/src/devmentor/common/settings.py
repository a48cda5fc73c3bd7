"""Settings that every service has; each service subclasses this with its own environment prefix."""

import sys
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BeforeValidator, Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict


def _split(value: object) -> object:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


CommaList = Annotated[list[str], NoDecode, BeforeValidator(_split)]
"""A list that is written `a,b,c` in the environment."""


class ServiceSettings(BaseSettings):
    """Listener, TLS, tenants, limits. A subclass sets `model_config = service_config("PBML_")`."""

    host: str = "127.0.0.1"
    port: int = Field(default=8080, ge=0, le=65535)
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_ca: Path | None = Field(
        default=None, description="CA of our peers; with tls_cert set, clients must show its certificate"
    )
    tenants_file: Path | None = None
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    max_body_bytes: int = Field(default=16 * 1024 * 1024, ge=1024)
    max_concurrent_requests: int = Field(default=512, ge=1)
    drain_delay_s: float = Field(default=3.0, ge=0, description="How long /ready says no before the listener closes")
    shutdown_grace_s: int = Field(default=20, ge=1, description="How long requests in flight may take after that")

    @model_validator(mode="after")
    def _tls_is_whole(self) -> "ServiceSettings":
        given = [name for name in ("tls_cert", "tls_key", "tls_ca") if getattr(self, name) is not None]
        if given and len(given) != 3:
            raise ValueError(f"tls_cert, tls_key and tls_ca belong together; only {', '.join(given)} given")
        return self


Settings = TypeVar("Settings", bound=ServiceSettings)


def load(kind: type[Settings], env_file: Path | None) -> Settings:
    """Settings from the environment and a file of variables. A wrong one is named on standard error: exit status 2."""
    try:
        source: dict[str, Any] = {"_env_file": env_file}
        return kind(**source)
    except ValidationError as error:
        prefix = kind.model_config.get("env_prefix", "")
        for finding in error.errors(include_url=False, include_input=False, include_context=False):
            name = "_".join(str(part) for part in finding["loc"]).upper()
            sys.stderr.write(f"{prefix}{name}: {finding['msg']}\n" if name else f"{finding['msg']}\n")
        sys.exit(2)


def service_config(prefix: str) -> SettingsConfigDict:
    """Environment variables `<prefix><NAME>`; an unknown keyword argument is an error."""
    return SettingsConfigDict(env_prefix=prefix, extra="forbid", frozen=True, hide_input_in_errors=True)

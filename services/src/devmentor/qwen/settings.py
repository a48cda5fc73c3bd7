"""What one QWEN instance is told by its environment (QWEN_*)."""

import math
import platform
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, HttpUrl, SecretStr, model_validator

from devmentor.common.settings import CommaList, ServiceSettings, service_config


class ModelSettings(BaseModel):
    """One model that clients may name, and the engine that serves it under that very name."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: HttpUrl = Field(description="Base URL of the engine, without /v1")
    kind: Literal["chat", "embedding"] = "chat"
    secondary: str | None = Field(default=None, description="The model asked where this one's engine fails")


class QwenSettings(ServiceSettings):
    """Times are seconds, sizes bytes."""

    model_config = service_config("QWEN_")

    instance: str = Field(default_factory=platform.node, description="This instance's name in X-DevMentor-Instance")
    models: dict[str, ModelSettings] = Field(min_length=1)

    pool_size: int = Field(default=100, ge=1, description="Requests an engine gets from this instance at a time")
    pool_wait_s: float = Field(default=5.0, ge=0, description="How long a request waits for its turn before 429")
    deadline_s: float = Field(default=300.0, gt=0, description="An answer that is not streamed must be whole by then")
    connect_s: float = Field(default=2.0, gt=0)
    silence_s: float = Field(default=60.0, gt=0, description="A stream without a token for so long is broken")
    ping_s: float = Field(default=10.0, gt=0, description="An SSE comment is sent after so much silence")
    probe_s: float = Field(default=5.0, gt=0, description="How often the engines' progress is checked")
    stuck_s: float = Field(default=20.0, gt=0, description="An engine without a token for so long is not ready")
    breaker_errors: int = Field(default=5, ge=1, description="Errors in a row that open an engine's breaker")
    breaker_open_s: float = Field(default=30.0, gt=0)
    breaker_error_rate: float = Field(default=0.001, ge=0, lt=1, description="A higher share of errors opens; 0: never")
    breaker_min_volume: int = Field(default=1000, ge=1, description="Requests in the window below which no rate counts")
    breaker_window_s: float = Field(default=300.0, gt=0, description="The window that the error rate is of")

    cache_l1_bytes: int = Field(default=128 * 1024 * 1024, ge=0, description="Bound of the process cache; 0: none")
    cache_l1_ttl_s: float = Field(default=3600.0, gt=0)
    cache_l2_ttl_s: float = Field(default=86400.0, gt=0)
    cache_stale_s: float = Field(default=604800.0, gt=0, description="How old a fallback answer may be")
    cache_entry_bytes: int = Field(default=256 * 1024, ge=1024, description="A larger answer is not cached")
    cache_nodes: CommaList = Field(default=[], description="Valkey instances as host:port")
    cache_user: str = "qwen"
    cache_password: SecretStr = SecretStr("")
    cache_budget_s: float = Field(default=0.05, gt=0, description="Deadline of one operation on the L2 cache")

    purge_poll_s: float = Field(default=2.0, gt=0, description="How often other instances' purges are asked for")
    flight_bytes: int = Field(
        default=1024 * 1024, ge=4096, description="How much of a stream is kept for equal questions that come later"
    )

    pbml_urls: CommaList = Field(default=[], description="Base URLs of all PBML replicas")
    pbml_deadline_s: float = Field(default=2.0, gt=0, description="Deadline of a context fetch, all replicas together")
    context_version_s: float = Field(default=0.25, ge=0, description="How long a tenant's context version is believed")
    context_share: Annotated[float, Field(gt=0, le=0.9)] = 0.5
    """How much of an engine's context length PBML's text may take."""
    answer_tokens: int = Field(default=512, ge=1, description="Kept free for an answer whose request sets no bound")

    database: str | None = Field(
        default=None, description="libpq conninfo of the poolers; only token budgets, which are counted there, need it"
    )
    database_password: SecretStr | None = None
    database_session_name: str = Field(
        default="devmentor_session", description="dbname of the session-pooled entry, which migrations use"
    )
    database_pool_size: int = Field(default=4, ge=1, le=50)
    budget_timeout_s: float = Field(default=0.5, gt=0, description="How long a request waits for a budget's row")
    budget_lend_share: float = Field(
        default=0.05, ge=0, le=1, description="Part of a limit that this instance spends while PostgreSQL is away"
    )

    semantic_model: str | None = Field(
        default=None, description="Embedding model of the semantic cache, one of `models`; without one there is none"
    )
    semantic_threshold: float = Field(default=0.99, gt=0, le=1, description="Least cosine of two questions' vectors")
    semantic_budget_s: float = Field(default=0.05, gt=0, description="Deadline of a lookup, the embedding included")
    semantic_ttl_s: float = Field(default=3600.0, gt=0)
    semantic_max_answers: int = Field(default=100_000, ge=1, description="Bound of the collection; the oldest go first")
    semantic_question_chars: int = Field(default=800, ge=1, description="Of a longer one the model would not see all")
    semantic_collection: str = "qwen_semantic"
    semantic_dimensions: int = Field(default=384, ge=1, description="Of the embedding model's vectors")
    qdrant_urls: CommaList = Field(default=[], description="Base URLs of all peers, for the semantic cache")
    qdrant_api_key: SecretStr | None = None

    trace_size: int = Field(default=0, ge=0, description="Requests whose engine body GET /v1/traces shows; 0: off")
    admin_key_sha256: str = Field(default="", pattern=r"^([0-9a-f]{64})?$")

    @model_validator(mode="after")
    def _models_fit_together(self) -> "QwenSettings":
        for alias, model in self.models.items():
            if model.secondary is None:
                continue
            other = self.models.get(model.secondary)
            if other is None or other.kind != model.kind or model.secondary == alias:
                raise ValueError(f"models.{alias}.secondary: {model.secondary!r} is no other {model.kind} model")
        if not any(model.kind == "chat" for model in self.models.values()):
            raise ValueError("models: at least one chat model is needed")
        if self.breaker_error_rate and self.breaker_min_volume * self.breaker_error_rate < 1:
            needed = math.ceil(1 / self.breaker_error_rate)
            raise ValueError(
                f"breaker_min_volume: at least {needed} for a rate of {self.breaker_error_rate:g}; else one error opens"
            )
        if self.tenants_file is None:
            raise ValueError("tenants_file is needed: every request is some tenant's")
        if self.semantic_model is not None:
            embedding = self.models.get(self.semantic_model)
            if embedding is None or embedding.kind != "embedding" or not self.qdrant_urls:
                raise ValueError("semantic_model must be an embedding model of `models`, and qdrant_urls be set")
            if not self.cache_nodes:
                raise ValueError("semantic_model needs cache_nodes: purges of what it keeps are remembered there")
        if self.trace_size and not self.admin_key_sha256:
            raise ValueError("trace_size needs admin_key_sha256: traces hold prompts")
        return self

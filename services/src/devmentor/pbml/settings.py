"""Environment variables `PBML_*`. docs/pbml.md explains the ones that an operator chooses."""

from pathlib import Path

from pydantic import Field, SecretStr, model_validator

from devmentor.common import postgres
from devmentor.common.settings import CommaList, ServiceSettings, service_config
from devmentor.pbml.tenant_limits import Quotas, Retentions


class Settings(ServiceSettings):
    """One set for the API, the worker and the commands; each uses its part."""

    model_config = service_config("PBML_")

    port: int = Field(default=8090, ge=0, le=65535)
    worker_port: int = Field(default=8091, ge=0, le=65535, description="/health, /ready and /metrics of the worker")
    replica: str = Field(
        default="local", pattern=r"^[A-Za-z0-9._-]{1,80}$", description="this host's name; a stand-in's ends in -surge"
    )

    # PostgreSQL, through PgBouncer
    database: str = Field(default="host=127.0.0.1 dbname=devmentor user=pbml", description="libpq conninfo")
    database_password: SecretStr | None = None
    database_session_name: str = Field(
        default="devmentor_session", description="dbname of the session-pooled entry, which migrations use"
    )
    database_pool_size: int = Field(default=8, ge=1, le=200)
    database_max_waiting: int = Field(default=256, ge=1)
    database_timeout_s: float = Field(
        default=5.0, gt=0, description="one transaction, waiting for a connection included"
    )

    # The local spool, for writes while PostgreSQL is away
    spool_dir: Path | None = Field(default=None, description="its directory; without, such writes are refused")
    spool_max_mib: int = Field(default=512, ge=1, description="bound of what waits in it; the disk needs twice as much")
    spool_min_free_mib: int = Field(default=256, ge=0, description="what it leaves free on the disk")
    spool_after_s: float = Field(
        default=4.0, gt=0, description="how long a first write waits for PostgreSQL; the next ones do not"
    )

    # Qdrant
    qdrant_urls: CommaList = ["http://127.0.0.1:6333"]
    qdrant_api_key: SecretStr | None = None
    qdrant_timeout_s: float = Field(default=5.0, gt=0)
    collection_timeout_s: float = Field(
        default=75.0, gt=60, description="one call that creates or drops the collection; peers have 60 s to agree"
    )
    collection: str = "pbml"
    collection_shards: int = Field(default=6, ge=1)
    collection_replication_factor: int = Field(default=3, ge=1)
    collection_write_consistency: int = Field(default=2, ge=1)
    hnsw_m: int = Field(default=0, ge=0, description="links of a point in the graph of all tenants; 0: there is none")
    hnsw_payload_m: int = Field(default=16, ge=4, description="links of a point in its tenant's graph")
    hnsw_ef_construct: int = Field(default=256, ge=4)
    hnsw_ef: int = Field(default=256, ge=8, description="beam of a search")

    # Embeddings, any OpenAI-style endpoint
    embedding_urls: CommaList = ["http://127.0.0.1:8082"]
    embedding_api_key: SecretStr | None = None
    embedding_model: str = "all-MiniLM-L6-v2"
    embedding_dimensions: int = Field(default=384, ge=1)
    embedding_timeout_s: float = Field(default=30.0, gt=0)
    embedding_batch_size: int = Field(default=32, ge=1)
    embedding_batch_age_ms: float = Field(default=15, ge=0, description="how long a batch waits for company")
    embedding_concurrency: int = Field(default=2, ge=1)

    # Limits of one request
    max_document_bytes: int = Field(default=10 * 1024 * 1024, ge=1)
    max_turn_bytes: int = Field(default=256 * 1024, ge=1)
    max_pin_bytes: int = Field(default=8 * 1024, ge=1)
    max_pins: int = Field(default=32, ge=1, description="of a tenant, and of each of its conversations")
    max_query_chars: int = Field(default=8192, ge=1)
    max_token_budget: int = Field(default=1_000_000, ge=1)

    # Of tenants
    quotas: Quotas = Field(default={}, description="the most that tenants may store")
    retention: Retentions = Field(default={}, description="after how many days what tenants store is removed")

    # Preprocessor
    chunk_chars: int = Field(default=1000, ge=100, le=8000)
    bytes_per_token: float = Field(
        default=1.0, ge=1.0, le=8.0, description="1.0 can not be exceeded by any byte-level BPE; see tokens.py"
    )

    tokenizer_file: Path | None = Field(
        default=None, description="the model's tokenizer.json; without it tokens are bounded by bytes"
    )

    # Worker
    worker_concurrency: int = Field(default=32, ge=1, description="documents at a time; four of them large")
    worker_loops: int = Field(default=8, ge=1, description="that fetch jobs, one after the other each")
    worker_poll_s: float = Field(default=0.2, gt=0, description="between two looks at an empty queue")
    job_timeout_s: float = Field(default=1800, gt=0)
    job_max_attempts: int = Field(default=5, ge=1, description="for errors of the document itself, not of a dependency")
    idempotency_hours: int = Field(default=24, ge=1)

    # Maintenance, one worker at a time
    maintenance_every_s: float = Field(default=5.0, gt=0)
    reconcile_points: int = Field(
        default=1000, ge=0, le=10_000, description="compared in each direction each time; 0 for none"
    )
    retention_every_s: float = Field(default=60.0, ge=0, description="between two looks for what is too old")
    rebuild_page: int = Field(default=2048, ge=1, le=20_000, description="chunks between two marks of the progress")

    # Summaries of older turns, by a worker; none are made without an endpoint
    summary_urls: CommaList = Field(default=[], description="OpenAI-style chat endpoints: engines, or QWEN")
    summary_load_urls: CommaList = Field(
        default=[], description="whose /metrics must all say that nothing is computed; empty: the endpoints' own"
    )
    summary_api_key: SecretStr | None = None
    summary_model: str = ""
    summary_max_tokens: int = Field(default=400, ge=16, le=8192)
    summary_input_tokens: int = Field(default=6000, ge=64, description="of turns, or of summaries, that one is made of")
    summary_turns: int = Field(default=40, ge=1, le=1000, description="most turns that one is made of")
    summary_keep_turns: int = Field(default=20, ge=0, le=1000, description="newest turns that are not summarised")
    summary_fanout: int = Field(default=6, ge=2, le=100, description="summaries that become one of the next level")
    summary_timeout_s: float = Field(default=120.0, gt=0, description="one summary by the engine")
    summary_idle_s: float = Field(default=1.0, ge=0, description="between the two looks that must find engines idle")
    summary_every_s: float = Field(default=5.0, gt=0)
    summary_settled_s: float = Field(default=60.0, ge=0, description="age of a turn before its conversation is noted")
    summary_max_attempts: int = Field(default=5, ge=1, description="failures in a row until a conversation is parked")

    # The local state, which answers fetches while PostgreSQL is away
    state_dir: Path | None = Field(default=None, description="its directory; without, none is kept")
    state_poll_s: float = Field(default=0.5, gt=0, description="between two looks at what changed")
    state_publish_s: float = Field(default=5.0, gt=0, description="between two comparisons with other replicas")
    state_compare_s: float = Field(default=5.0, gt=0, description="between two comparisons with PostgreSQL")
    state_compare_documents: int = Field(default=200, ge=1, le=10_000, description="of one such comparison")
    state_checkpoint_s: float = Field(default=1800.0, gt=0)
    state_checkpoints: int = Field(default=3, ge=1, le=100, description="that are kept")
    state_log_hours: float = Field(default=24.0, ge=1, description="a replica that was away for longer loads all anew")

    # Fetch
    fetch_state_chunks: int = Field(
        default=20_000, ge=0, description="chunks of a tenant whose vectors are compared one by one, from the state"
    )
    fetch_timeout_s: float = Field(default=2.0, gt=0, description="query embedding and index search, each")
    fetch_words_timeout_ms: int = Field(default=500, ge=1, description="each statement of the full-text search")
    fetch_words_candidates: int = Field(default=200, ge=1, description="chunks that are read and ranked by their words")
    fetch_words_common: int = Field(
        default=20_000, ge=1, description="a word of more chunks than this is not searched for by itself"
    )
    fetch_neighbours: int = Field(default=12, ge=0, description="hits whose adjacent chunks are considered")
    fetch_candidates: int = Field(default=48, ge=1, le=1000)
    fetch_min_score: float = Field(default=0.1, ge=-1, le=1)
    fetch_turns: int = Field(default=20, ge=0, le=500)
    fetch_turn_share: float = Field(default=0.5, ge=0, le=1, description="most of the budget that recent turns take")
    fetch_pin_share: float = Field(default=0.25, ge=0, le=1, description="most of the budget that pinned facts take")
    fetch_summary_share: float = Field(default=0.2, ge=0, le=1, description="most of the budget that summaries take")
    fetch_summaries: int = Field(default=64, ge=0, le=500, description="summaries of a conversation that are read")
    fetch_pending_documents: int = Field(default=8, ge=0)
    fetch_pending_chunks: int = Field(default=24, ge=0)

    tenants_file: Path | None = Path("/etc/devmentor/pbml/tenants.json")

    @model_validator(mode="after")
    def _summaries_have_a_model(self) -> "Settings":
        if self.summary_urls and not self.summary_model:
            raise ValueError("summary_urls needs summary_model, the name that the endpoints know the model by")
        return self

    def conninfo(self, *, session: bool = False, application: str = "pbml") -> str:
        """libpq connection string, for the session-pooled entry where asked."""
        extra: dict[str, str] = {"application_name": f"{application}@{self.replica}"}
        if self.database_password is not None:
            extra["password"] = self.database_password.get_secret_value()
        if session:
            extra["dbname"] = self.database_session_name
        return postgres.conninfo(self.database, **extra)

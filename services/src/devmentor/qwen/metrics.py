"""QWEN's metrics. HTTP totals and times to the first byte come from `common.web`; these say what happened inside."""

from prometheus_client import Counter, Gauge, Histogram

_LATENCY = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)

ANSWERS = Counter("devmentor_qwen_answers", "Answers by what served them", ["endpoint", "served_by"])
TTFT = Histogram(
    "devmentor_qwen_time_to_first_token_seconds", "Engine's time to a stream's first event", ["model"], buckets=_LATENCY
)
ENGINE_SECONDS = Histogram(
    "devmentor_qwen_engine_seconds", "Engine's time to a whole answer", ["model"], buckets=_LATENCY
)
ENGINE_ERRORS = Counter("devmentor_qwen_engine_errors", "Engine failures by kind", ["model", "kind"])
ENGINE_MOVING = Gauge("devmentor_qwen_engine_moving", "1 where the engine was seen to make progress", ["model"])
TOKENS = Counter("devmentor_qwen_tokens", "Tokens that engines counted", ["model", "kind"])
DEADLINES = Counter(
    "devmentor_qwen_deadlines_missed", "Requests answered 429 because their deadline passed", ["endpoint"]
)
CONTINUED = Counter(
    "devmentor_qwen_streams_continued", "Broken streams that another engine was to continue", ["result"]
)
CANCELLED = Counter("devmentor_qwen_cancelled", "Requests whose client left before the end", ["endpoint"])
SHARED = Counter("devmentor_qwen_shared", "Requests that joined the answering of an equal one")

POOL_SIZE = Gauge("devmentor_qwen_pool_size", "Requests an engine may get at a time", ["model"])
POOL_IN_USE = Gauge("devmentor_qwen_pool_in_use", "Requests an engine has now", ["model"])
POOL_WAITING = Gauge("devmentor_qwen_pool_waiting", "Requests that wait for their turn", ["model"])
POOL_REFUSED = Counter(
    "devmentor_qwen_pool_refused",
    "Requests answered 429: no turn was expected in time, or none came",
    ["model", "reason"],
)
POOL_WAIT_SECONDS = Histogram("devmentor_qwen_pool_wait_seconds", "Time until a turn", ["model"], buckets=_LATENCY)

BREAKER_STATE = Gauge("devmentor_qwen_breaker_state", "0 closed, 1 half-open, 2 open", ["model"])
BREAKER_OPENED = Counter("devmentor_qwen_breaker_opened", "Times the breaker opened, by cause", ["model", "cause"])
BREAKER_WINDOW_REQUESTS = Gauge("devmentor_qwen_breaker_window_requests", "Requests the error rate is of", ["model"])
BREAKER_WINDOW_ERRORS = Gauge("devmentor_qwen_breaker_window_errors", "Errors among them", ["model"])

CACHE_LOOKUPS = Counter("devmentor_qwen_cache_lookups", "Lookups by level and result", ["level", "result"])
CACHE_SECONDS = Histogram(
    "devmentor_qwen_cache_l2_seconds",
    "Time of an operation on the L2 cache",
    ["operation"],
    buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05),
)
CACHE_ERRORS = Counter("devmentor_qwen_cache_l2_errors", "Failed operations on the L2 cache", ["node", "kind"])
CACHE_ENTRIES = Gauge("devmentor_qwen_cache_l1_entries", "Answers in the process cache")
CACHE_BYTES = Gauge("devmentor_qwen_cache_l1_bytes", "Bytes of the process cache")

CONTEXT = Counter("devmentor_qwen_context", "Context fetches by result", ["result"])
CONTEXT_SECONDS = Histogram("devmentor_qwen_context_seconds", "Time of a PBML call", ["operation"], buckets=_LATENCY)
TURNS = Counter("devmentor_qwen_turns", "Turns written back to PBML by result", ["result"])

BUDGET_LEASES = Counter("devmentor_qwen_budget_leases", "Leases asked of a budget's row", ["period", "result"])
BUDGET_TOKENS = Counter("devmentor_qwen_budget_tokens", "Tokens settled against budgets", ["period"])
BUDGET_LENT = Counter("devmentor_qwen_budget_lent", "Tokens lent while PostgreSQL was away", ["period"])
BUDGET_REFUSED = Counter("devmentor_qwen_budget_refused", "Requests answered 429 by a budget", ["period", "reason"])

SEMANTIC_LOOKUPS = Counter("devmentor_qwen_semantic_lookups", "Lookups in the semantic cache by result", ["result"])
SEMANTIC_SECONDS = Histogram(
    "devmentor_qwen_semantic_seconds",
    "Time of a lookup in the semantic cache, the question's embedding included",
    buckets=(0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
)

"""Metrics of a replica's local state. The worker has all but the last."""

from prometheus_client import Counter, Gauge

BEHIND = Gauge("pbml_state_behind_seconds", "Since the state was last all that PostgreSQL had; 0 where there is none")
READY = Gauge("pbml_state_ready", "1 where the state can answer fetches, 0 while it is loaded or not kept")
CHECKPOINT_EVERY = Gauge(
    "pbml_state_checkpoint_interval_seconds", "Between two checkpoints; 0 where this replica keeps no state"
)
DOCUMENTS = Gauge("pbml_state_documents", "Documents and turns in the state")
POSITION = Gauge("pbml_state_position", "Newest transaction of the change log that is in the state")
BYTES = Gauge("pbml_state_bytes", "The state's file and its log")
CHANGES = Counter("pbml_state_changes", "Documents that were looked up because they changed")
LOADS = Counter("pbml_state_loads", "Times that all of PostgreSQL was read, by the reason", ["reason"])
STARTED = Gauge(
    "pbml_state_start_seconds", "Until the state could answer after the last start, by where it came from", ["source"]
)
MISMATCHES = Counter(
    "pbml_state_mismatches", "Documents that differed from PostgreSQL, and digests from another replica's", ["against"]
)
COMPARED = Counter("pbml_state_compared", "Documents that were compared with PostgreSQL")
FAILURES = Counter("pbml_state_failures", "Rounds that failed", ["cause"])
CHECKPOINTS = Counter(
    "pbml_state_checkpoints", "Checkpoints written, failed to be written, and found damaged", ["result"]
)
CHECKPOINT_AT = Gauge(
    "pbml_state_checkpoint_timestamp_seconds", "When the newest checkpoint was made, Unix time; 0 for none"
)
CHECKPOINT_BYTES = Gauge("pbml_state_checkpoint_bytes", "Size of the newest checkpoint")
PRUNED = Counter("pbml_changes_pruned", "Rows of the change log that every replica had")

FETCHES = Counter("pbml_state_fetches", "Fetches that were answered from the state")

for _result in ("written", "failed", "damaged"):
    CHECKPOINTS.labels(_result)
for _against in ("postgres", "replica"):
    MISMATCHES.labels(_against)
for _cause in ("away", "fault"):
    FAILURES.labels(_cause)

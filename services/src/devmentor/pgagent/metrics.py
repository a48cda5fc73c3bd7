"""What Prometheus reads of the agent."""

from prometheus_client import Counter, Gauge

LEADING = Gauge("devmentor_pgagent_leading", "1 where this node leads a committed rule")
EPOCH = Gauge("devmentor_pgagent_epoch", "Epoch of the highest rule known to be committed")
PROMISE = Gauge("devmentor_pgagent_promise_epoch", "Epoch that this node promised")
FOLLOWERS = Gauge("devmentor_pgagent_rule_followers", "Followers in the committed rule")
BLOCKED = Gauge("devmentor_pgagent_writes_blocked", "1 where commits wait for a quorum that does not stream")
SUSPECTING = Gauge("devmentor_pgagent_suspecting", "1 where this node suspects the leader")
EXCUSED = Counter(
    "devmentor_pgagent_probes_excused", "Failed probes of the leader that did not count, this node being slow itself"
)
PAUSED = Gauge("devmentor_pgagent_paused", "1 while automatic actions are paused")
OBSERVE_ONLY = Gauge("devmentor_pgagent_observe_only", "1 where the agent only observes")
ARCHIVE_HELD = Gauge("devmentor_pgagent_archive_held", "1 while archive_command is held back")
POOLER_EPOCH = Gauge("devmentor_pgagent_pooler_epoch", "Epoch of the rule that the pooler's targets follow")
FAILOVERS = Counter("devmentor_pgagent_failovers", "Changes of the leader that this agent controlled", ["outcome"])

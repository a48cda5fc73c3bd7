"""The faults: how each is done and undone. `undo` works from any point: a round that fails half-way undoes it too."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tests.chaos.pbml.document_faults import (
    big_document,
    others_went_on,
    same_document,
    start_replica,
    stop_replica,
)
from tests.chaos.pbml.local_faults import (
    damage_state,
    empty_spool,
    fill_spool,
    reconnect,
    spool_two_ways,
    spool_was_full,
    spool_was_late,
    start_worker,
    state_came_back,
)
from tests.chaos.pbml.scene import (
    API,
    EMBEDDINGS,
    PGBOUNCER,
    QDRANT,
    WORKER,
    Scene,
    drop_collection,
    every,
    every_peer,
    freeze,
    kill,
    nothing,
    one,
    own_clock,
    power_off,
    power_off_leader,
    power_on,
    step_clock,
    systemctl,
    thaw,
)


def unseen(_scene: Scene) -> str:
    """Whether it was felt is plain from what it does."""
    return ""


@dataclass(frozen=True)
class Fault:
    """`hold`: seconds that the fault stays; `once`: not repeated in a round; `local`: needs spool and state; `whole_s`:
    the most seconds until the platform is whole after it; `felt`: why the fault was not felt, asked when it is whole.
    """

    name: str
    text: str
    do: Callable[[Scene], None]
    undo: Callable[[Scene], None]
    hold: float = 10.0
    once: bool = False
    local: bool = False
    whole_s: float = 240.0
    felt: Callable[[Scene], str] = unseen


FAULTS = {
    fault.name: fault
    for fault in (
        Fault("none", "nothing happens", nothing, nothing, hold=5),
        Fault("api_killed", "SIGKILL of one host's API, five times", kill(API, one, 5), nothing, hold=2),
        Fault("apis_killed", "SIGKILL of every API at once", kill(API, every), nothing, hold=2),
        Fault("worker_killed", "SIGKILL of one worker, five times at random", kill(WORKER, one, 5), nothing, hold=2),
        Fault("workers_killed", "SIGKILL of all workers, 5 times at random", kill(WORKER, every, 5), nothing, hold=2),
        Fault("workers_stopped", "no worker runs", systemctl("stop", WORKER, every), systemctl("start", WORKER, every)),
        Fault("host_lost", "a host without power that does not lead PostgreSQL", power_off, power_on, hold=15),
        Fault("leader_lost", "PostgreSQL's leader without power: a failover in the middle of ingest",
              power_off_leader, power_on, hold=15),
        Fault("host_frozen", "a host stands still and goes on", freeze, thaw, hold=12),
        Fault("pooler_killed", "SIGKILL of every PgBouncer", kill(PGBOUNCER, every), nothing, hold=3),
        Fault("peer_lost", "a Qdrant peer is stopped", systemctl("stop", QDRANT, one), systemctl("start", QDRANT, one)),
        Fault("qdrant_gone", "every Qdrant peer is stopped",
              systemctl("stop", QDRANT, every_peer), systemctl("start", QDRANT, every_peer)),
        Fault("collection_dropped", "Qdrant's collection is deleted", drop_collection, nothing, hold=5),
        Fault("embeddings_gone", "no host has an embeddings engine",
              systemctl("stop", EMBEDDINGS, every), systemctl("start", EMBEDDINGS, every)),
        Fault("clock_back", "a host's PBML an hour behind the others", step_clock("-3600"), own_clock),
        Fault("clock_ahead", "a host's PBML a day ahead of the others", step_clock("+86400"), own_clock),
        Fault("same_document", "each document written through two replicas at once, 20 times", same_document, nothing,
              hold=2),
        Fault("big_document", "a document of 10 MB in the middle of the others", big_document, nothing, hold=20,
              once=True, whole_s=3600, felt=others_went_on),
        Fault("replica_away", "a replica is stopped while the others take writes", stop_replica, start_replica,
              hold=30),
        Fault("spool_disk_full", "a host without PostgreSQL, and its spool's disk full", fill_spool, empty_spool,
              hold=20, local=True, felt=spool_was_full),
        Fault("spool_after_newer", "spooled, and a newer version written elsewhere before the replay", spool_two_ways,
              reconnect, hold=5, local=True, felt=spool_was_late),
        Fault("checkpoint_corrupt", "a worker restarts with a damaged state and a damaged newest checkpoint",
              damage_state, start_worker, hold=2, local=True, felt=state_came_back),
    )
}  # fmt: skip

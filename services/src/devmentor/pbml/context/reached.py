"""Whether what answers a fetch has come to the fetch's watermark."""

from devmentor.common.errors import ApiError
from devmentor.pbml.db import Connection
from devmentor.pbml.models import spooled_id, spooled_replica, watermark_seq
from devmentor.pbml.store import ledger, spooled


async def reached(c: Connection, tenant: str, mark: str) -> int | None:
    """The watermark's seq; None where the ledger does not hold it, or the replica that it names has not replayed it."""
    seq = watermark_seq(mark)
    if seq is None:
        return await spooled.seq_of(c, tenant, spooled_id(mark))
    return seq if await ledger.watermark_exists(c, tenant, seq) else None


def not_reached(mark: str, what: str) -> ApiError:
    """409; `what` was asked. Where only one replica can know the watermark, that one is named."""
    replica = spooled_replica(mark)
    message = f"{what} has not come to the watermark (yet)"
    if replica is not None:
        message += f"; it is of the spool of replica {replica}: ask that one, or again once it has PostgreSQL"
    return ApiError(409, "watermark_not_reached", message, param="watermark", headers={"Retry-After": "1"})

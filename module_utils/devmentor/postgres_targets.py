"""Which server PgBouncer's entries lead to at first; failover owns the file from then on (devmentor_ha/textfiles)."""

from __future__ import annotations

from collections.abc import Mapping

from .postgres import PostgresError


def choose(answers: Mapping[str, bool | str]) -> tuple[str, list[str]]:
    """The primary and all other servers, from what each server answered: in recovery or not, or why it did not answer.

    A server that does not answer counts as a replica for now; two primaries, or none, are refused.
    """
    leaders = [address for address, answer in answers.items() if answer is False]
    if len(leaders) == 1:
        return leaders[0], [address for address in answers if address != leaders[0]]
    said = {True: "a replica", False: "a primary"}
    listed = "; ".join(
        f"{address}: {said[answer] if isinstance(answer, bool) else answer}" for address, answer in answers.items()
    )
    count = "No server is" if not leaders else "More than one server is"
    raise PostgresError(
        f"{count} a PostgreSQL primary, so the poolers' target is not known ({listed}). Deploy PostgreSQL first "
        "(--tags postgres), or end the failover that is under way, and run again."
    )

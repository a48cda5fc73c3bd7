"""The plan of a rolling update: which tier on which host, in which order. Pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ansible.errors import AnsibleFilterError

Step = dict[str, Any]


def hosts_of(group: str | Sequence[str], groups: Mapping[str, Sequence[str]]) -> list[str]:
    """The hosts of one or several groups, in the inventory's order, each once."""
    names = [group] if isinstance(group, str) else group
    return list(dict.fromkeys(host for name in names for host in groups.get(name, ())))


def rollout_in(host: str, group: str | Sequence[str], groups: Mapping[str, Sequence[str]]) -> bool:
    """Whether a host belongs to the group, or to one of them."""
    return host in hosts_of(group, groups)


def rollout_last(groups: Mapping[str, Sequence[str]], hostvars: Any, pg_leader: str, address: str) -> dict[str, str]:
    """Tier -> the host that goes last: PostgreSQL's and Qdrant's leaders, the gateway that holds the virtual address.

    Qdrant's is in what its peers answered to /cluster (`__rollout_raft`), the address in the gateways' facts. What is
    not known is left out: then the order is the inventory's.
    """
    last = {"postgres": pg_leader}
    for host in groups.get("qdrant", ()):
        answer = (hostvars[host].get("__rollout_raft") or {}).get("json") or {}
        result = answer.get("result") or {}
        if result and result.get("peer_id") == (result.get("raft_info") or {}).get("leader"):
            last["qdrant"] = host
    for host in groups.get("gateway", ()):
        facts = hostvars[host].get("ansible_facts") or {}
        if address and address in facts.get("all_ipv4_addresses", []) + facts.get("all_ipv6_addresses", []):
            last["gateway"] = host
    return last


def turn_mode(
    entry: Mapping[str, Any], host: str, groups: Mapping[str, Sequence[str]], live: Sequence[str]
) -> dict[str, str]:
    """{mode, stand_in, impact} of a host's turn.

    `host`: a live host of the tier's `standbys` serves in its place; `idle`: it is such a host itself, serves nobody.
    Otherwise what the tier's entry says.
    """
    standbys = groups.get(entry.get("standbys", ""), ())
    if host in standbys:
        return {"mode": "idle", "stand_in": "", "impact": "none, it stands by"}
    free = [name for name in standbys if name in live]
    if entry["mode"] == "drained" and free and host in groups.get(entry["backend"], ()):
        return {"mode": "host", "stand_in": free[0], "impact": f"none, {free[0]} serves meanwhile"}
    return {"mode": entry["mode"], "stand_in": "", "impact": entry["impact"]}


def last_records(journal: Mapping[str, Any]) -> dict[tuple[str, str], Mapping[str, Any]]:
    """(tier, host) -> the newest record of it in the journal."""
    return {(record["tier"], record["host"]): record for record in journal.get("steps", ())}


def rollout_steps(
    order: Iterable[str],
    tiers: Mapping[str, Mapping[str, Any]],
    groups: Mapping[str, Sequence[str]],
    live: Sequence[str],
    verb: str,
    journal: Mapping[str, Any],
    changes: Mapping[str, Mapping[str, Sequence[str]]],
    last: Mapping[str, str],
    only_host: str = "",
) -> list[Step]:
    """What is left to do, in order: {tier, host, mode, stand_in, impact, changes, canary, interrupted}.

    tiers: the role's table. live: hosts that are not offline. changes: host -> tier -> tasks that a check run said
    would change something. last: tier -> the host that goes last (the leader). A host that an open journal has begun
    and not ended is done again, changes or not. Restarts take every host that the journal has not ended, rollbacks
    those that the last update has touched. Raises AnsibleFilterError for a rollback of what has no releases.
    """
    open_journal = journal.get("state") in ("running", "failed")
    records = last_records(journal)
    steps: list[Step] = []
    for tier in order:
        entry = tiers[tier]
        hosts = [host for host in hosts_of(entry["group"], groups) if host in live and only_host in ("", host)]
        leader = last.get(tier, "")
        hosts = [host for host in hosts if host != leader] + [host for host in hosts if host == leader]
        of_tier: list[Step] = []
        for host in hosts:
            record = records.get((tier, host), {})
            interrupted = open_journal and bool(record) and record.get("phase") not in ("done", "went_back")
            wanted = list((changes.get(host) or {}).get(tier, ()))
            if verb == "restart":
                done = open_journal and record.get("phase") == "done"
                wanted = [] if done else ["restart"]
            elif verb == "rollback":
                touched = bool(record) and journal.get("kind") != "restart" and record.get("phase") != "went_back"
                wanted = ["go back"] if touched else []
                if touched and "app" not in entry:
                    raise AnsibleFilterError(
                        f"{tier} on {host} has no release to go back to, as only our services have. Nothing "
                        "was changed. Remedy: give the inventory the version that it had (devmentor_package_versions, "
                        "artifacts.yml) and run rolling_update.yml with "
                        f"-e rollout_abandon={journal['run']}; the others go back with -e tier=..."
                    )
            if wanted or interrupted:
                of_tier.append(
                    {
                        "tier": tier,
                        "host": host,
                        **turn_mode(entry, host, groups, live),
                        "changes": wanted,
                        "canary": not of_tier,
                        "interrupted": interrupted,
                    }
                )
        steps += of_tier
    return steps


def rollout_table(steps: Sequence[Mapping[str, Any]], verb: str, journal: Mapping[str, Any]) -> list[str]:
    """The plan as lines to read: order, tier, host, mode, expected impact, and what would change."""
    if not steps:
        return ["Nothing to do: every host of these tiers is as the inventory wants it."]
    lines = [f"{verb}: {len(steps)} steps, one host at a time"]
    if journal.get("state") in ("running", "failed"):
        lines.append(f"goes on with {journal['run']}, which is {journal['state']}")
    for number, step in enumerate(steps, 1):
        marks = [name for name in ("canary", "interrupted") if step[name]]
        # Without the role's name, which the tier says.
        changes = [change.rpartition(" : ")[2] for change in step["changes"]]
        what = "; ".join(changes[:3]) + (" ..." if len(changes) > 3 else "")
        lines.append(
            f"{number:>3}. {step['tier']:<10} {step['host']:<12} {step['mode']:<8} impact: {step['impact']}"
            + (f" ({', '.join(marks)})" if marks else "")
            + (f" - {what}" if what else "")
        )
    return lines


def rollout_tiers(given: Any, known: Iterable[str]) -> list[str]:
    """The tiers that `-e tier=` names: one, several with commas, or `all`, in the safe order of
    the table. Raises AnsibleFilterError for others."""
    names = [str(name).strip() for name in (given.split(",") if isinstance(given, str) else given) if str(name).strip()]
    known = list(known)
    if names == ["all"]:
        return known
    wrong = [name for name in names if name not in known]
    if wrong or not names:
        raise AnsibleFilterError(
            f"tier is {', '.join(wrong) or 'not given'}; pass -e tier=all, or, with commas, some of {', '.join(known)}."
        )
    return [name for name in known if name in names]


class FilterModule:
    """Entry point for Ansible."""

    def filters(self) -> dict[str, Any]:
        return {
            "rollout_hosts": hosts_of,
            "rollout_in": rollout_in,
            "rollout_last": rollout_last,
            "rollout_steps": rollout_steps,
            "rollout_table": rollout_table,
            "rollout_tiers": rollout_tiers,
        }

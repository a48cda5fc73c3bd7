"""Small, pure facts about PostgreSQL that modules share: text formats, names, SCRAM verifiers.

Sources: the PostgreSQL 17 manual (chapters 19 "Server Configuration", 32.1.1 "Connection Strings", 51.8
"pg_authid"), RFC 5802 and RFC 7677 for SCRAM-SHA-256.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import re
from collections.abc import Mapping

from ..devmentor_ha.textfiles import PostgresError as PostgresError
from ..devmentor_ha.textfiles import slot_name as slot_name

MINIMUM_VERSION = (17, 5)  # sync_replication_slots' crash and lost-slot fixes; failover needs the feature itself
FIRST_NORMAL_OBJECT_ID = 16384  # access/transam.h: no object that a user made has a smaller OID


_SCRAM = re.compile(r"SCRAM-SHA-256\$(\d+):([A-Za-z0-9+/=]+)\$([A-Za-z0-9+/=]+):([A-Za-z0-9+/=]+)\Z")


def slot_names(hosts: list[str]) -> dict[str, str]:
    """`slot_name` of each host; refuses two hosts that would share one."""
    slots: dict[str, str] = {}
    for host in hosts:
        name = slot_name(host)
        for other, taken in slots.items():
            if taken == name:
                raise PostgresError(f"{host} and {other} would share the slot {name}. Rename one of the hosts.")
        slots[host] = name
    return slots


def quorum(followers: int) -> int:
    """How many of `followers` replicas must have a commit before it is acknowledged: ceil(F / 2)."""
    return (followers + 1) // 2


def quorum_names(hosts: list[str]) -> str:
    """synchronous_standby_names for these followers, '' for none.

    >>> quorum_names(["lab2", "lab3", "lab4"])
    'ANY 2 ("lab2", "lab3", "lab4")'
    """
    if not hosts:
        return ""
    return f"ANY {quorum(len(hosts))} ({', '.join(quote_identifier(host) for host in hosts)})"


def quote_identifier(name: str) -> str:
    """As SQL's quote_ident, always quoted."""
    return '"' + name.replace('"', '""') + '"'


def is_pristine(control: Mapping[str, str]) -> bool:
    """Whether a *stopped* cluster has never held anything but what initdb put there.

    Object identifiers are handed out from 16384 on; a cluster whose counter is still there or below holds no
    database, role, table or type of a user. A Debian package that made its own empty cluster leaves one like this.
    """
    state, oid = control.get("Database cluster state"), control.get("Latest checkpoint's NextOID", "")
    return state == "shut down" and oid.isdigit() and int(oid) <= FIRST_NORMAL_OBJECT_ID


def scram_verifier(password: str, salt: bytes | None = None, iterations: int = 4096) -> str:
    """What PostgreSQL stores for a password (pg_authid.rolpassword), made here so that no plain text is sent.

    ASCII only: other passwords would need SASLprep, which the server applies and Python's library lacks.
    """
    if not password or not password.isascii() or not password.isprintable():
        raise PostgresError("A role's password must be printable ASCII and not empty.")
    salt = os.urandom(16) if salt is None else salt
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, iterations)
    client = hmac.digest(salted, b"Client Key", "sha256")
    stored = hashlib.sha256(client).digest()
    server = hmac.digest(salted, b"Server Key", "sha256")
    text = [base64.b64encode(part).decode() for part in (salt, stored, server)]
    return f"SCRAM-SHA-256${iterations}:{text[0]}${text[1]}:{text[2]}"


def scram_matches(password: str, verifier: str | None) -> bool:
    """Whether `verifier` (pg_authid.rolpassword) was made from `password`. MD5 or no password: no."""
    match = _SCRAM.match(verifier or "")
    if not match:
        return False
    again = scram_verifier(password, base64.b64decode(match.group(2)), int(match.group(1)))
    return hmac.compare_digest(again, verifier or "")

"""What the integration tests look for when they say that no secret was shown."""

import textwrap

import pytest

from tests.integration.secrecy import pieces, shown

BODY = "MC4CAQAwBQYDK2VwBCIEIJ1hsZ3v0VpgNJjtEb6o2WxM"
LAST = "aGVyZSBpcyB0aGUgcmVzdCBvZiBpdA=="
KEY = f"-----BEGIN PRIVATE KEY-----\n{BODY}\n{LAST}\nshort=\n-----END PRIVATE KEY-----\n"
CERTIFICATE = KEY.replace("PRIVATE KEY", "CERTIFICATE").replace("MC4C", "MIIB").replace("aGVy", "bGVy")


@pytest.mark.parametrize(
    "value",
    [KEY, [KEY], {"of": {"tenants": [{"key": KEY}]}}, CERTIFICATE + KEY],
    ids=["string", "list", "nested", "behind-a-certificate"],
)
def test_a_key_is_found_by_its_lines(value: object) -> None:
    assert pieces(value) == [BODY, LAST]
    diff = textwrap.indent(KEY, "+      ")
    assert shown({"vault_key": value, "vault_other": "another secret"}, diff) == ["vault_key"]


def test_one_line_of_a_key_is_enough() -> None:
    assert shown({"vault_key": KEY}, f"stderr: bad key near {LAST}") == ["vault_key"]


def test_what_is_public_or_too_short_is_not_looked_for() -> None:
    assert pieces(CERTIFICATE) == []
    assert pieces(["postgres", 12, None, True, ""]) == []
    assert shown({"vault_key": KEY}, "-----BEGIN PRIVATE KEY-----\nshort=\n-----END PRIVATE KEY-----") == []


def test_a_value_of_one_line_is_looked_for_without_its_line_end() -> None:
    assert pieces({"a": "correct-horse-battery\n"}) == ["correct-horse-battery"]

from __future__ import annotations

import pytest

from module_utils.devmentor.run_report_text import HIDDEN, Redactor, clip, message, secrets_of

KEY = "-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBgkqhkiG9w0BAQEFAASC\n-----END PRIVATE KEY-----"


def test_secrets_are_known_by_their_variables_names() -> None:
    variables = {
        "vault_qdrant_api_key": "aaaaaaaa1111",
        "users": [{"name": "application", "password": "bbbbbbbb2222"}],
        "vault_tls": {"key": KEY},
        "__vault_private": "cccccccc3333",
        "api_token": "{{ vault_api_token }}",
        "vault_password_file": "/etc/vault-password",
        "vault_short": "abc",
        "devmentor_name": "dddddddd4444",
        "token_budget": 4096,
    }
    assert secrets_of(variables) == {
        "aaaaaaaa1111", "bbbbbbbb2222", "cccccccc3333", "MIIEvQIBADANBgkqhkiG9w0BAQEFAASC",
        "-----BEGIN PRIVATE KEY-----", "-----END PRIVATE KEY-----",
    }  # fmt: skip


def test_a_known_secret_is_taken_out_everywhere() -> None:
    redactor = Redactor(["secret-one", "secret-one-and-more", ""])
    value = {"a": ["x secret-one-and-more y"], "secret-one": {"b": "secret-one", "n": 3, "t": True, "none": None}}
    assert redactor.all(value) == {
        "a": [f"x {HIDDEN} y"],
        HIDDEN: {"b": HIDDEN, "n": 3, "t": True, "none": None},
    }


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("postgresql://app:hunter2@db/x", "postgresql://app:(hidden)@db/x"),
        ("Authorization: Bearer eyJhbGciOi.x", "Authorization: Bearer (hidden)"),
        ("password=hunter2 sslmode=require", "password=(hidden) sslmode=require"),
        ('{"api_key": "abc"}', '{"api_key": (hidden)}'),
        ("PRIVATE: " + KEY.replace("\n", " "), "PRIVATE: (hidden)"),
        ("https://127.0.0.1:8443/ready: 503 after 3 s", "https://127.0.0.1:8443/ready: 503 after 3 s"),
        ("p95 0.2 s, tokens 12", "p95 0.2 s, tokens 12"),
    ],
)
def test_what_looks_like_a_secret_is_taken_out(text: str, wanted: str) -> None:
    assert Redactor([]).text(text).replace('"(hidden)"', "(hidden)").replace('(hidden)"', "(hidden)") == wanted


def test_a_text_is_one_line_without_control_characters() -> None:
    assert clip("a\x1b[31m\n\tb\x00c  d") == "a [31m b c d"
    assert clip("x" * 1000, 10) == "xxxxxxx..."


def test_a_message_ends_where_ansible_quotes_the_playbook() -> None:
    quoted = "Task failed: it is undefined\nOrigin: /srv/site.yml:3:5\n\n1 - hosts: all\n2   vars: {x: 1}"
    assert message(quoted) == "Task failed: it is undefined"
    assert message("a <<< caused by >>> b\n<<< caused by >>>\nsource") == "a <<< caused by >>> b"
    assert message(None) == ""

"""Secrets are generated once, never replaced, and their values never leave the vault."""

from __future__ import annotations

import re

from filter_plugins.platform_secrets import API_KEY_LENGTH, LENGTHS, complete_secrets, new_secrets, random_text


def test_every_secret_is_generated_with_its_length():
    complete = complete_secrets({}, ["lab"])
    assert {name: len(complete[name]) for name in LENGTHS} == LENGTHS
    assert re.fullmatch(rf"dm-[A-Za-z0-9]{{{API_KEY_LENGTH}}}", complete["vault_api_keys"]["lab"])
    assert len(set(map(str, complete.values()))) == len(complete)


def test_what_is_stored_is_never_replaced():
    first = complete_secrets({}, ["lab"])
    assert complete_secrets(first, ["lab"]) == first


def test_only_the_missing_one_is_made():
    first = complete_secrets({}, ["lab"])
    stored = {name: value for name, value in first.items() if name != "vault_cache_password"}
    second = complete_secrets(stored, ["lab"])
    assert second["vault_cache_password"] != first["vault_cache_password"]
    assert {**second, "vault_cache_password": first["vault_cache_password"]} == first
    assert new_secrets(second, stored) == ["vault_cache_password"]


def test_a_secret_that_the_inventory_gives_elsewhere_is_not_made():
    complete = complete_secrets({}, ["lab"], given=["vault_objectstore_access_key", "vault_objectstore_secret_key"])
    assert "vault_objectstore_access_key" not in complete
    assert "vault_objectstore_secret_key" not in complete


def test_api_keys_given_elsewhere_are_left_there():
    assert "vault_api_keys" not in complete_secrets({}, ["lab"], given=["vault_api_keys"])


def test_a_new_tenant_gets_a_key_and_the_old_one_keeps_its_own():
    first = complete_secrets({}, ["lab"])
    second = complete_secrets(first, ["lab", "acme"], given=first)
    assert second["vault_api_keys"]["lab"] == first["vault_api_keys"]["lab"]
    assert new_secrets(second, first) == ["vault_api_keys.acme"]


def test_a_tenant_that_left_the_list_keeps_its_key():
    first = complete_secrets({}, ["lab", "acme"])
    assert complete_secrets(first, ["lab"]) == first


def test_names_are_reported_and_values_are_not():
    complete = complete_secrets({}, ["lab"])
    shown = " ".join(new_secrets(complete, {}))
    assert not [value for value in complete.values() if isinstance(value, str) and value in shown]
    assert complete["vault_api_keys"]["lab"] not in shown


def test_random_text_is_safe_in_every_config_format():
    assert re.fullmatch(r"[A-Za-z0-9]{200}", random_text(200))

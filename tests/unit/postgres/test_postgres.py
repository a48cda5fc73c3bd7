"""Names, text formats and SCRAM verifiers."""

import psycopg.conninfo
import pytest

from module_utils.devmentor import postgres
from module_utils.devmentor.postgres import PostgresError
from module_utils.devmentor_ha import textfiles

CONTROL = """\
pg_control version number:            1700
Database system identifier:           7575543210987654321
Database cluster state:               {state}
Latest checkpoint's TimeLineID:       1
Latest checkpoint's NextOID:          {oid}
"""


@pytest.mark.parametrize(
    ("state", "oid", "pristine"),
    [
        ("shut down", "13558", True),
        ("shut down", "16384", True),
        ("shut down", "24576", False),  # a user's object was made
        ("in production", "13558", False),  # runs, or crashed
        ("shut down", "", False),
    ],
)
def test_only_a_cluster_that_never_held_anything_is_pristine(state, oid, pristine):
    assert postgres.is_pristine(textfiles.parse_control_data(CONTROL.format(state=state, oid=oid))) is pristine


def test_control_data_is_read():
    fields = textfiles.parse_control_data(CONTROL.format(state="shut down", oid="1"))
    assert fields["Database system identifier"] == "7575543210987654321"


def test_slots_are_named_after_hosts():
    assert postgres.slot_names(["db-1", "db2.zone"]) == {"db-1": "db_1", "db2.zone": "db2_zone"}


def test_two_hosts_never_share_a_slot():
    with pytest.raises(PostgresError, match=r"db_1 and db-1 would share"):
        postgres.slot_names(["db-1", "db_1"])


def test_a_slot_name_has_a_limit():
    with pytest.raises(PostgresError, match="Shorten"):
        postgres.slot_name("x" * 64)


@pytest.mark.parametrize(("followers", "needed"), [(0, 0), (1, 1), (2, 1), (3, 2), (4, 2), (5, 3)])
def test_quorum_is_half_rounded_up(followers, needed):
    assert postgres.quorum(followers) == needed


def test_quorum_names_are_quoted():
    assert postgres.quorum_names(["db-1", 'd"b', "db3"]) == 'ANY 2 ("db-1", "d""b", "db3")'
    assert postgres.quorum_names([]) == ""


def test_conninfo_survives_libpq():
    parameters = {"host": "192.0.2.1", "password": r"it's \ here", "port": 5432}
    assert psycopg.conninfo.conninfo_to_dict(textfiles.conninfo(parameters)) == {**parameters, "port": "5432"}


def test_auto_conf_round_trip():
    settings = {"restore_command": 'timeout 5 x --y=z %f "%p"', "ha.promised": "it's", "work_mem": "4MB"}
    assert textfiles.parse_auto_conf(textfiles.format_auto_conf(settings)) == settings


def test_auto_conf_takes_the_last_and_refuses_nonsense():
    assert textfiles.parse_auto_conf("# c\nwork_mem = 1\n\nwork_mem='2'\n") == {"work_mem": "2"}
    with pytest.raises(PostgresError, match="cannot read"):
        textfiles.parse_auto_conf("= what\n")


def test_a_replica_does_not_inherit_what_is_the_sources_alone():
    source = textfiles.format_auto_conf(
        {
            "primary_conninfo": "host=old",
            "synchronous_standby_names": "ANY 2 (a, b)",
            "restore_command": "old",
            "primary_slot_name": "old",
            "ha.promised": "7",
            "recovery_target_time": "now",
            "work_mem": "8MB",
        }
    )
    made = textfiles.parse_auto_conf(textfiles.replica_auto_conf(source, {"primary_conninfo": "host=new"}))
    assert made == {"work_mem": "8MB", "primary_conninfo": "host=new"}


# The example of RFC 7677, section 3: user "user", password "pencil".
RFC_7677 = (
    "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$"
    "WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU="
)


def test_a_known_verifier_matches_its_password_only():
    assert postgres.scram_matches("pencil", RFC_7677)
    assert not postgres.scram_matches("pencil2", RFC_7677)


def test_verifiers_are_salted():
    one, two = postgres.scram_verifier("secret"), postgres.scram_verifier("secret")
    assert one != two
    assert postgres.scram_matches("secret", one)
    assert postgres.scram_matches("secret", two)


@pytest.mark.parametrize("stored", [None, "", "md5abcdef", "SCRAM-SHA-256$x"])
def test_anything_else_never_matches(stored):
    assert not postgres.scram_matches("secret", stored)


@pytest.mark.parametrize("password", ["", "pässword", "a\nb"])
def test_passwords_that_need_saslprep_are_refused(password):
    with pytest.raises(PostgresError, match="ASCII"):
        postgres.scram_verifier(password)

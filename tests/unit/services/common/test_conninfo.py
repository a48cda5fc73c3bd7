"""Every connection of a service notices a dead peer, also while something that was sent is not acknowledged."""

from psycopg.conninfo import conninfo_to_dict

from devmentor.common import postgres
from devmentor.pbml.settings import Settings


def test_a_dead_peer_is_noticed_while_idle_and_while_waiting() -> None:
    parts = conninfo_to_dict(Settings(database="host=10.0.0.1,10.0.0.2 user=pbml").conninfo())
    assert parts["host"] == "10.0.0.1,10.0.0.2"
    assert 0 < int(str(parts["tcp_user_timeout"])) <= 5000
    idle, interval, count = (int(str(parts[f"keepalives_{name}"])) for name in ("idle", "interval", "count"))
    assert idle + interval * count <= 30


def test_the_operator_s_own_limits_win() -> None:
    parts = conninfo_to_dict(postgres.conninfo("host=h tcp_user_timeout=9000 dbname=a", dbname="b"))
    assert parts["tcp_user_timeout"] == "9000"
    assert parts["dbname"] == "b"

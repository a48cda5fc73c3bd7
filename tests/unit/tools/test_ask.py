"""Whatever way a host goes down under a question, the asker says so in its own error."""

import http.client
from pathlib import Path

import pytest

from tools import ask, lab_run
from tools.inventory_vars import InventoryError


class Connection:
    """A connection whose answer breaks off."""

    failure: Exception

    def __init__(self, *_arguments: object, **_options: object) -> None:
        pass

    def request(self, *_arguments: object, **_options: object) -> None:
        pass

    def getresponse(self) -> object:
        raise self.failure

    def close(self) -> None:
        pass


@pytest.mark.parametrize(
    "failure",
    [ConnectionRefusedError("refused"), http.client.IncompleteRead(b"half", 10), http.client.BadStatusLine("")],
    ids=["refused", "broken-off", "no-status"],
)
def test_a_connection_that_fails_at_any_point_is_an_ask_error(
    failure: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Connection, "failure", failure, raising=False)
    monkeypatch.setattr(http.client, "HTTPSConnection", Connection)
    monkeypatch.setattr(ask.ssl, "create_default_context", lambda **_options: None)
    with pytest.raises(ask.AskError, match=rf"GET https://10.77.0.250:443/v1/models: {type(failure).__name__}"):
        ask.Client("10.77.0.250", "ca", "key").request("GET", "/v1/models")


def test_make_lab_says_what_an_inventory_lacks(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def lacking(*_arguments: object, **_options: object) -> None:
        raise InventoryError("devmentor_vip of lab1 cannot be read")

    monkeypatch.setattr(lab_run, "lab", lacking)
    monkeypatch.setattr("sys.argv", ["lab_run", "--inventory", str(tmp_path)])
    monkeypatch.setattr(lab_run.signal, "signal", lambda *_arguments: None)
    assert lab_run.main() == 1
    assert "make lab: devmentor_vip of lab1" in capsys.readouterr().err

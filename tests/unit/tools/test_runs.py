"""A run that cannot be read back is an error, never a run that changed nothing."""

import pytest

from tools import runs

RECAP = """
TASK [base : Packages] ***
ok: [lab1]

PLAY RECAP *********
lab1                       : ok=12   changed=0    unreachable=0    failed=0    skipped=3
lab2                       : ok=12   changed=2    unreachable=0    failed=0    skipped=3
"""


def done(output: str) -> runs.Run:
    return runs.Run(["ansible-playbook", "site.yml"], 0, output, 1.0)


def test_the_recap_is_read_and_hosts_that_changed_are_named() -> None:
    assert set(done(RECAP).recap()) == {"lab1", "lab2"}
    assert done(RECAP).changed() == {"lab2": 2}


@pytest.mark.parametrize(
    "output",
    [
        "",
        "PLAY RECAP ***\n",
        "lab1 : ok=1 changed=0\n",
        "PLAY RECAP ***\n\x1b[0;33mlab1\x1b[0m   : \x1b[0;32mok=1  \x1b[0m \x1b[0;33mchanged=1  \x1b[0m\n",
    ],
)
def test_a_recap_without_a_host_is_an_error_and_not_no_change(output: str) -> None:
    with pytest.raises(runs.RunError, match="without a recap"):
        done(output).changed()


def test_inherited_colours_do_not_reach_the_child(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANSIBLE_FORCE_COLOR", "1")
    monkeypatch.setenv("ANSIBLE_NOCOLOR", "0")
    shown = runs.run("env", timeout=60).require().output.splitlines()
    assert "ANSIBLE_NOCOLOR=1" in shown
    assert not [line for line in shown if line.startswith("ANSIBLE_FORCE_COLOR")]

"""`make lab`: hosts, secrets, models, the whole platform, its verification, and one question asked and answered."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from tools import ask
from tools.inventory_vars import Inventory, InventoryError
from tools.runs import ROOT, Run, RunError, lab, load_average, playbook, record, run

RESULTS = ROOT / ".cache" / "lab-run.json"


def prepare(inventory: Path, show: bool = True) -> None:
    """Secrets and model files: made once per checkout, kept after that."""
    playbook("secrets", inventory, show=show).require()
    run(sys.executable, "-m", "tools.models", show=show).require()


def deploy(inventory: Path, show: bool = True) -> Run:
    return playbook("site", inventory, show=show).require()


def where_to_look(inventory: Inventory) -> str:
    rows = [("API", f"https://{inventory.value(inventory.hosts('gateway')[0], 'devmentor_vip')}/v1/models")]
    rows += [
        (f"Prometheus on {host}", f"https://{inventory.value(host, 'ansible_host')}:9090/")
        for host in inventory.hosts("monitoring")
    ]
    rows += [
        ("a shell on a host", f"python -m lab exec --inventory {inventory.path} {inventory.hosts('gateway')[0]} bash")
    ]
    return "\n".join(f"  {name:24} {where}" for name, where in rows)


def main() -> int:
    parser = argparse.ArgumentParser(prog="lab_run", description=__doc__)
    parser.add_argument("--inventory", type=Path, default=Path("inventories/lab"))
    arguments = parser.parse_args()
    inventory: Path = arguments.inventory
    # What runs is in a session of its own: a closed terminal or `kill` ends it only by way of this process.
    for number in (signal.SIGHUP, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
            signal.signal(number, signal.default_int_handler)
    seconds: dict[str, float] = {}
    try:
        for name, step in (
            ("hosts", lambda: lab(inventory, "up", show=True).require()),
            ("secrets and models", lambda: prepare(inventory)),
            ("deployment", lambda: deploy(inventory)),
            ("verification", lambda: playbook("verify", inventory, show=True).require()),
        ):
            print(f"\n=== {name}", flush=True)
            began = load_average()
            result = step()
            seconds[name] = round(result.seconds, 1) if result else 0.0
            record(RESULTS, **{name: {"seconds": seconds[name], "load": began}})
        print("\n=== a question", flush=True)
        reader = Inventory(inventory)
        print(ask.render(ask.run(reader, ask.DEFAULT_QUESTION)))
        print("\n=== where to look\n" + where_to_look(reader))
    except (RunError, ask.AskError, InventoryError) as error:
        print(f"make lab: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("make lab: interrupted; run it again to go on, or `make lab-down`", file=sys.stderr)
        return 130
    times = ", ".join(f"{name} {value:.0f} s" for name, value in seconds.items() if value)
    print(f"\n=== times: {times}; load {load_average()}. `make lab-down` removes everything.")
    return 0


if __name__ == "__main__":
    sys.exit(main())

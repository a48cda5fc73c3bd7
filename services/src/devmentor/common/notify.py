"""systemd's notification protocol (sd_notify(3)): READY, STOPPING, STATUS, WATCHDOG."""

import asyncio
import logging
import os
import socket
from collections.abc import Callable

log = logging.getLogger(__name__)


def notify(*lines: str) -> bool:
    """Send lines such as "READY=1" to systemd; False where no systemd listens."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return False
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
        channel.connect(address)
        channel.sendall("\n".join(lines).encode())
    return True


def watchdog_interval_s() -> float | None:
    """Half of the unit's WatchdogSec, None where this process is not watched."""
    usec, pid = os.environ.get("WATCHDOG_USEC"), os.environ.get("WATCHDOG_PID")
    if not usec or (pid and int(pid) != os.getpid()):
        return None
    return int(usec) / 2_000_000


async def feed_watchdog(alive: Callable[[], bool] = lambda: True) -> None:
    """Feed the watchdog from the event loop for as long as `alive` says so.

    A blocked loop cannot feed, and neither can a service that knows of itself that it is stuck:
    systemd then restarts it.
    """
    interval = watchdog_interval_s()
    if interval is None:
        return
    while True:
        if alive():
            notify("WATCHDOG=1")
        else:
            log.error("liveness check failed, watchdog not fed")
        await asyncio.sleep(interval)

#!/usr/bin/python3
"""Asks an address at a steady rate, each time on a new connection, and says how many requests failed and for how long.

    vip_client.py URL REQUESTS_PER_SECOND SECONDS

Requests start on time whatever became of those before. Whose certificate is shown is not the question here.
"""

import itertools
import json
import ssl
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

TIMEOUT = 2.0


def main():
    url, rate, seconds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    began = time.monotonic()

    def ask(number):
        """(seconds from the beginning to the start, the same to the end, whether it was answered)"""
        due = number / rate
        time.sleep(max(0.0, began + due - time.monotonic()))
        start = time.monotonic() - began
        try:
            with urllib.request.urlopen(url, timeout=TIMEOUT, context=context) as answer:
                answered = answer.status == 200
                answer.read()
        except OSError:
            answered = False
        return start, time.monotonic() - began, answered

    with ThreadPoolExecutor(int(rate * TIMEOUT) + rate) as pool:
        made = list(pool.map(ask, range(rate * seconds)))
    answered = sorted(end for _, end, good in made if good)
    edges = [0.0, *answered, max(end for _, end, _ in made)]
    gaps = [later - earlier for earlier, later in itertools.pairwise(edges)]
    late = [start for start, _, good in made if not good and start > seconds - 1]
    found = {
        "requests": len(made),
        "failed": sum(not good for _, _, good in made),
        "failed_late": len(late),
        "gap_s": round(max(gaps), 2),
    }
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()

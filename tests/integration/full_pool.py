"""More requests at once than an instance gives its engine. It runs on the instance's host, by the host's own Python.

Standard input is this file, then a call of `main` with (URL, key, model); it prints what came of each request as JSON.
Nothing but the standard library is there.
"""

import json
import ssl
import subprocess
import threading
import time
import urllib.error
import urllib.request

POOL = 100
TLS = "/etc/devmentor/tls"


class Instance:
    """Its API, asked with the host's certificate."""

    def __init__(self, url, key, model):
        self.url, self.key, self.model = url, key, model
        self.tls = ssl.create_default_context(cafile=f"{TLS}/ca.crt")
        self.tls.load_cert_chain(f"{TLS}/host.crt", f"{TLS}/host.key")

    def chat(self, question, tokens, deadline_s):
        """Status, seconds, Retry-After and the error's type; status 0 where no answer came."""
        began = time.monotonic()
        body = {"model": self.model, "messages": [{"role": "user", "content": question}], "max_tokens": tokens}
        headers = {
            "Authorization": f"Bearer {self.key}",
            "Content-Type": "application/json",
            "X-DevMentor-Context": "none",
            "X-DevMentor-Deadline-Ms": str(int(deadline_s * 1000)),
        }
        request = urllib.request.Request(f"{self.url}/v1/chat/completions", json.dumps(body).encode(), headers)
        retry_after = kind = None
        try:
            with urllib.request.urlopen(request, timeout=deadline_s + 30, context=self.tls) as answer:
                answer.read()
                status = answer.status
        except urllib.error.HTTPError as error:
            status, retry_after = error.code, error.headers.get("Retry-After")
            kind = json.load(error)["error"]["type"]
        except OSError as error:
            status, kind = 0, str(error)
        return {"status": status, "s": time.monotonic() - began, "retry_after": retry_after, "type": kind}

    def in_use(self):
        """Requests that the instance has at its engine now."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=10, context=self.tls) as answer:
            lines = answer.read().decode().splitlines()
        return max(float(line.split()[-1]) for line in lines if line.startswith("devmentor_qwen_pool_in_use{"))


def signal(engine, name):
    """Freeze the engine's processes, or let them go on."""
    subprocess.run(["systemctl", "kill", f"--signal={name}", engine], check=True, timeout=10)


def main(url, key, model, engine, run):
    """A hundred questions for a frozen engine, then one that can wait 1 s and one that can wait for all of them."""
    instance = Instance(url, key, model)
    found = {"held": [], "in_use": 0}

    def hold(number):
        found["held"].append(instance.chat(f"{run}: question {number}", 16, 200))

    def wait():
        found["waited"] = instance.chat(f"{run}: with time", 4, 200)

    held = [threading.Thread(target=hold, args=(number,)) for number in range(POOL)]
    waiting = threading.Thread(target=wait)
    signal(engine, "SIGSTOP")
    try:
        for thread in held:
            thread.start()
        until = time.monotonic() + 10  # soon enough for the instance not to find the engine stuck
        while found["in_use"] < POOL and time.monotonic() < until:
            found["in_use"] = max(found["in_use"], instance.in_use())
        waiting.start()
        found["hurried"] = instance.chat(f"{run}: without time", 4, 1)
    finally:
        signal(engine, "SIGCONT")
    for thread in (*held, waiting):
        thread.join()
    print(json.dumps(found))

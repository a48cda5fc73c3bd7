"""vLLM's API server as far as the keeper sees it: /metrics, /v1/completions, a drain. Files in its folder steer it.

`frozen`: answers nothing. `busy`: a request runs and no token comes. `die`: ends at once. `slow`: it needs two seconds
to drain. It writes `terminated` when it was told to stop, and `drained` when it did.
"""

import http.server
import json
import pathlib
import signal
import sys
import threading
import time

FOLDER = pathlib.Path(__file__).resolve().parents[3]  # it is vllm/entrypoints/openai/api_server.py there
TOKENS = [0]


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_arguments: object) -> None: ...

    def answer(self, text: str) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def do_GET(self) -> None:
        while (FOLDER / "frozen").exists():
            time.sleep(0.05)
        running = int((FOLDER / "busy").exists())
        self.answer(
            f'vllm:num_requests_running{{engine="0",model_name="m"}} {running}.0\n'
            'vllm:num_requests_waiting{engine="0",model_name="m"} 0.0\n'
            'vllm:num_requests_waiting_by_reason{engine="0",reason="x"} 7.0\n'
            f'vllm:prompt_tokens_total{{engine="0",model_name="m"}} {TOKENS[0]}.0\n'
            'vllm:generation_tokens_total{engine="0",model_name="m"} 1.0\n'
        )

    def do_POST(self) -> None:
        while (FOLDER / "frozen").exists():
            time.sleep(0.05)
        self.rfile.read(int(self.headers["Content-Length"]))
        TOKENS[0] += 1
        self.answer(json.dumps({"choices": [{"text": "x"}]}))


def main() -> None:
    (FOLDER / "arguments").write_text(json.dumps(sys.argv[1:]))
    if (FOLDER / "die").exists():
        sys.exit(3)
    port = int(next(word for word in sys.argv if word.startswith("--port=")).partition("=")[2])
    server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    stopped.wait()
    (FOLDER / "terminated").touch()
    if (FOLDER / "slow").exists():
        time.sleep(2)
    (FOLDER / "drained").touch()


if __name__ == "__main__":
    main()

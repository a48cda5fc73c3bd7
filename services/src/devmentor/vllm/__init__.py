"""vLLM as a systemd service: readiness by a generated token, watchdog by forward progress, a stop that drains."""

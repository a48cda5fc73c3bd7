"""llama.cpp's own OpenAI-compatible server as a systemd service: settings, readiness, watchdog, drain."""

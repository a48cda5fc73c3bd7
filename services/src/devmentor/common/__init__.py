"""What every DevMentor service shares: settings, logs, errors, keys, TLS, health, metrics and the server runner."""

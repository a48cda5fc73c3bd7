"""Every SQL statement of the service, each for one tenant. Callers hold the transaction."""

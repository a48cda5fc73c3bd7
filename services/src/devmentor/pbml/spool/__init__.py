"""The local spool: writes that PostgreSQL can not take now, kept on this host's disk until it can."""

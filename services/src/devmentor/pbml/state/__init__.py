"""A replica's local state: what a fetch needs while PostgreSQL or Qdrant is away, in one SQLite file.

The worker writes it by following the ledger (`follow`), the API reads it (`reader`, `fetch`). It is a copy: whatever is
wrong with it, it is made again from PostgreSQL.
"""

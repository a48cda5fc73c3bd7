"""PBML: documents and turns in, context within a token budget out. PostgreSQL is the truth, Qdrant an index of it."""

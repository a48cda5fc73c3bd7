"""Schema revisions, applied by alembic: `devmentor-qwen prepare`."""

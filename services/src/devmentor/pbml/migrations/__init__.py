"""Schema revisions, applied by alembic: `devmentor-pbml migrate`."""

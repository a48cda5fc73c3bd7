"""Summaries of older turns, and how far each conversation is folded into them."""

from devmentor.pbml.migrations.run import execute

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    execute("SET LOCAL lock_timeout = '3s'")
    execute("""
        -- Level 0 is of turns, level n of summaries of level n - 1. Ranges of a level do not overlap.
        CREATE TABLE summaries (
            tenant text NOT NULL,
            conversation_id text NOT NULL,
            level smallint NOT NULL,
            first_seq bigint NOT NULL,                    -- the first turn's
            last_seq bigint NOT NULL,                     -- the last turn's, included
            turns integer NOT NULL,
            body text,                                    -- NULL: to be made again; '': no turn is left
            shown boolean NOT NULL,                       -- has a body, and no summary of a higher level stands for it
            parent_seq bigint,                            -- first_seq of the one on the next level that is made of it
            sources bytea,                                -- SHA-256 of what it was made of
            model text,
            made_at timestamptz NOT NULL DEFAULT now(),
            PRIMARY KEY (tenant, conversation_id, level, first_seq)
        );
        CREATE INDEX summaries_shown ON summaries (tenant, conversation_id, level, last_seq) WHERE shown;
        CREATE INDEX summaries_stale ON summaries (tenant, conversation_id, level, first_seq) WHERE body IS NULL;
        CREATE INDEX summaries_top ON summaries (tenant, conversation_id, level, first_seq) WHERE parent_seq IS NULL;
        CREATE INDEX summaries_range ON summaries (tenant, conversation_id, last_seq, first_seq);

        -- A row for a conversation that was looked at. Written by workers and by deletions, never by an ingest.
        CREATE TABLE folds (
            tenant text NOT NULL,
            conversation_id text NOT NULL,
            folded_seq bigint NOT NULL DEFAULT 0,         -- turns up to here are in summaries
            seen_seq bigint NOT NULL DEFAULT 0,           -- the newest turn that made it due
            due_at timestamptz,                           -- when to look at it; NULL: not before its next turn
            holder text,
            held_until timestamptz,
            failed_runs integer NOT NULL DEFAULT 0,
            failure text,
            parked_at timestamptz,                        -- given up until its material changes or somebody asks
            PRIMARY KEY (tenant, conversation_id)
        );
        CREATE INDEX folds_due ON folds (due_at) WHERE due_at IS NOT NULL;
        CREATE INDEX folds_parked ON folds (parked_at) WHERE parked_at IS NOT NULL;

        INSERT INTO maintenance (task) VALUES ('summaries');
    """)


def downgrade() -> None:
    execute("SET LOCAL lock_timeout = '3s'")
    execute("DROP TABLE folds, summaries")
    execute("DELETE FROM maintenance WHERE task = 'summaries'")

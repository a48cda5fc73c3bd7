"""Full text: chunks by their words, with a bound on what is read before anything is ranked.

GIN answers a tsquery by reading the posting list of its rarest word when words are joined by AND, and the whole list of
every word when by OR. A common word of 10^6 chunks therefore never stands alone here: it only narrows what rarer words
found. How common a word is, ANALYZE says.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from devmentor.pbml.db import Connection
from devmentor.pbml.store.chunks import LiveChunk

INDEX = "chunks_lexemes"

LEXEMES = (
    "(to_tsvector('simple', body) || array_to_tsvector(CASE WHEN conversation_id IS NULL"
    " THEN ARRAY[' t ' || tenant, ' d ' || tenant || ' ' || document_id]"
    " ELSE ARRAY[' c ' || tenant || ' ' || conversation_id] END))"
)
"""What is indexed: the words of a chunk, and whose it is. The parser makes no word with a blank in it, so a text cannot
claim to be another tenant's."""

_MATCHING = f"SELECT tenant, document_id, version, chunk FROM chunks WHERE {LEXEMES} @@"  # noqa: S608

_MOST_WORDS = 8
_MOST_LEXEMES = 64
_WORD_BYTES = 2046
"""PostgreSQL takes no longer word in a tsquery, and to_tsvector passes longer ones over."""


@dataclass(frozen=True, slots=True)
class Frequencies:
    """How many chunks hold a word, as far as ANALYZE knows: `rows` of the commonest, `others` at most of any other."""

    chunks: float = 0.0
    rows: dict[str, float] = field(default_factory=dict)
    others: float = 0.0

    def of(self, word: str) -> float:
        """Chunks with this word, at most, as an estimate."""
        return self.rows.get(word, self.others)

    def weight(self, word: str) -> float:
        """Inverse document frequency: ln(1 + N / n), what it tells that a chunk has the word."""
        return math.log1p(max(self.chunks, 1.0) / max(self.of(word), 1.0))


@dataclass(frozen=True, slots=True)
class Plan:
    """Queries in the order in which they may fill the bound, and what a found word weighs."""

    tiers: list[str]
    weights: dict[str, float]


def plan(
    words: Sequence[str],
    frequencies: Frequencies,
    *,
    tenant: str,
    conversation_id: str | None,
    document_ids: Sequence[str] | None,
    common: int,
) -> Plan:
    """What to ask for: all words, then three and two of the rarest, then any of the rare ones.

    A word that more than `common` chunks hold is never asked for by itself; where there are only such, nothing is.
    """
    short = {word for word in words if 0 < len(word.encode()) <= _WORD_BYTES}
    known = sorted(short, key=lambda word: (frequencies.of(word), -len(word), word))[:_MOST_WORDS]
    rare = [word for word in known if word not in frequencies.rows or frequencies.of(word) <= common]
    if not rare:
        return Plan([], {})
    quoted = [_quoted(word) for word in known]
    found: list[str] = []
    for count in dict.fromkeys((len(quoted), 3, 2)):
        if 1 < count <= len(quoted):
            found.append("(" + " & ".join(quoted[:count]) + ")")
    found.append("(" + " | ".join(_quoted(word) for word in rare) + ")")
    scope = _scope(tenant, conversation_id, document_ids)
    # A tier leaves out what the one before it has found already.
    tiers = [f"{scope} & {tier}" + (f" & !{found[number - 1]}" if number else "") for number, tier in enumerate(found)]
    return Plan(tiers, {word: frequencies.weight(word) for word in known})


def _scope(tenant: str, conversation_id: str | None, document_ids: Sequence[str] | None) -> str:
    """The tenant's documents, or those that are named, and the turns of the conversation."""
    parts = [f" t {tenant}"] if document_ids is None else [f" d {tenant} {name}" for name in document_ids]
    if conversation_id is not None:
        parts.append(f" c {tenant} {conversation_id}")
    return "(" + " | ".join(_quoted(part) for part in parts) + ")"


def _quoted(word: str) -> str:
    """A word as a tsquery's text has it."""
    return "'" + word.replace("\\", "\\\\").replace("'", "''") + "'"


async def frequencies(c: Connection) -> Frequencies:
    """From the statistics of the index, which the service owns; empty where nothing was analysed yet."""
    cursor = await c.execute(
        "SELECT t.reltuples AS chunks, s.most_common_elems::text::text[] AS words, s.most_common_elem_freqs AS shares"
        " FROM pg_class t JOIN pg_namespace n ON n.oid = t.relnamespace"
        " LEFT JOIN pg_stats s ON s.schemaname = n.nspname AND s.tablename = %s"
        " WHERE t.oid = 'chunks'::regclass",
        (INDEX,),
    )
    row = await cursor.fetchone()
    if row is None or not row["words"] or row["chunks"] <= 0:
        return Frequencies()
    chunks, words, shares = row["chunks"], row["words"], row["shares"]
    # After the words' own shares come the smallest and the largest of them.
    return Frequencies(
        chunks, {word: share * chunks for word, share in zip(words, shares, strict=False)}, shares[len(words)] * chunks
    )


async def parse(c: Connection, text: str, timeout_ms: int) -> list[str]:
    """The words of a query as the index has them. Bounds what follows in the same transaction.

    Sequential scans are off: the planner believes that words are spread evenly, and where they are not would read
    the whole table for a bounded number of rows.
    """
    cursor = await c.execute(
        "SELECT set_config('statement_timeout', %s, true), set_config('enable_seqscan', 'off', true),"
        " set_config('jit', 'off', true),"
        " (SELECT array_agg(w.lexeme) FROM (SELECT lexeme FROM unnest(to_tsvector('simple', %s)) LIMIT %s) w) AS words",
        (f"{timeout_ms}ms", text, _MOST_LEXEMES),
    )
    row = await cursor.fetchone()
    assert row is not None
    return row["words"] or []


async def search(c: Connection, tenant: str, wanted: Plan, *, candidates: int, limit: int) -> list[LiveChunk]:
    """Live chunks by their words, best first: the weights of the words that a chunk has, then how close they are.

    At most `candidates` are read and ranked; where more would match, those that match the stricter queries come first.
    """
    if not wanted.tiers:
        return []
    values: dict[str, object] = {
        "tenant": tenant,
        "candidates": candidates,
        "limit": limit,
        "words": [_quoted(word) for word in wanted.weights],
        "weights": list(wanted.weights.values()),
        "any": " | ".join(_quoted(word) for word in wanted.weights),
    }
    tiers = []
    for number, tier in enumerate(wanted.tiers):
        values[f"tier{number}"] = tier
        tiers.append(f"({_MATCHING} %(tier{number})s::tsquery LIMIT %(candidates)s)")
    cursor = await c.execute(
        f"WITH found AS MATERIALIZED (SELECT * FROM ({' UNION ALL '.join(tiers)}) tiers LIMIT %(candidates)s),"  # noqa: S608
        " live AS MATERIALIZED (SELECT k.*, to_tsvector('simple', k.body) AS words FROM found f"
        " JOIN live_chunks k USING (tenant, document_id, version, chunk) WHERE k.tenant = %(tenant)s)"
        ' SELECT document_id, version, chunk, section, title, body, kind, start_char AS start, end_char AS "end",'
        " ts_rank_cd(words, %(any)s::tsquery, 32) + (SELECT coalesce(sum(w.weight), 0)"
        " FROM unnest(%(words)s::text[], %(weights)s::float8[]) AS w(word, weight)"
        " WHERE live.words @@ w.word::tsquery) AS score"
        " FROM live ORDER BY score DESC, document_id, chunk LIMIT %(limit)s",
        values,
    )
    return [LiveChunk(**row) for row in await cursor.fetchall()]

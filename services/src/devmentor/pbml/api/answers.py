"""Answers of the API, for its document: a test compares them with what the endpoints say."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from devmentor.pbml.models import Status

Time = Annotated[str, Field(json_schema_extra={"format": "date-time"})]
Watermark = Annotated[str, Field(description="hand it to a fetch: what it stands for is in the answer")]
Durability = Annotated[
    Literal["quorum", "primary", "local"],
    Field(description="where the commit is; local: on one replica's disk, until PostgreSQL has it"),
]
NextCursor = Annotated[str | None, Field(description="goes on after this page; null at the end. A page may be short.")]


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Acknowledged(_Answer):
    """Text, version and job are in one commit, or the text in a replica's spool (`local`)."""

    watermark: Watermark
    durability: Durability


class AcceptedDocument(Acknowledged):
    """The version that was given."""

    document_id: str
    version: Annotated[int | None, Field(description="null where it is spooled: PostgreSQL gives it at the replay")]


class GivenVersion(_Answer):
    """A document of a batch."""

    document_id: str
    version: int
    watermark: Watermark


class AcceptedDocuments(Acknowledged):
    """The versions that were given, in the order of the request. `watermark` stands for all of them."""

    documents: list[GivenVersion]


class DeletedConversation(_Answer):
    """Out of every answer from now on."""

    turns: int
    watermark: str | None


class DocumentStatus(_Answer):
    """A document's newest version."""

    document_id: str
    version: int
    watermark: Watermark
    kind: Literal["document", "turn"]
    title: str | None
    metadata: dict[str, Any]
    status: Status
    failure: str | None
    chunks: int | None
    content_bytes: int
    live_version: int | None
    received_at: Time
    embedded_at: Time | None
    indexed_at: Time | None
    live_at: Time | None


class ListedDocument(_Answer):
    """A document in a listing."""

    document_id: str
    version: int
    live_version: int | None
    title: str | None
    status: Status
    failure: str | None
    content_bytes: int
    received_at: Time
    live_at: Time | None


class Documents(_Answer):
    """A page, in the order of ids."""

    documents: list[ListedDocument]
    next_cursor: NextCursor


class ListedConversation(_Answer):
    """A conversation in a listing."""

    conversation_id: str
    watermark: Annotated[str, Field(description="of its newest turn")]


class Conversations(_Answer):
    """A page, in the order of ids."""

    conversations: list[ListedConversation]
    next_cursor: NextCursor


class ListedTurn(_Answer):
    """A turn in a listing."""

    document_id: Annotated[str, Field(description="its own name: GET and DELETE of /v1/documents take it")]
    watermark: Watermark
    role: str
    content: str
    status: Status
    received_at: Time


class Turns(_Answer):
    """A page, oldest first."""

    turns: list[ListedTurn]
    next_cursor: NextCursor


class Missing(BaseModel):
    """What an answer does not draw on although it is acknowledged."""

    failed: int
    unindexed: int


class SummaryOf(_Answer):
    """What a summary stands for, and who wrote it. Level 0 is made of turns, a higher one of summaries."""

    level: int
    first_turn: Watermark
    last_turn: Watermark
    turns: int
    model: str | None
    made_at: Time


class Chunk(BaseModel):
    """A pinned fact, a summary of older turns, or chunks of one version that follow each other. `scores` are each
    source's own.
    """

    text: str
    score: float
    scores: dict[str, float]
    source: str
    document_id: str
    version: Annotated[int, Field(description="0 where it is spooled: PostgreSQL gives one at the replay")]
    chunk: int
    first_chunk: int | None = None
    last_chunk: int | None = None
    start: int | None = None
    end: int | None = None
    kind: str
    title: str | None
    section: str
    tokens: int
    truncated: bool
    summary: SummaryOf | None = None


class Found(BaseModel):
    """Context within the budget: pinned facts, summaries of older turns, then what was found, best first."""

    chunks: list[Chunk]
    turns: list[dict[str, Any]]
    tokens: int
    token_counter: Annotated[str, Field(description="what counted: a tokenizer's digest, or bytes and their ratio")]
    context_version: str
    degraded: bool
    missing: Missing


class Pin(_Answer):
    """A pinned fact; of the whole tenant where it has no conversation."""

    name: str
    conversation_id: str | None
    text: str
    updated_at: Time


class Pins(_Answer):
    """All of a tenant, or of a conversation, by name."""

    pins: list[Pin]


class PinChanged(_Answer):
    """In force from now on."""

    name: str
    durability: str


class PinWritten(PinChanged):
    """In force from now on."""

    created: bool


class Used(_Answer):
    """How much of something is stored."""

    used: int
    limit: Annotated[int | None, Field(description="the quota; null for none")]


class Kept(_Answer):
    """Days after which it is removed; null where it is kept."""

    documents_days: int | None
    turns_days: int | None


class Usage(_Answer):
    """What the tenant stores: newest versions that were not deleted."""

    bytes: Annotated[Used, Field(description="raw text of documents and turns, UTF-8")]
    documents: Used
    turns: Used
    retention: Kept


class ContextVersion(_Answer):
    """Equal only while a fetch would draw on the same material."""

    context_version: str


class StateDigest(_Answer):
    """What this replica's local state has of the tenant. Equal positions have equal digests, on every replica."""

    replica: str
    position: Annotated[str | None, Field(description="null while the state is not comparable: a moment later it is")]
    digest: Annotated[str, Field(description="256 bits in hexadecimal; no documents are 0")]
    documents: int
    synced_at: Time


class OpenApi(BaseModel):
    """An OpenAPI 3.1 document."""

    model_config = ConfigDict(extra="allow")

    openapi: str


class ErrorDetail(_Answer):
    """`code` is stable and for programs, `message` says what to do, `param` names the field."""

    message: str
    type: str
    code: str
    param: str | None


class Error(_Answer):
    """The one form of all errors."""

    error: ErrorDetail

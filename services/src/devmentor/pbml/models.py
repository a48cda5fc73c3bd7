"""Requests of the API. Everything has a limit; unknown fields are refused."""

import base64
import math
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

from devmentor.common import names

MAX_TOGETHER = 100
"""Documents of one request."""


def storable(text: str) -> str:
    """What UTF-8 and PostgreSQL can hold."""
    if "\x00" in text:
        raise ValueError("the character NUL can not be stored")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError("a lone surrogate is not text") from error
    return text


def _finite(value: str | bool | float) -> str | bool | float:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("JSON has no NaN and no infinity")
    return value


Text = Annotated[str, AfterValidator(storable), Field(json_schema_extra={"pattern": r"^[^\u0000]*$"})]
DocumentId = Annotated[str, StringConstraints(pattern=names.DOCUMENT_ID)]
ConversationId = Annotated[str, StringConstraints(pattern=names.CONVERSATION_ID)]
Watermark = Annotated[str, StringConstraints(pattern=names.WATERMARK)]
Scalar = Annotated[
    Annotated[str, StringConstraints(max_length=1024), AfterValidator(storable)] | bool | int | float,
    AfterValidator(_finite),
]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class DocumentRequest(_Request):
    """POST /v1/documents"""

    id: DocumentId
    title: Annotated[Text, StringConstraints(max_length=1024)] | None = None
    text: Annotated[Text, StringConstraints(min_length=1)]
    metadata: dict[Annotated[Text, StringConstraints(min_length=1, max_length=128)], Scalar] = Field(
        default_factory=dict, max_length=64
    )


def _distinct(documents: list[DocumentRequest]) -> list[DocumentRequest]:
    names = [document.id for document in documents]
    if twice := next((name for number, name in enumerate(names) if name in names[:number]), None):
        raise ValueError(f"document {twice} is in it twice: which version would be the newer one?")
    return documents


class DocumentsRequest(_Request):
    """POST /v1/documents:batch"""

    documents: Annotated[list[DocumentRequest], Field(min_length=1, max_length=MAX_TOGETHER), AfterValidator(_distinct)]


class TurnRequest(_Request):
    """POST /v1/turns"""

    conversation_id: ConversationId
    role: Literal["system", "user", "assistant", "tool"]
    content: Annotated[Text, StringConstraints(min_length=1)]


class PinRequest(_Request):
    """PUT /v1/pins/{name}"""

    text: Annotated[Text, StringConstraints(min_length=1)]


class Filters(_Request):
    """Which documents a fetch may answer from. Turns of the conversation are not filtered."""

    document_ids: Annotated[list[DocumentId], Field(min_length=1, max_length=100)] | None = None


class ContextRequest(_Request):
    """POST /v1/context"""

    query: Annotated[Text, StringConstraints(min_length=1)]
    conversation_id: ConversationId | None = None
    token_budget: int = Field(ge=0)
    watermark: Watermark | None = None
    filters: Filters = Field(default_factory=Filters)


Prefix = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._:/@+-]{0,255}$")]
Cursor = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,400}$")]
Limit = Annotated[int, Field(ge=1, le=1000, description="most items of a page")]
Status = Literal["received", "embedded", "indexed", "live", "superseded", "failed"]


class _Query(BaseModel):
    """Parameters of an address are text: numbers are read from it."""

    model_config = ConfigDict(extra="forbid")


class _Page(_Query):
    limit: Limit = 100
    cursor: Cursor | None = Field(default=None, description="next_cursor of the page before")


class DocumentsQuery(_Page):
    """GET /v1/documents"""

    prefix: Prefix = Field(default="", description="only ids that begin so")
    status: Status | None = Field(default=None, description="only documents whose newest version is in this state")


class ConversationsQuery(_Page):
    """GET /v1/conversations"""

    prefix: Prefix = Field(default="", description="only ids that begin so")


class TurnsQuery(_Page):
    """GET /v1/conversations/{conversation_id}/turns"""


class PinsQuery(_Query):
    """/v1/pins"""

    conversation_id: ConversationId | None = Field(default=None, description="whose; without, the tenant")


class VersionQuery(_Query):
    """GET /v1/context/version"""

    conversation_id: ConversationId | None = Field(default=None, description="count this conversation's turns too")


def cursor_of(place: str | int) -> str:
    """Where a listing goes on, as clients see it: not to be read by them."""
    return base64.urlsafe_b64encode(str(place).encode()).decode().rstrip("=")


def place_of(cursor: str) -> str:
    """The inverse; ValueError where it is no cursor of ours."""
    place = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True).decode()
    return storable(place)


def watermark(seq: int) -> str:
    """The ledger's sequence number, as clients see it. The part before the colon names the ledger that gave it."""
    return f"pg:{seq}"


def watermark_seq(mark: str) -> int | None:
    """The inverse. None where the mark is of a replica's spool: `spooled_id` names its entry."""
    where, _, seq = mark.partition(":")
    return int(seq) if where == "pg" else None


def spooled_replica(mark: str) -> str | None:
    """The replica that a watermark "spool:REPLICA:ID" names; None where it is of the ledger."""
    where, _, rest = mark.partition(":")
    return rest.partition(":")[0] if where == "spool" else None


def spooled_id(mark: str) -> str:
    """The entry's id in a watermark "spool:REPLICA:ID"."""
    return mark.rpartition(":")[2]

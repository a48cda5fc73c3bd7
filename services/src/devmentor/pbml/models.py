"""Requests of the API. Everything has a limit; unknown fields are refused."""

import math
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

from devmentor.common import names


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


Text = Annotated[str, AfterValidator(storable)]
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


def watermark(seq: int) -> str:
    """The ledger's sequence number, as clients see it. The part before the colon names the ledger that gave it."""
    return f"pg:{seq}"


def watermark_seq(mark: str) -> int:
    """The inverse."""
    return int(mark.partition(":")[2])

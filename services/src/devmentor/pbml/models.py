"""Requests of the API. Everything has a limit; unknown fields are refused."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints


def _storable(text: str) -> str:
    """What UTF-8 and PostgreSQL can hold."""
    if "\x00" in text:
        raise ValueError("the character NUL can not be stored")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError("a lone surrogate is not text") from error
    return text


Text = Annotated[str, AfterValidator(_storable)]
DocumentId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,254}$")]
ConversationId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:@+-]{0,126}$")]
Watermark = Annotated[str, StringConstraints(pattern=r"^pg:[0-9]{1,18}$")]
Scalar = Annotated[str, StringConstraints(max_length=1024), AfterValidator(_storable)] | bool | int | float


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

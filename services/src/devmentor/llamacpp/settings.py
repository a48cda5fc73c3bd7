"""What one engine instance is told by its environment."""

from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings

from devmentor.common.settings import service_config


class LlamacppSettings(BaseSettings):
    """One model on one port. The listener is plain HTTP without keys, so it stays on loopback."""

    model_config = service_config("LLAMACPP_")

    model: Path = Field(description="The GGUF file")
    alias: str = Field(min_length=1, description="The name that clients use for the model")
    mode: Literal["chat", "embed"] = "chat"
    host: Literal["127.0.0.1", "::1"] = "127.0.0.1"
    port: int = Field(ge=1, le=65535)
    context: int = Field(default=4096, ge=16, description="Tokens a slot holds, prompt and answer together")
    parallel: int = Field(default=2, ge=1, description="Slots: requests that are computed at the same time")
    threads: int = Field(default=2, ge=1, description="Compute threads, for prompts and for generation")
    http_threads: int = Field(
        default=128, ge=4, description="One is busy for each open connection: more than all clients' pools together"
    )
    max_answer: int = Field(default=-1, ge=-1, description="Tokens of an answer whose request sets no bound; -1: none")
    pooling: Literal["mean", "cls", "last"] = Field(default="mean", description="embed: how token vectors become one")
    prompt_cache_mib: int = Field(default=256, ge=0, description="Memory for prompts of conversations without a slot")
    drain_s: float = Field(default=20.0, ge=0, description="How long requests in flight may take after SIGTERM")
    verbosity: int = Field(default=1, ge=0, le=5, description="llama.cpp's log level: 1 errors, 2 warnings, 3 much")

"""What the keeper of one vLLM engine is told by its environment. vLLM's own variables (VLLM_*) go to it untouched."""

from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings

from devmentor.common.settings import service_config


class VllmSettings(BaseSettings):
    """One engine. It listens on loopback alone: its API key would leave /metrics, /health and /tokenize open."""

    model_config = service_config("KEEPER_")

    python: Path = Field(description="The interpreter of the engine's own release")
    arguments: list[str] = Field(description="vLLM's arguments, as JSON")
    alias: str = Field(min_length=1, description="The name that clients use for the model")
    port: int = Field(ge=1, le=65535)
    drain_s: float = Field(default=20.0, ge=0, description="How long requests in flight may take after SIGTERM")
    start_s: float = Field(default=1800.0, gt=0, description="How long weights may load and kernels compile")
    probe_s: float = Field(default=15.0, gt=0, description="How long one probe may take")

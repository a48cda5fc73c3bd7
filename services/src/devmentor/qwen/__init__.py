"""QWEN, the LLM tier: an OpenAI-compatible API with caches, context and fallbacks in front of the host's engine."""

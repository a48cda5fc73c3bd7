"""How busy an engine is, by its own metrics. Pure functions."""

from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

_GAUGES = {
    # llama.cpp, vLLM, QWEN in front of either: what is computed, and what waits for its turn.
    "llamacpp:requests_processing": "llamacpp:requests_deferred",
    "vllm:num_requests_running": "vllm:num_requests_waiting",
    "devmentor_qwen_pool_in_use": "devmentor_qwen_pool_waiting",
}


class LoadUnknown(Exception):
    """It was not said, or not understood: an engine of which nothing is known is not idle."""


@dataclass(frozen=True, slots=True)
class Load:
    """Requests that are computed, and requests that wait, over all models."""

    running: float
    waiting: float

    @property
    def idle(self) -> bool:
        """Nobody would notice another request."""
        return self.running == 0 and self.waiting == 0


def parse_load(exposition: str) -> Load:
    """The gauges of a /metrics page. LoadUnknown where it has none of the pairs, or half of one."""
    sums: dict[str, float] = {}
    try:
        for family in text_string_to_metric_families(exposition):
            for sample in family.samples:
                sums[sample.name] = sums.get(sample.name, 0.0) + sample.value
    except ValueError as error:
        raise LoadUnknown(f"not Prometheus' text format: {error}") from error
    found = [(sums[running], sums[waiting]) for running, waiting in _GAUGES.items() if {running, waiting} <= set(sums)]
    if not found:
        raise LoadUnknown(f"none of these pairs is there: {', '.join(f'{a} and {b}' for a, b in _GAUGES.items())}")
    load = Load(sum(running for running, _ in found), sum(waiting for _, waiting in found))
    if not (load.running >= 0 and load.waiting >= 0):
        raise LoadUnknown(f"{load.running} running and {load.waiting} waiting requests are no numbers of requests")
    return load

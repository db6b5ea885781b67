"""What a language model's answer costs, by the price table of `genai-prices`, which needs no network."""

from __future__ import annotations

import logging
import math
import threading
from typing import Final

logger = logging.getLogger(__name__)

MAX_MODEL_CHARS: Final = 200
MAX_REMEMBERED: Final = 1_000
"""Models whose price is not known, each of them said once."""

_lock = threading.Lock()
_unknown: set[str] = set()


def cost_of(
    model: str, input_tokens: int, output_tokens: int, cached_tokens: int = 0, written_tokens: int = 0
) -> float | None:
    """Return what one request to a model costs, in US dollars, at today's list price.

    Args:
        model: As the provider names it (`claude-sonnet-4-5`), or with the provider in front
            (`anthropic/claude-sonnet-4-5`, `openai:gpt-5`).
        input_tokens: All that was sent, those read from a cache included.
        output_tokens: All that came back, reasoning included.
        cached_tokens: How many of `input_tokens` the provider read from its cache.
        written_tokens: How many of the others it wrote to its cache.
    Returns:
        None where the price is not known: for an unknown model, or where `genai-prices` is not installed.
        That is logged once for each model. Never 0 for want of knowledge.
    Raises:
        ValueError: A number is negative, or more tokens were cached than sent.
    The first call loads the price table, which takes 0.1 to 0.3 s; it may be made in a thread.
    """
    if min(input_tokens, output_tokens, cached_tokens, written_tokens) < 0:
        raise ValueError("a number of tokens cannot be negative")
    if (both := cached_tokens + written_tokens) > input_tokens:
        raise ValueError(f"{both} of {input_tokens} input tokens cannot have been cached")
    model = model[:MAX_MODEL_CHARS]
    with _lock:
        if model in _unknown:
            return None
    try:
        dollars = _look_up(model, input_tokens, output_tokens, cached_tokens, written_tokens)
    except ImportError:
        why = "genai-prices is not installed"
    except LookupError:
        why = "the price table does not have it"
    except Exception as error:  # a table with a bug in it must not stop the work that it prices
        why = f"{type(error).__name__}: {error}"
    else:
        if math.isfinite(dollars) and dollars >= 0:
            return dollars
        why = f"the price table says {dollars}"
    _say_once(model, why)
    return None


def _look_up(
    model: str, input_tokens: int, output_tokens: int, cached_tokens: int, written_tokens: int
) -> float:
    import genai_prices

    usage = genai_prices.Usage(
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        cache_read_tokens=cached_tokens or None,
        cache_write_tokens=written_tokens or None,
    )
    provider, name = _provider_and_name(model)
    return float(genai_prices.calc_price(usage, name, provider_id=provider).total_price)


def _provider_and_name(model: str) -> tuple[str | None, str]:
    """Tell the provider from the model where a name has both; the table has slashes in names of its own."""
    from genai_prices.data_snapshot import find_provider_by_id, get_snapshot

    for separator in ("/", ":"):
        provider, found, name = model.partition(separator)
        if found and name and find_provider_by_id(get_snapshot().providers, provider) is not None:
            return provider, name
    return None, model


def _say_once(model: str, why: str) -> None:
    with _lock:
        if model in _unknown or len(_unknown) >= MAX_REMEMBERED:
            return
        _unknown.add(model)
    logger.warning("what %r costs is not known: %s; its calls are not priced", model, why)

"""Own tools: a model adds up what a trip costs. Run it: ANTHROPIC_API_KEY=... python examples/own_tools.py"""

import asyncio

from mcp_tools import ToolSystem, run_agent

tools = ToolSystem()
PRICES_EUR = {"train": 49.5, "night": 80.0, "museum": 12.0}


@tools.register
def price_eur(item: str) -> float:
    """Say what one train ride, night or museum costs, in euros."""
    return PRICES_EUR[item]


@tools.register
def add(numbers: list[float]) -> float:
    """Add numbers."""
    return sum(numbers)


run = asyncio.run(run_agent("What do two train rides, three nights and one museum cost?", tools))
print(run.text or run.detail)

"""What usage costs, where the settings have a price for the model."""

from collections.abc import Iterable
from datetime import date
from fnmatch import fnmatchcase

from threadmill.settings import Price
from threadmill.store.usage import Used


def cost(prices: dict[str, Price], used: Iterable[Used]) -> float | None:
    """In dollars, of those models that have a price; None where none of them has one."""
    costs = [
        (
            (one.prompt_tokens - one.cached_tokens) * price.input
            + one.cached_tokens * (price.input if price.cached is None else price.cached)
            + one.completion_tokens * price.output
        )
        / 1e6
        for one in used
        if (price := _price(prices, one.model or "")) is not None
    ]
    return sum(costs) if costs else None


def by_day(prices: dict[str, Price], used: list[Used]) -> dict[date, float | None]:
    days = {one.day for one in used}
    return {day: cost(prices, [one for one in used if one.day == day]) for day in days}


def _price(prices: dict[str, Price], model: str) -> Price | None:
    """By its name before any pattern, of patterns the first."""
    if model in prices:
        return prices[model]
    return next((prices[name] for name in prices if fnmatchcase(model, name)), None)

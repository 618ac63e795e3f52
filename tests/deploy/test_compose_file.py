"""What can be said of docker-compose.yml without starting it; `make compose-test` does that."""

import re
from pathlib import Path

from threadmill.settings import Settings

CHECKOUT = Path(__file__).parents[2]
COMPOSE = (CHECKOUT / "docker-compose.yml").read_text()
EXAMPLE = (CHECKOUT / "deploy" / "env.example").read_text()


def test_what_must_be_filled_in_is_in_the_example_and_empty() -> None:
    demanded = set(re.findall(r"\$\{(\w+):\?", COMPOSE))
    empty = set(re.findall(r"^(\w+)=$", EXAMPLE, re.MULTILINE))
    assert demanded
    assert demanded <= empty


def test_what_the_example_names_is_read() -> None:
    named = set(re.findall(r"^#?(\w+)=", EXAMPLE, re.MULTILINE))
    assert named <= set(re.findall(r"\$\{(\w+)", COMPOSE))


def test_every_setting_exists() -> None:
    named = set(re.findall(r"^ +THREADMILL_(\w+):", COMPOSE, re.MULTILINE))
    assert named
    assert {name.lower() for name in named} <= set(Settings.model_fields)

"""The documents say what the code does."""

from docs.options import PAGE, page


def test_every_option_stands_in_the_recipe_tables() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run: python docs/options.py"

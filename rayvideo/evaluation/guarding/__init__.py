"""Guards: what training's gain costs, found while it goes on, by actors beside it (docs/guards.md)."""

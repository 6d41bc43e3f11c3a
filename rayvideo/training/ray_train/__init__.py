"""Everything that leans on Ray Train: each use of its internals says what public API is missing."""

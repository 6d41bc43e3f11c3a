"""Runs against each other: the same captions and seeds side by side, paired differences, and people's blind votes."""

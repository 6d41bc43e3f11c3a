"""Everything that leans on Ray Train's internals; each use of one says why, and what public API is missing.

The rest of the package uses Ray Train by its public API alone, which tests/test_imports.py sees to.
"""

"""Looks at a recipe's judges, clips and one micro-batch before GPU hours are spent on them."""

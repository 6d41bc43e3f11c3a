"""Rewards as Ray actors: scores and their gradients from frozen judges, over the network."""

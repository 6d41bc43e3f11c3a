"""The training step on a GPU with real-size models and random weights: `python -m benchmarks.gpu`."""

"""What a recipe needs before it has weights or a GPU: memory of its parts, time of a step, and settings that fit."""

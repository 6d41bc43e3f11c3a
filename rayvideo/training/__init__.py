"""Reward fine-tuning: objective, DeepSpeed, the loop and its launch under Ray Train."""

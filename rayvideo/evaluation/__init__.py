"""Is the tuned model better? Clips of base and tuned model, from the same captions and noise, judged and measured."""

"""Many fine-tunings of one recipe with other values of its options, of which the poor ones end early."""

"""The embedded default: a small drawn world that mirrors the paper's experiment.

Animals are drawn as short clips, most of them degraded; a small text-to-video model learns them as they are; a judge
learns to prefer the clean ones; reward fine-tuning then repairs the model. Nothing else in the package imports this.
"""

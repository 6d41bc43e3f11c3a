"""What a run takes of its machine: processors, memory, disk, network and GPUs, as MLflow's system metrics."""

from __future__ import annotations

import logging

from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor as Watched

__all__ = ["Watched", "watch"]


def watch(run_id: str, uri: str) -> Watched:
    """Log this machine's use, every ten seconds and in the background, until `finish()` of what is returned.

    Seconds are those of MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL, if it is set. The figures carry on those that the run
    has already. GPUs need the package nvidia-ml-py.
    """
    # It would say in every log that it begins, that it ends, and that there is no GPU.
    logging.getLogger("mlflow.system_metrics").setLevel(logging.WARNING)
    monitor = Watched(run_id, resume_logging=True, tracking_uri=uri)
    monitor.start()
    return monitor

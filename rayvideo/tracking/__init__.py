"""MLflow: where runs are kept, what is written into them, and how to look at them."""

from rayvideo.tracking.address import tracking_uri, uri_beside
from rayvideo.tracking.inputs import Input, captions_input
from rayvideo.tracking.look import run_url, ui_command
from rayvideo.tracking.origin import commit, overrides, versions
from rayvideo.tracking.product import Product
from rayvideo.tracking.run import (
    RunRef,
    Tracker,
    TrackingError,
    create_run,
    find_run,
    metric_name,
    open_experiment,
    run_at,
)
from rayvideo.tracking.search import attach, run_folders

__all__ = [
    "Input",
    "Product",
    "RunRef",
    "Tracker",
    "TrackingError",
    "attach",
    "captions_input",
    "commit",
    "create_run",
    "find_run",
    "metric_name",
    "open_experiment",
    "overrides",
    "run_at",
    "run_folders",
    "run_url",
    "tracking_uri",
    "ui_command",
    "uri_beside",
    "versions",
]

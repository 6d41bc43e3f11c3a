"""The product of a run as a model of MLflow's: logged beside the run, and registered if that is asked for."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import mlflow.pyfunc
import numpy as np
from mlflow import MlflowClient
from mlflow.entities import LoggedModel, LoggedModelOutput
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema, TensorSpec

from rayvideo.tracking.origin import versions

NAME = "tuned"
"""Of the logged model, beside its run's name."""
NEEDED = ("torch", "diffusers", "transformers", "peft", "ray", "mlflow")
"""What a machine that loads it needs besides this package, which is on no public index under a name of its own."""


class Product(NamedTuple):
    """A model that MLflow can load."""

    loader: str
    """The module whose `_load_pyfunc(folder, model_config)` loads it."""
    folder: Path
    """What it is loaded from."""
    example: str
    """One of the texts that it takes a list of, or a table with one column."""
    params: Mapping[str, int | float]
    """What else it takes, with defaults."""
    clip: tuple[int, int, int, int]
    """Shape [F, H, W, 3] of the pixels that it answers with for each row."""
    config: Mapping[str, str]
    """What may be changed when it is loaded, with defaults."""


def log_product(client: MlflowClient, experiment_id: str, run_id: str, product: Product, step: int) -> LoggedModel:
    """Log it as a model that the run put out at a step.

    By the client, not by `mlflow.pyfunc.log_model`, which would set this process's active run and server.
    """
    # Names are not unique: each run, and each product of a run that went on, is a model of its own.
    logging.getLogger("mlflow.pyfunc").setLevel(logging.WARNING)  # it would say that it looks at the example
    model = client.create_logged_model(experiment_id, name=NAME, source_run_id=run_id, model_type="text-to-video")
    with tempfile.TemporaryDirectory() as folder:
        saved = Path(folder, "model")
        mlflow.pyfunc.save_model(
            saved,
            loader_module=product.loader,
            data_path=str(product.folder),
            mlflow_model=Model(run_id=run_id, model_id=model.model_id),
            signature=_signature(product),
            input_example=[product.example],  # it warns of models without one
            pip_requirements=[f"{name}=={versions()[f'version.{name}']}" for name in NEEDED],
            model_config=dict(product.config),
        )
        client.log_model_artifacts(model.model_id, str(saved))
    client.finalize_logged_model(model.model_id, "READY")
    client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step)])
    return model


def register(client: MlflowClient, name: str, model: LoggedModel) -> str:
    """Enter a logged model into the registry as the newest version under `name`, and return the version."""
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    # Not by models:/ID, which MLflow would look for on this process's own server.
    place, run = model.artifact_location, model.source_run_id
    version = client.create_model_version(name, place, run_id=run, model_id=model.model_id)
    return str(version.version)


def _signature(product: Product) -> ModelSignature:
    kinds = {int: "long", float: "double"}
    return ModelSignature(
        inputs=Schema([ColSpec("string")]),
        outputs=Schema([TensorSpec(np.dtype(np.uint8), (-1, *product.clip))]),
        params=ParamSchema([ParamSpec(name, kinds[type(value)], value) for name, value in product.params.items()]),
    )

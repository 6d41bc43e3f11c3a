"""One `fit` of Ray Train: workers are started, run the loop, are started again when they are lost, and end."""

from __future__ import annotations

import os

import ray
from ray.train import ControllerError, FailureConfig, LoggingConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig

from rayvideo.errors import UserError
from rayvideo.runs.checkpoints import CHECKPOINTS, forget_reports
from rayvideo.runs.news import News
from rayvideo.training.plan import Plan
from rayvideo.training.ray_train.elastic import ElasticTrainer
from rayvideo.training.ray_train.failures import OnFailure
from rayvideo.training.ray_train.preemption import OnSigterm
from rayvideo.training.ray_train.retention import Retention
from rayvideo.training.ray_train.work import work


def run_attempt(plan: Plan) -> None:
    """Run the loop until the workers end: after the last step, at a verdict, or because they were asked to stop.

    Raises:
        UserError: as a worker raised it.
        ControllerError: the workers were lost more often than `training.max_failures` allows.
    """
    plan.board.pin(News("starting workers"))
    forget_reports(plan.run_folder)
    options = plan.recipe.training
    workers = options.workers
    os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"  # or relative paths of the recipe would mean something else in workers
    trainer = ElasticTrainer(
        work,
        sizes=options.sizes,
        train_loop_config={"plan": ray.put(plan)},
        torch_config=TorchConfig(backend="nccl" if options.gpus_per_worker else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=(workers.min, workers.max) if workers.elastic else workers.max,
            elastic_resize_monitor_interval_s=workers.check_every_s,
            use_gpu=options.gpus_per_worker > 0,
            resources_per_worker={"CPU": options.cpus_per_worker, "GPU": options.gpus_per_worker, **options.resources},
        ),
        run_config=RunConfig(
            name=CHECKPOINTS,
            storage_path=plan.run_folder,
            failure_config=FailureConfig(max_failures=options.max_failures),
            callbacks=[
                OnFailure(plan.run_folder, plan.board),
                OnSigterm(),
                Retention(plan.run_folder, options.keep_checkpoints, options.keep_best == "reward"),
            ],
            logging_config=LoggingConfig(log_level="CRITICAL"),  # what fails is raised here, or told by OnFailure
        ),
    )
    try:
        trainer.fit()
    except ControllerError as error:
        raise (error.controller_failure if isinstance(error.controller_failure, UserError) else error) from None

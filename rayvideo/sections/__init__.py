"""The sections of a recipe: every option, documented where it stands."""

from rayvideo.sections.base import AutoPrecision, FilePath, Precision, Section
from rayvideo.sections.data import Data, Editing
from rayvideo.sections.evaluation import Evaluation, Features, Tracking
from rayvideo.sections.model import Lora, Model
from rayvideo.sections.reward import Judge, Replicas, Rewards
from rayvideo.sections.training import Ddpo, Draft, Rwr, Training, Workers

__all__ = [
    "AutoPrecision",
    "Data",
    "Ddpo",
    "Draft",
    "Editing",
    "Evaluation",
    "Features",
    "FilePath",
    "Judge",
    "Lora",
    "Model",
    "Precision",
    "Replicas",
    "Rewards",
    "Rwr",
    "Section",
    "Tracking",
    "Training",
    "Workers",
]

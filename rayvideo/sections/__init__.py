"""The sections of a recipe: every option, documented where it stands."""

from rayvideo.sections.base import AutoPrecision, FilePath, Positive, Precision, Section, Share
from rayvideo.sections.data import Data
from rayvideo.sections.editing import Editing
from rayvideo.sections.evaluation import Evaluation, Features, Tracking
from rayvideo.sections.model import Lora, Model
from rayvideo.sections.reward import Judge, Replicas, Rewards
from rayvideo.sections.training import Training, Workers, Zero3

__all__ = [
    "AutoPrecision",
    "Data",
    "Editing",
    "Evaluation",
    "Features",
    "FilePath",
    "Judge",
    "Lora",
    "Model",
    "Positive",
    "Precision",
    "Replicas",
    "Rewards",
    "Section",
    "Share",
    "Tracking",
    "Training",
    "Workers",
    "Zero3",
]

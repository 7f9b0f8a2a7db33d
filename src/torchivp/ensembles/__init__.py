"""Many problems at once: on this machine or on many, with summaries."""

from torchivp.ensembles.executors import WorkersDied
from torchivp.ensembles.progress import Progress
from torchivp.ensembles.rows import Rows
from torchivp.ensembles.running import ensemble
from torchivp.ensembles.store import StoredEnsemble
from torchivp.ensembles.summary import EnsembleSummary, moments, summarise

__all__ = [
    "EnsembleSummary",
    "Progress",
    "Rows",
    "StoredEnsemble",
    "WorkersDied",
    "ensemble",
    "moments",
    "summarise",
]

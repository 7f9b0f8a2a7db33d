"""Ensembles on the executors of Dask, Ray and MPI, on this machine: the bits of one process."""

import os
import shutil
import sys
from concurrent.futures import Executor
from functools import partial
from pathlib import Path

import pytest

import ensemble_problems as problems
from programs import run_program
from torchivp import ensemble

pytestmark = pytest.mark.slow
TESTS = Path(__file__).parents[1]


@pytest.fixture
def paths_for_workers(monkeypatch):
    """Other processes find what this one does."""
    import torchivp

    source = str(Path(torchivp.__file__).parents[1])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), source, os.environ.get("PYTHONPATH", "")]))


def test_dask_with_a_worker_that_is_killed(tmp_path, paths_for_workers):
    distributed = pytest.importorskip("distributed")
    (tmp_path / "die-6").write_text("1")
    dying = partial(problems.dying, folder=str(tmp_path))
    cluster = distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=None, local_directory=str(tmp_path / "dask")
    )
    with cluster, distributed.Client(cluster) as client:
        found = ensemble(dying, 20, block=2, executor=client.get_executor())
        paths = ensemble(problems.network, 11, block=4, executor=client.get_executor(), chunk=8)
    begun = [int(line) for line in (tmp_path / "begun").read_text().split()]
    assert set(begun) == set(range(0, 20, 2)) and begun.count(6) == 2
    assert (tmp_path / "die-6").read_text() == "0"
    assert found.numpy().tobytes() == ensemble(dying, 20, block=2).numpy().tobytes()
    assert paths.numpy().tobytes() == ensemble(problems.network, 11, block=4).numpy().tobytes()


class RayExecutor(Executor):
    """As the documentation has it."""

    def submit(self, function, /, *args, **kwargs):
        import ray

        return ray.remote(function).remote(*args, **kwargs).future()


def test_ray_with_a_worker_that_is_killed(tmp_path, paths_for_workers):
    ray = pytest.importorskip("ray")
    (tmp_path / "die-6").write_text("1")
    dying = partial(problems.dying, folder=str(tmp_path))
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        found = ensemble(dying, 20, block=2, executor=RayExecutor())
        paths = ensemble(problems.network, 11, block=4, executor=RayExecutor(), chunk=8)
    finally:
        ray.shutdown()
    assert (tmp_path / "die-6").read_text() == "0"
    assert found.numpy().tobytes() == ensemble(dying, 20, block=2).numpy().tobytes()
    assert paths.numpy().tobytes() == ensemble(problems.network, 11, block=4).numpy().tobytes()


MPI = """
import sys
import torch
from mpi4py.futures import MPIPoolExecutor
import ensemble_problems as problems
from torchivp import ensemble

if __name__ == "__main__":
    torch.set_num_threads(1)
    with MPIPoolExecutor() as executor:
        found = ensemble(problems.network, 11, block=4, executor=executor)
        assert executor.num_workers == 1  # of two ranks one hands out
    assert torch.equal(found, ensemble(problems.network, 11, block=4))
    print("the same bits")
"""


def test_two_ranks_of_mpi(tmp_path, paths_for_workers):
    pytest.importorskip("mpi4py")
    mpiexec = shutil.which("mpiexec", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if mpiexec is None:
        pytest.skip("there is no mpiexec")
    script = tmp_path / "program.py"
    script.write_text(MPI)
    done = run_program([mpiexec, "-n", "2", sys.executable, "-m", "mpi4py.futures", script], cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip() == "the same bits"

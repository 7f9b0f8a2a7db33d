"""Who is told of a training hears all of it."""

import subprocess
import sys
import types

import pytest
import torch
from torch import nn

from torchivp import train
from torchivp.data import SimulatedTrajectories
from torchivp.nn import NeuralODE
from torchivp.training import Callback, MLflow, TensorBoard, WandB


def run(**options):
    t = torch.linspace(0, 1, 4)
    dataset = SimulatedTrajectories(lambda t, y: -y, t, [1.0, 2.0], 4, spread=0.3, seed=0)
    model = NeuralODE(nn.Linear(2, 2), output="trajectory", method="rk4", step_size=0.5)
    return train(model, dataset, **({"epochs": 3} | options))


def test_callbacks_are_told_of_the_beginning_every_epoch_and_the_end(tmp_path):
    class Listener(Callback):
        def __init__(self):
            self.heard = []

        def begin(self, settings, epochs_done):
            self.heard.append((settings["batch_size"], settings["epochs"], epochs_done))

        def epoch(self, record):
            self.heard.append(record.epoch)

        def end(self, history):
            self.heard.append(len(history))

    first, second = Listener(), Listener()
    run(callbacks=[first], checkpoint=tmp_path / "t.pt", batch_size=2)
    run(callbacks=[second], checkpoint=tmp_path / "t.pt", batch_size=2, epochs=4)
    assert first.heard == [(2, 3, 0), 1, 2, 3, 3]
    assert second.heard == [(2, 4, 3), 4, 4]


def test_nothing_is_imported_before_it_is_used():
    check = "import sys, torchivp; sys.exit(len({'pandas', 'matplotlib', 'rich', 'tensorboard'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", check], timeout=300).returncode == 0


def test_callbacks_that_began_hear_of_the_end_when_another_does_not():
    ends = []

    class Listener(Callback):
        def end(self, history):
            ends.append(len(history))

    class Broken(Callback):
        def begin(self, settings, epochs_done):
            raise OSError("no connection")

    with pytest.raises(OSError, match="no connection"):
        run(callbacks=[Listener(), Broken(), Listener()])
    assert ends == [0]


def test_callbacks_hear_of_the_end_when_the_training_fails():
    ends = []

    class Listener(Callback):
        def epoch(self, record):
            raise KeyboardInterrupt

        def end(self, history):
            ends.append(len(history))

    with pytest.raises(KeyboardInterrupt):
        run(callbacks=[Listener()])
    assert ends == [1]


def test_the_files_of_tensorboard_hold_every_epoch(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    history = run(callbacks=[TensorBoard(tmp_path)], horizon=(0.4, 2))
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3]
    assert [event.value for event in events.Scalars("loss")] == pytest.approx(history.losses)
    assert [event.step for event in events.Scalars("horizon")] == [1, 2]
    assert {"lr", "nfe_forward", "nfe_backward", "seconds"} < set(events.Tags()["scalars"])


def test_tensorboard_forgets_epochs_that_are_repeated(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(epochs=2, checkpoint=tmp_path / "training.pt", callbacks=[TensorBoard(tmp_path / "log")])
    kept = (tmp_path / "training.pt").read_bytes()
    run(epochs=4, checkpoint=tmp_path / "training.pt", callbacks=[TensorBoard(tmp_path / "log")])
    (tmp_path / "training.pt").write_bytes(kept)  # as if it had been killed before it could save
    run(epochs=5, checkpoint=tmp_path / "training.pt", callbacks=[TensorBoard(tmp_path / "log")])
    events = EventAccumulator(str(tmp_path / "log"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4, 5]


def test_mlflow_gets_settings_and_metrics(monkeypatch):
    calls = []
    active = []
    mlflow = types.ModuleType("mlflow")
    mlflow.active_run = lambda: active[-1] if active else None
    mlflow.start_run = lambda **options: (calls.append(("start", options)), active.append(1))
    mlflow.end_run = lambda: (calls.append(("end",)), active.pop())
    mlflow.log_params = lambda params: calls.append(("params", params["optimizer"]))
    mlflow.log_metrics = lambda metrics, step: calls.append(("metrics", metrics["loss"], step))
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    history = run(callbacks=[MLflow(run_name="decay")])
    logged = [("metrics", loss, step) for step, loss in enumerate(history.losses, 1)]
    assert calls == [("start", {"run_name": "decay"}), ("params", "Adam"), *logged, ("end",)]
    calls.clear()
    active.append("the user's own run")
    run(callbacks=[MLflow()])
    assert calls[0] == ("params", "Adam") and ("end",) not in calls


def test_wandb_gets_settings_and_metrics(monkeypatch):
    calls = []

    class Run:
        log = staticmethod(lambda metrics, step: calls.append((metrics["loss"], step)))
        finish = staticmethod(lambda: calls.append("finish"))

    wandb = types.ModuleType("wandb")
    wandb.init = lambda config, project: (calls.append((config["epochs"], project)), Run)[1]
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    history = run(callbacks=[WandB(project="decay")])
    assert calls == [(3, "decay"), *((loss, step) for step, loss in enumerate(history.losses, 1)), "finish"]


@pytest.mark.parametrize(("make", "module"), [(MLflow, "mlflow"), (WandB, "wandb"), (TensorBoard, "tensorboard")])
def test_what_is_not_installed_is_named(make, module, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    with pytest.raises(ImportError, match=f"needs {module}: pip install {module}"):
        make()


def test_progress_is_drawn_on_standard_error(capsys, monkeypatch):
    run(progress=True)
    drawn = capsys.readouterr()
    assert drawn.out == "" and "training" in drawn.err and "3/3" in drawn.err and "loss" in drawn.err
    run()
    assert capsys.readouterr().err == ""
    monkeypatch.setitem(sys.modules, "rich.console", None)
    with pytest.raises(ImportError, match=r"pip install 'torchivp\[train\]'"):
        run(progress=True)

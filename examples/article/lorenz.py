"""The Lorenz system: three parameters from thirty chaotic series.

python examples/article/lorenz.py            # a minute or two: 5 of the article's 300 epochs
python examples/article/lorenz.py --full     # all of them: ten minutes or more
python examples/article/lorenz.py --quick    # seconds, to see that it runs
"""

import torch
from article import SEED, arguments, draw, in_single_precision, record_training, run_fit, run_loops

from torchivp.data import SimulatedTrajectories
from torchivp.models import Lorenz

TRUTH = {"sigma": 10.0, "rho": 28.0, "beta": 8 / 3}


def main():
    chosen = arguments(__doc__, full="all of the article's 300 epochs")
    t = torch.arange(0, 2 if chosen.quick else 10, 0.05, dtype=torch.float64)
    y0 = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    data = SimulatedTrajectories(
        Lorenz(**TRUTH),
        t,
        y0,
        n=5 if chosen.quick else 30,
        spread=0.1,
        noise=0.01,
        seed=SEED,
        names=["x", "y", "z"],
        method="dopri8",
        rtol=1e-12,
        atol=1e-12,
    )
    single, start = in_single_precision(data), Lorenz(sigma=10.2, rho=28.2, beta=3.0)
    epochs = 1 if chosen.quick else 300 if chosen.full else 5
    print(f"{epochs} of the article's 300 epochs" + ("" if chosen.full else "; --full trains through all"))
    settings = {"epochs": epochs, "lr": 1e-3, "batch_size": 5, "step_size": 0.05}
    adam, _ = run_loops(start.float(), single, **settings)
    record_training(chosen.out / "lorenz.gif", start.float(), single, **settings)
    result = run_fit(start.double(), data, TRUTH, adam, method="dopri8")
    worst = max(abs(result[name].value / value - 1) for name, value in TRUTH.items())
    print(f"the fit's largest relative error: {worst:.1e}")
    rows = {"Before": [("start", start)], "After": [("Adam", adam.double()), ("fit", result.model)]}
    draw(chosen.out / "lorenz.png", data[0], data.names, rows, plane=(0, 2))


if __name__ == "__main__":
    main()

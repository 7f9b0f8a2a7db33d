"""Calibrate Heston's model of a stock to the prices of options, by paths of its price and variance.

The variance of the stock's return is itself random. It is pulled back to a mean, and its noise is correlated with that
of the price:

    dS = S sqrt(v) dW1,    dv = speed (mean - v) dt + wobble sqrt(v) dW2,    dW1 dW2 = correlation dt.

The price of an option is the mean of what it pays over many paths. Since the seed of the paths is fixed, a price is a
continuous function of the five parameters, and its derivatives go along with the paths in forward mode: five directions
at once. With them scipy's least squares finds the parameters that fit the market best; their standard errors count both
the noise of the market's prices and the chance in the paths. Here the market's prices come from an integral of the
characteristic function, which knows nothing of paths, and are blurred a little.

    python examples/heston.py            # a minute
    python examples/heston.py --quick    # seconds, with few paths
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.optimize import least_squares

from torchivp import SDEIto, sdeint

NAMES = ("variance at the start", "speed", "mean", "wobble", "correlation")
TRUTH = np.array([0.035, 2.5, 0.06, 0.4, -0.65])  # in years
GUESS = np.array([0.08, 4.0, 0.08, 0.3, -0.2])
NOISE = 0.002  # of a quoted implied volatility
MATURITIES = np.array([1 / 12, 0.25, 0.5, 1.0, 2.0])
LABELS = ("1 month", "3 months", "6 months", "1 year", "2 years")
DEPTHS = np.linspace(-1.75, 1.25, 9)  # log(strike / price today) in units of a typical standard deviation
STRIKES = np.exp(0.22 * np.sqrt(MATURITIES)[:, None] * DEPTHS)  # [maturities, strikes]; today the price is 1
SIGN = np.where(STRIKES < 1.0, -1.0, 1.0)  # the options pay max(sign (price - strike), 0): puts below, calls above
COLOURS = ("#0072B2", "#009E73", "#E69F00", "#D55E00", "#CC79A7")
BLUE, ORANGE, INK, GREY = "#0072B2", "#D55E00", "#222222", "#8A8A8A"


class Heston(SDEIto):
    """The logarithm of the price, the variance, and the noise of the price so far, [paths, 3]."""

    def __init__(self):
        super().__init__("general")

    def f(self, t, state, parameters):
        _, speed, mean, _, _ = parameters
        v = state[:, 1].clamp(min=0.0)  # a step can take the variance below zero
        return torch.stack([-0.5 * v, speed * (mean - v), torch.zeros_like(v)], dim=1)

    def g(self, t, state, parameters):
        _, _, _, wobble, correlation = parameters
        v = state[:, 1]
        root = torch.where(v > 0.0, v, 1.0).sqrt() * (v > 0.0)  # below zero it has no derivative
        nothing, rest = torch.zeros_like(v), (1.0 - correlation**2).sqrt()
        of_price = torch.stack([rest * root, correlation * root], dim=1)
        of_variance = torch.stack([nothing, wobble * root], dim=1)
        of_noise = torch.stack([nothing + rest, nothing + correlation], dim=1)
        return torch.stack([of_price, of_variance, of_noise], dim=1)


def simulate(parameters, times, paths, steps_per_year, seed=0):
    """The states at these times, [len(times), paths, 3]. With the same seed the noise is the same."""
    start = torch.zeros(paths, 3, dtype=torch.float64)
    return sdeint(
        Heston(),
        start + parameters[0] * torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64),
        times,
        method="dri1",  # of weak order 2: for prices, only the distribution of the paths matters
        dt=1.0 / steps_per_year,
        args=(parameters,),
        generator=torch.Generator().manual_seed(seed),
    )


def prices(parameters, paths, steps_per_year):
    """The price of each option that each path gives, [maturities, strikes, paths].

    Two things resemble what an option pays, and have known means: the price of the stock, and what the option pays if
    volatility is constant, on the same noise. What linear regression can tell from them is left out.
    """
    start, speed, mean, _, _ = parameters
    maturity, strike, sign = (torch.tensor(x)[..., None] for x in (MATURITIES[:, None], STRIKES, SIGN))
    log_price, _, noise = simulate(parameters, [0.0, *MATURITIES], paths, steps_per_year)[1:, None].unbind(-1)
    volatility = (mean + (start - mean) * -torch.expm1(-speed * maturity) / (speed * maturity)).sqrt()
    similar = torch.exp(volatility * noise - 0.5 * volatility**2 * maturity)
    stock = log_price.exp()
    pays, similar_pays = ((sign * (x - strike)).clamp(min=0.0) for x in (stock, similar))
    similar_mean = black_scholes(volatility[..., 0])[0][..., None]
    known = torch.stack([similar_pays - similar_mean, (stock - 1.0).expand_as(pays)], dim=-2)  # with mean zero
    centred = known - known.mean(dim=-1, keepdim=True)
    slopes = torch.linalg.solve(centred @ centred.mT, centred @ pays[..., None])
    return pays - (slopes.mT @ known)[..., 0, :]


# The five parameters as the optimiser sees them: numbers without bounds.


def natural(free):
    """The parameters of the model, from those without bounds; of a tensor or an array."""
    library = torch if isinstance(free, torch.Tensor) else np
    return library.concatenate([library.exp(free[:4]), library.tanh(free[4:])])


def unbounded(parameters):
    return np.concatenate([np.log(parameters[:4]), np.arctanh(parameters[4:])])


# Black and Scholes' prices, and Heston's by the characteristic function.


def black_scholes(volatility):
    """The prices of the options, and their derivatives with respect to volatility."""
    maturity, strike, sign = (torch.as_tensor(x) for x in (MATURITIES[:, None], STRIKES, SIGN))
    spread = volatility * maturity.sqrt()
    d = -strike.log() / spread + 0.5 * spread
    price = sign * (torch.special.ndtr(sign * d) - strike * torch.special.ndtr(sign * (d - spread)))
    return price, torch.exp(-0.5 * d**2) * (maturity / (2.0 * torch.pi)).sqrt()


def implied_volatility(price):
    """The volatilities that explain prices, an array, by bisection."""
    price = torch.as_tensor(price)
    low, high = torch.full_like(price, 1e-3), torch.full_like(price, 3.0)
    for _ in range(50):
        middle = 0.5 * (low + high)
        below = black_scholes(middle)[0] < price
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return (0.5 * (low + high)).numpy()


def exact_prices(parameters):
    """Heston's prices: Lewis' integral of the characteristic function of log(price), by the trapezoidal rule."""
    v, speed, mean, wobble, correlation = parameters
    u = np.linspace(0.0, 400.0, 8001)
    z = u - 0.5j
    t = MATURITIES[:, None]
    pull = speed - 1j * correlation * wobble * z
    d = np.sqrt(pull**2 + wobble**2 * (1j * z + z**2))
    ratio = (pull - d) / (pull + d)
    decay = np.exp(-d * t)
    of_mean = (pull - d) * t - 2.0 * np.log((1.0 - ratio * decay) / (1.0 - ratio))
    of_start = (pull - d) * (1.0 - decay) / (1.0 - ratio * decay)
    characteristic = np.exp((speed * mean * of_mean + v * of_start) / wobble**2)  # [maturities, u]
    waves = np.exp(-1j * u * np.log(STRIKES)[..., None]) * (characteristic / (u**2 + 0.25))[:, None]
    calls = 1.0 - np.sqrt(STRIKES) / np.pi * torch.trapezoid(torch.tensor(waves.real), torch.tensor(u)).numpy()
    return np.where(SIGN > 0, calls, calls - 1.0 + STRIKES)


class Calibration:
    """The misfits of the model's prices, in units of the quotes' noise, and their derivatives."""

    def __init__(self, quotes, paths, steps_per_year):
        self.prices, vega = (x.numpy() for x in black_scholes(torch.tensor(quotes)))
        self.noise = vega * NOISE
        self.paths, self.steps_per_year = paths, steps_per_year
        self.losses = []

    def model(self, free):
        return prices(natural(free), self.paths, self.steps_per_year).mean(dim=-1)

    def misfits(self, free):
        with torch.no_grad():
            misfits = (self.model(torch.tensor(free)).numpy() - self.prices) / self.noise
        self.losses.append(0.5 * (misfits**2).sum())
        return misfits.ravel()

    def derivatives(self, free):
        """The derivatives of the misfits, [misfits, 5], in forward mode."""
        found = torch.func.jacfwd(self.model, randomness="same")(torch.tensor(free))
        return found.numpy().reshape(-1, len(free)) / self.noise.reshape(-1, 1)

    def by_backward_mode(self, free, weights):
        """The derivatives of the sum of weights x misfits, in backward mode."""
        free = torch.tensor(free, requires_grad=True)
        total = (torch.tensor(weights.reshape(self.noise.shape) / self.noise) * self.model(free)).sum()
        return torch.autograd.grad(total, free)[0].numpy()

    def fit(self, guess, evaluations=None):
        """The best parameters, and the covariance of their errors: from the quotes alone, and in all.

        The prices that the paths give have errors as well, of a covariance that the paths tell.
        """
        start = unbounded(guess)
        best = least_squares(  # its first step may be as long as 0.3 in any direction
            lambda x: self.misfits(start + x),
            np.zeros_like(start),
            lambda x: self.derivatives(start + x),
            x_scale=0.3,
            ftol=1e-4,
            max_nfev=evaluations,
        )
        free, J = start + best.x, best.jac
        from_quotes = np.linalg.inv(J.T @ J)
        with torch.no_grad():
            each = prices(natural(torch.tensor(free)), self.paths, self.steps_per_year).flatten(0, 1).numpy()
        of_paths = np.cov(each / self.noise.reshape(-1, 1)) / self.paths
        return free, from_quotes, from_quotes + from_quotes @ J.T @ of_paths @ J @ from_quotes


def draw(file, quotes, calibration, free, covariance):
    figure = Figure(figsize=(12.5, 7.4), dpi=150, layout="constrained")
    rows = figure.subfigures(2, 1, height_ratios=[1.1, 1])
    smiles, estimates = rows[0].subplots(1, 2, width_ratios=[1.5, 1])
    with torch.no_grad():
        fitted, guessed = (calibration.model(torch.tensor(x)).numpy() for x in (free, unbounded(GUESS)))
    for i, colour in enumerate(COLOURS):
        smiles.plot(STRIKES[i], 100 * implied_volatility(guessed)[i], color=colour, lw=0.8, ls=":")
        smiles.plot(STRIKES[i], 100 * implied_volatility(fitted)[i], color=colour, lw=1.8, label=LABELS[i])
        smiles.plot(STRIKES[i], 100 * quotes[i], "o", ms=4.5, mfc="white", mec=colour, mew=1.4, zorder=4)
    smiles.set(xlabel="strike / price today", ylabel="implied volatility (%)")
    smiles.set_title("Market (circles) and model: calibrated, and the first guess (dotted)")
    smiles.legend(frameon=False, title="maturity", alignment="left")

    # Each parameter in units of its own standard error, about the truth.
    parameters, spread = natural(free), 1.96 * np.sqrt(np.diag(covariance))
    for i, name in enumerate(NAMES):
        low, high = natural(free - spread)[i], natural(free + spread)[i]
        unit = (high - low) / 3.92
        ends = (np.array([low, parameters[i], high]) - TRUTH[i]) / unit
        estimates.plot(ends[[0, 2]], [i, i], color=BLUE, lw=2.2, solid_capstyle="round")
        estimates.plot(ends[1], i, "o", ms=7, color=BLUE)
        text = f"{name}   {parameters[i]:.3g}   [{low:.3g}, {high:.3g}], truth {TRUTH[i]:g}"
        estimates.annotate(
            text,
            (-3.9, i),
            xytext=(0, 9),
            textcoords="offset points",
            fontsize=9,
            zorder=5,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
        )
    estimates.axvline(0.0, color=INK, lw=1, ls="--")
    estimates.set(xlim=(-4, 4), ylim=(len(NAMES) - 0.4, -0.75), yticks=[], xlabel="(estimate − truth) / standard error")
    estimates.set_title("Estimates with 95% intervals")

    per_year = 5 * calibration.steps_per_year
    times = torch.linspace(0.0, 2.0, 2 * per_year + 1, dtype=torch.float64)
    with torch.no_grad():
        every = simulate(torch.tensor(parameters), times, min(calibration.paths, 3000), per_year)
    price, volatility = rows[1].subplots(1, 2)
    for axes, values, title in (
        (price, every[..., 0].exp(), "The price: three paths, the mean, and where 90% of the paths are"),
        (volatility, 100 * every[..., 1].clamp(min=0.0).sqrt(), "The volatility, the root of the variance (%)"),
    ):
        bounds = torch.quantile(values, torch.tensor([0.05, 0.95], dtype=values.dtype), dim=1)
        axes.fill_between(times, *bounds, color="#E3E3E3", lw=0)
        for i, colour in enumerate((BLUE, COLOURS[1], ORANGE)):
            axes.plot(times, values[:, i], color=colour, lw=0.9)
        axes.plot(times, values.mean(dim=1), color=INK, lw=1.5, ls="--")
        axes.set(xlabel="time (years)", xlim=(0, 2))
        axes.set_title(title)
    for axes in (smiles, estimates, price, volatility):
        axes.title.set(fontweight="bold", fontsize=11)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer paths and larger steps")
    parser.add_argument("--out", type=Path, default=Path("."), help="the folder for the picture")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    paths, steps_per_year = (800, 12) if arguments.quick else (30_000, 24)

    exact = implied_volatility(exact_prices(TRUTH))
    quotes = exact + NOISE * np.random.default_rng(1).standard_normal(exact.shape)
    calibration = Calibration(quotes, paths, steps_per_year)

    free = unbounded(TRUTH)
    weights = np.random.default_rng(2).standard_normal(quotes.size)
    forward, backward = weights @ calibration.derivatives(free), calibration.by_backward_mode(free, weights)
    print(f"forward and backward mode differ by {abs(forward - backward).max() / abs(forward).max():.0e}")

    free, from_quotes, covariance = calibration.fit(GUESS, evaluations=5 if arguments.quick else None)
    parameters, scale = natural(free), 1.96 * np.sqrt(np.diag(covariance))
    low, high = natural(free - scale), natural(free + scale)
    inside = (low < TRUTH) & (high > TRUTH)
    for i, name in enumerate(NAMES):
        alone = (high - low)[i] / 3.92 * np.sqrt(from_quotes[i, i] / covariance[i, i])
        print(
            f"{name:>21}: {parameters[i]:7.4f} ± {(high - low)[i] / 3.92:.4f} (by the quotes alone {alone:.4f}), "
            f"95% from {low[i]:.4f} to {high[i]:.4f}, truth {TRUTH[i]:g} {'inside' if inside[i] else 'outside'}"
        )
    with torch.no_grad():
        fitted = implied_volatility(calibration.model(torch.tensor(free)).numpy())
    error = fitted - implied_volatility(exact_prices(parameters))
    print(
        f"root mean square, in volatility: quotes − model {1e4 * np.sqrt(np.mean((quotes - fitted) ** 2)):.1f} basis "
        f"points, paths − characteristic function {1e4 * np.sqrt(np.mean(error**2)):.1f}"
    )
    file = arguments.out / "heston.png"
    draw(file, quotes, calibration, free, covariance)
    losses = calibration.losses
    print(f"loss from {losses[0]:.3g} to {min(losses):.3g}; picture: {file}")
    if (abs(free - unbounded(TRUTH)) > 4 * np.sqrt(np.diag(covariance))).any():
        raise SystemExit("the calibration is wrong")


if __name__ == "__main__":
    main()

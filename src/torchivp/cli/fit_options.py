"""The options of `torchivp fit`, in the groups in which its help shows them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from torchivp.cli.choice import MODEL_HELP, complete_model, completed_by
from torchivp.methods import ODE_METHODS


def _option(panel: str, text: str, *names: str, metavar: str | None = None, **more: Any) -> Any:
    """An option in a group of the help."""
    return typer.Option(*names, help=text, metavar=metavar, rich_help_panel=panel, show_default=False, **more)


_DATA, _MODEL, _NOISE, _ESTIMATED, _SOLVER, _OUTPUT = (
    "Data",
    "Model",
    "Noise",
    "What is estimated",
    "Solver",
    "Output",
)

Table = Annotated[
    str, typer.Argument(help="Table with a header: CSV, TSV, Excel (book.xlsx#Sheet) or Parquet; empty is missing.")
]
Time = Annotated[str, _option(_DATA, "Column that holds the times; default: time.", metavar="COLUMN")]
Observe = Annotated[
    list[str] | None,
    _option(
        _DATA,
        "Observed columns: a,b in the order of the states, or column=state, or column=expression. Default: by name.",
        metavar="COLUMN=WHAT",
    ),
]
Trajectory = Annotated[str | None, _option(_DATA, "Column that tells independent time series apart.", metavar="COLUMN")]
Long = Annotated[
    str | None,
    _option(_DATA, "Columns of names and of values, where each row holds one measurement.", metavar="NAME,VALUE"),
]
TimeUnit = Annotated[str | None, _option(_DATA, "What dates are counted in: days, hours, ...", metavar="UNIT")]
Conditions = Annotated[str | None, _option(_DATA, "Table with a row for each time series.", metavar="FILE")]
Doses = Annotated[str | None, _option(_DATA, "Table of doses: time, amount.", metavar="FILE")]
Censored = Annotated[
    list[str] | None,
    _option(
        _DATA,
        "Column that says which values of another are limits, by < and >; with --long just its name.",
        metavar="COLUMN=COLUMN",
    ),
]

ModelName = Annotated[str | None, _option(_MODEL, MODEL_HELP, autocompletion=complete_model)]
EquationsFile = Annotated[
    Path | None, _option(_MODEL, "Text file of equations, in place of a model.", "--equations", metavar="FILE")
]
Initial = Annotated[
    list[str] | None,
    _option(
        _MODEL,
        "Initial states: a number, an expression in parameters, or shared by all series; or just steady.",
        metavar="STATE=WHAT",
    ),
]
Parameter = Annotated[
    list[str] | None, _option(_MODEL, "A further parameter, of expressions, and its start.", metavar="NAME=VALUE")
]
Tie = Annotated[
    list[str] | None, _option(_MODEL, "A parameter that follows from others.", metavar="PARAMETER=EXPRESSION")
]
Random = Annotated[
    list[str] | None,
    _option(
        _MODEL,
        "Differs between series by chance: normal, lognormal or logitnormal.",
        metavar="NAME=KIND",
    ),
]
By = Annotated[
    list[str] | None,
    _option(_MODEL, "A parameter with a value for each label of a column.", metavar="PARAMETER=COLUMN"),
]
JumpTimes = Annotated[
    str | None, _option(_MODEL, "Times at which the right-hand side jumps: steps end on them.", metavar="A,B,...")
]

Noise = Annotated[
    list[str] | None,
    _option(
        _NOISE,
        "Distribution: normal (default), lognormal, proportional, combined, laplace, student_t, poisson, "
        "negative_binomial; or column=distribution.",
        metavar="KIND",
    ),
]
Sigma = Annotated[
    list[str] | None,
    _option(
        _NOISE,
        "Size: separate for each column (default), shared, a number, or column=one of these or a column of sizes.",
        metavar="SIZE",
    ),
]

Free = Annotated[
    str | None,
    _option(
        _ESTIMATED,
        "What to estimate: a,b,... or all. Default: parameters, and initial values of observed states.",
        metavar="NAMES",
    ),
]
Fix = Annotated[list[str] | None, _option(_ESTIMATED, "Hold a parameter or initial value.", metavar="NAME=VALUE")]
Start = Annotated[list[str] | None, _option(_ESTIMATED, "Start the search there.", metavar="NAME=VALUE")]
Starts = Annotated[int | None, _option(_ESTIMATED, "Search from so many starts.", min=1, metavar="N")]
ShootingOption = Annotated[
    Literal["auto", "single", "multiple"],
    _option(_ESTIMATED, "Begin with paths of one piece, of segments, or of these if need be (default).", "--shooting"),
]
Processes = Annotated[
    int | None, _option(_ESTIMATED, "Search from these starts on so many processes.", min=1, metavar="N")
]
OptimiserOption = Annotated[
    str,
    _option(
        _SOLVER,
        "auto (default), least-squares, l-bfgs, or a method of scipy.optimize.minimize.",
        "--optimiser",
        metavar="NAME",
    ),
]
Scale = Annotated[list[str] | None, _option(_ESTIMATED, "Estimate on log, linear or logit.", metavar="NAME=SCALE")]
Bounds = Annotated[
    list[str] | None, _option(_ESTIMATED, "Bounds, either of which may be left out.", metavar="NAME=LOWER:UPPER")
]
PriorOption = Annotated[
    list[str] | None, _option(_ESTIMATED, "Normal prior of a value.", "--prior", metavar="NAME=MEAN:SD")
]
ConstraintOption = Annotated[
    list[str] | None, _option(_ESTIMATED, "An inequality, such as 'ka > ke'.", "--constraint", metavar="INEQUALITY")
]
Derive = Annotated[
    list[str] | None, _option(_ESTIMATED, "Report what follows from the estimates.", metavar="NAME=EXPRESSION")
]

Method = Annotated[
    str,
    _option(_SOLVER, "Method, such as tsit5; default: auto.", metavar="NAME", autocompletion=completed_by(ODE_METHODS)),
]
Rtol = Annotated[float, _option(_SOLVER, "Relative tolerance; default: 1e-8.")]
Atol = Annotated[float | None, _option(_SOLVER, "Absolute tolerance; default: chosen to suit.")]
MaxStep = Annotated[
    float | None, _option(_SOLVER, "No step is longer; at most as long as the shortest input.", metavar="LENGTH")
]
MaxSteps = Annotated[int | None, _option(_SOLVER, "A solve of more steps has failed; default: 100000.", min=1)]
MaxIterations = Annotated[int, _option(_SOLVER, "Give up a search after so many; default: 200.", min=1)]
BackendOption = Annotated[
    Literal["auto", "eager", "fused"],
    _option(_SOLVER, "What solves: torch, a compiled kernel, or whichever is faster (default).", "--backend"),
]
Checkpoint = Annotated[str | None, _option(_SOLVER, "File by which a fit that was killed goes on.", metavar="FILE")]

Out = Annotated[str | None, _option(_OUTPUT, "Folder for the report; made if need be.", metavar="FOLDER")]
Profiles = Annotated[
    bool, _option(_OUTPUT, "Compute the profile likelihoods of all that is free for the report.", "--profiles")
]
Json = Annotated[bool, _option(_OUTPUT, "Print the result as JSON, and nothing else.", "--json")]
Quiet = Annotated[bool, _option(_OUTPUT, "Print errors only.", "--quiet", "-q")]

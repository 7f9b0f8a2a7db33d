"""Mean and covariance of a stochastic model between observations, as a model of their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call, jacfwd, vjp, vmap

from torchivp.fitting.solving.right_hand_side import REFUSALS
from torchivp.fused.one_reader import one_reader
from torchivp.models.model import Model
from torchivp.models.stochastic_model import StochasticModel

_graphs: WeakKeyDictionary[type, list[fx.GraphModule]] = WeakKeyDictionary()
"""What was read of each class of models: a kernel is made for each of them once."""


class Moments(Model):
    """The ordinary differential equation of the mean m and the covariance P of a stochastic model.

    m' = f(m) and P' = F P + P Fᵀ + G Gᵀ, with F = df/dm and G the diffusion at m: exact where f is linear and G does
    not depend on the state, and otherwise the first-order approximation of the extended Kalman filter. A. H. Jazwinski,
    "Stochastic Processes and Filtering Theory", Academic Press (1970), chapter 9.

    The states are those of the model and the lower triangle of P, row by row; the parameters are those of the model.
    The right-hand side is read once as a graph of plain operations, which dual numbers and kernels can follow; where
    the model looks at values, it is computed anew each time.

    Args:
        model: the stochastic model, in float64.
        t: a time at which it may be called.

    Attributes:
        owner: what tells its right-hand side apart from others.
    """

    def __init__(self, model: StochasticModel, t: float):
        n = len(model.states)
        names = list(model.states)
        covariances = {f"cov({names[i]}, {names[j]})": "" for i in range(n) for j in range(i + 1)}
        # Of the class in general, these are of this object.
        self.states = {**model.states, **covariances}  # type: ignore[misc]
        self.default_state = (*model.default_state, *(0.0 for _ in covariances))  # type: ignore[misc]
        super().__init__(**model.values())
        self._names, self._count = list(model.values()), n
        self._parts = [_Parts(model)]  # in a list, so that its parameters are not those of this module
        self.owner, self._graph = self._read(t)

    def _read(self, t: float) -> tuple[Any, Callable[..., Tensor]]:
        """The right-hand side as a graph, the one of an earlier fit if it is the same, and what tells it apart."""
        from torch.fx.experimental.proxy_tensor import make_fx  # which takes a second

        kind = type(self._parts[0].model)
        values = [parameter.detach().clone() for parameter in self.parameters()]
        trace: Any = make_fx(self._derivative, tracing_mode="fake", _allow_non_fake_inputs=True)
        try:
            with one_reader():
                graph = trace(torch.tensor(t, dtype=torch.float64), self.initial_state() + 0.1, *values)
        except REFUSALS:
            return kind, self._derivative
        known = _graphs.setdefault(kind, [])
        same = next((each for each in known if _equal(each, graph)), None)
        if same is None:
            known.append(graph)
        return same or graph, (same or graph).forward

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """The derivative of the moments of one row, [n + n (n + 1)/2]."""
        return self._graph(t, y, *(getattr(self, name) for name in self._names))

    def _derivative(self, t: Tensor, z: Tensor, *parameters: Tensor) -> Tensor:
        n, parts = self._count, self._parts[0]
        named = dict(zip(self._names, parameters, strict=True))
        mean, covariance = z[:n], self._square(z[n:])
        pulled: Any = vjp(lambda y: parts.call("forward", named, t, y), mean)
        drift, pull = pulled
        jacobian = torch.stack([pull(row)[0] for row in torch.eye(n, dtype=z.dtype).unbind(0)])
        strength = parts.call("diffusion", named, t, mean)
        noise = torch.diag_embed(strength * strength) if parts.diagonal else strength @ strength.T
        half = jacobian @ covariance
        change = half + half.T + noise
        return torch.cat([drift, *(change[i, : i + 1] for i in range(n))])

    def _square(self, triangle: Tensor) -> Tensor:
        """The symmetric matrix of a lower triangle that lies row by row."""
        entry = triangle.unbind(-1)
        n = self._count
        places = [[max(i, j) * (max(i, j) + 1) // 2 + min(i, j) for j in range(n)] for i in range(n)]
        return torch.stack([torch.stack([entry[k] for k in row]) for row in places])

    def initial_covariances(self, parameters: Tensor, derivatives: bool) -> tuple[Tensor, Tensor]:
        """The covariances of the initial states at parameters [rows, n_parameters].

        Returns:
            They, [rows, n, n], and their derivatives by the parameters, [rows, n_parameters, n, n].
        """

        def of_row(values: Tensor) -> Tensor:
            return self._parts[0].call("initial_covariance", dict(zip(self._names, values.unbind(), strict=True)))

        rows, n = len(parameters), self._count
        slopes = parameters.new_zeros(rows, parameters.shape[1], n, n)
        if type(self._parts[0].model).initial_covariance is StochasticModel.initial_covariance:
            return parameters.new_zeros(rows, n, n), slopes
        with torch.no_grad():
            found = vmap(of_row)(parameters)
            if derivatives:
                slopes = vmap(jacfwd(of_row))(parameters).movedim(-1, 1)
        return found, slopes


def _equal(a: fx.GraphModule, b: fx.GraphModule) -> bool:
    """Whether two graphs compute the same."""
    if a.code != b.code:
        return False
    constants = (dict(each.named_buffers()) for each in (a, b))
    mine, other = ({**found, **_tensors(each)} for found, each in zip(constants, (a, b), strict=True))
    return mine.keys() == other.keys() and all(torch.equal(x, other[name]) for name, x in mine.items())


def _tensors(graph: fx.GraphModule) -> dict[str, Tensor]:
    return {name: x for name, x in vars(graph).items() if isinstance(x, Tensor)}


class _Parts(nn.Module):
    """The methods of a model, called with other parameters than its own."""

    def __init__(self, model: StochasticModel):
        super().__init__()
        self.model = model
        self.diagonal = model.noise_type == "diagonal"

    def call(self, method: str, parameters: Mapping[str, Tensor], *inputs: Tensor) -> Tensor:
        return functional_call(self, {f"model.{name}": x for name, x in parameters.items()}, (method, *inputs))

    def forward(self, method: str, *inputs: Tensor) -> Tensor:
        return getattr(self.model, method)(*inputs)

"""A function as kernels compute it, and its gradients, at given arguments: without the solve around it."""

import ctypes

import torch

from torchivp.fused.arrays import Array
from torchivp.fused.cache import load
from torchivp.fused.call import FLAGS
from torchivp.fused.graphs import core_graph, vjp_of
from torchivp.fused.lower import Lowering
from torchivp.fused.steps import source_file
from torchivp.fused.trace import read_function


def joined(func, *inputs):
    """What a function returns, one tensor or a list of them, as one vector."""
    values = func(*inputs)
    values = values if isinstance(values, list | tuple) else [values]
    return torch.cat([x.reshape(-1).to(inputs[0].dtype) for x in values])


class Compiled:
    """What `func(*inputs)` gives in a kernel, and what the gradients of its inputs are.

    Args:
        func: a function of tensors of one row; it returns a tensor or a list of them.
        examples: tensors like its arguments, all float64 or all float32.
        shared: the numbers of the arguments that all rows share.
    """

    def __init__(self, func, *examples, shared=()):
        self.func, self.examples, self.shared = func, examples, shared
        traced, given = read_function(object(), joined, func, *examples)
        self.order = [next(i for i, y in enumerate(examples) if x is y) for x in given]
        self.lowering = Lowering(examples[0].dtype)
        inputs = [
            Array.stored(f"shared{i}" if i in shared else f"x{i}", examples[i].shape, lanes=i not in shared)
            for i in self.order
        ]
        lines, (value,) = self.lowering.lower(core_graph(traced.values, given), inputs)
        self.size = value.size
        lines = [*lines, *(f"out[{i[0]}] = {self.lowering.element(value, i)};" for i in value.indices())]
        seed = torch.zeros(value.shape, dtype=examples[0].dtype)
        graph = core_graph(vjp_of(traced.values, range(len(given)), len(given)), [*given, seed])
        back, grads = self.lowering.lower(graph, [*inputs, Array.stored("g", value.shape)], "the gradient of func")
        back = list(back)
        for i, grad in zip(self.order, grads, strict=True):
            back += self.lowering.added(grad, f"d{i}", 0)
        self.source = self._source(lines, back)
        self.library = load(self.source, "kernel", flags=(*FLAGS, "-O1"))

    def _source(self, lines, back):
        numbered = list(enumerate(self.examples))
        inputs = ", ".join(
            f"const real* shared{i}" if i in self.shared else f"const typename Lanes<W>::R* x{i}" for i, _ in numbered
        )
        names = ", ".join(f"shared{i}" if i in self.shared else f"x{i}" for i, _ in numbered)
        once = ", ".join(f"const real* shared{i}" for i in self.shared)
        outs = ", ".join(f"typename Lanes<W>::R* d{i}" for i, _ in numbered)
        copies = []
        for i, x in numbered:
            n = max(x.numel(), 1)
            copies.append(f"typename Lanes<W>::R x{i}[{n}], d{i}[{n}] = {{}}; const real* shared{i} = *in;")
            copies.append(
                f"for (int e = 0; e < {x.numel()}; ++e) for (int l = 0; l < W; ++l) put(x{i}[e], l, (*in)[e * W + l]);"
            )
            copies.append("++in;")
        results = [
            f"for (int e = 0; e < {x.numel()} * W; ++e) (*d)[e] = at<W>(d{i}[e / W], e % W);\n++d;" for i, x in numbered
        ]
        return "\n".join(
            [
                f"typedef {'double' if self.examples[0].dtype == torch.float64 else 'float'} real;",
                source_file("shell.h"),
                source_file("lanes.h"),
                *self.lowering.constants,
                f"static real u[{max(self.lowering.kept, 1)}];",
                f"static void once({once}) {{",
                *self.lowering.once,
                "}",
                f"template <int W> FUSED void value({inputs}, typename Lanes<W>::R* out) {{",
                *lines,
                "}",
                f"template <int W> FUSED void pull({inputs}, const typename Lanes<W>::R* g, {outs}) {{",
                *back,
                "}",
                "template <int W> static void call(const real* const* in, const real* g, real* out, real* const* d) {",
                *copies,
                f"typename Lanes<W>::R seed[{max(self.size, 1)}], y[{max(self.size, 1)}] = {{}};",
                f"for (int e = 0; e < {self.size}; ++e) for (int l = 0; l < W; ++l) put(seed[e], l, g[e * W + l]);",
                f"once({', '.join(f'shared{i}' for i in self.shared)}); value<W>({names}, y);",
                f"pull<W>({names}, seed, {', '.join(f'd{i}' for i, _ in numbered)});",
                f"for (int e = 0; e < {self.size}; ++e) for (int l = 0; l < W; ++l) out[e * W + l] = at<W>(y[e], l);",
                *results,
                "}",
                'extern "C" void one(void** p) {',
                "call<1>((const real* const*)p[0], (const real*)p[1], (real*)p[2], (real* const*)p[3]); }",
                'extern "C" void many(void** p) {',
                f"call<{64 // self.examples[0].element_size()}>(",
                "(const real* const*)p[0], (const real*)p[1], (real*)p[2], (real* const*)p[3]); }",
            ]
        )

    @property
    def cuda(self):
        """The same for a thread of CUDA, in the place of `one`."""
        source, _ = self.source.split('extern "C" void many')
        for name in ("real u[", "void once(", "void call("):
            source = source.replace(f"static {name}", f"__device__ {name}")
        return source.replace('extern "C" void one', 'extern "C" __global__ void one')

    def __call__(self, seed, *inputs):
        """The values and gradients of every row; inputs and the seed have a leading dimension of rows unless shared.

        One row goes alone; else there must be as many as fill a vector.
        """
        rows = next(len(x) for i, x in enumerate(inputs) if i not in self.shared)
        given = [
            x.contiguous() if i in self.shared else x.reshape(rows, -1).T.contiguous() for i, x in enumerate(inputs)
        ]
        found = [x.new_zeros(max(e.numel(), 1) * rows) for x, e in zip(given, self.examples, strict=True)]
        seed, out = seed.reshape(rows, -1).T.contiguous(), seed.new_zeros(self.size * rows)
        addresses = [(ctypes.c_void_p * len(of))(*(x.data_ptr() for x in of)) for of in (given, found)]
        call = (ctypes.c_void_p * 4)(
            ctypes.addressof(addresses[0]), seed.data_ptr(), out.data_ptr(), ctypes.addressof(addresses[1])
        )
        (self.library.one if rows == 1 else self.library.many)(call)
        grads = [
            x[: e.numel() * rows].view(-1, rows).T.reshape(rows, *e.shape)
            for x, e in zip(found, self.examples, strict=True)
        ]
        return out.view(self.size, rows).T, grads

    def eager(self, seed, *inputs):
        """The same by torch, row by row."""
        rows = next(len(x) for i, x in enumerate(inputs) if i not in self.shared)
        values, grads = [], []
        for row in range(rows):
            own = [(x if i in self.shared else x[row]).clone().requires_grad_() for i, x in enumerate(inputs)]
            value = joined(self.func, *own)
            values.append(value.detach())
            grads.append(
                torch.autograd.grad(value, own, seed[row], allow_unused=True, materialize_grads=True)
                if value.requires_grad
                else [torch.zeros_like(x) for x in own]
            )
        return torch.stack(values), [torch.stack(found) for found in zip(*grads, strict=True)]

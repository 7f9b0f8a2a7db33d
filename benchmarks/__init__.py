"""torchivp and torchdiffeq side by side: time, evaluations, errors and memory. Run with `python -m benchmarks`."""

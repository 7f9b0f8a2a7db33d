"""What it takes to go on with a training as if it had never stopped: all its state, random numbers included."""

from __future__ import annotations

import os
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch


def random_state() -> dict[str, Any]:
    """The state of every generator that a training may draw from: torch's on all devices, NumPy's and Python's."""
    kind, keys, *rest = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
        "numpy": (kind, torch.from_numpy(np.array(keys, dtype=np.int64)), *rest),
        "python": random.getstate(),
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Put every generator back into the state that `random_state` returned."""
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    random.setstate(state["python"])


def save(path: Path, state: Mapping[str, Any]) -> None:
    """Write the state so that at any moment there is a whole file: the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.unfinished")
    with unfinished.open("wb") as file:
        torch.save(dict(state), file)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)


def load(path: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Read the state of a training with these settings.

    Raises:
        ValueError: the file is no such state, or that of a training with other settings.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a file that is something else makes torch raise
        raise ValueError(f"{path} is not the checkpoint of a training: {error}") from error
    if not isinstance(state, dict) or "settings" not in state:
        raise ValueError(f"{path} is not the checkpoint of a training: it holds no settings")
    for name, value in settings.items():
        if state["settings"].get(name) != value:
            raise ValueError(
                f"{path} is the checkpoint of a training with {name} = {state['settings'].get(name)!r}, and this one "
                f"has {value!r}: give another path, or resume=False to begin anew"
            )
    return state

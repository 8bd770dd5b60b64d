"""A torch module as an ONNX graph of fixed sizes, its weights stored in float32, float16 or int8.

Whatever the weights are stored in, the arithmetic is float32: a graph turns each weight back where it is used, one at a
time, so that a process holds little more than what is stored. int8 has one scale for each output channel.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

Numbers = Literal["float32", "float16", "int8"]
OPSET = 20
LEAST = 1024  # numbers of a weight that is worth storing in less
ALIGNED = 4096  # bytes: weights are mapped into memory, not copied


def check_numbers(numbers: str) -> None:
    """ValueError for what weights can't be stored in, and where the package that writes graphs is missing."""
    if numbers not in get_args(Numbers):
        raise ValueError(f"weights in {numbers!r}: a graph stores {', '.join(get_args(Numbers))}")
    try:
        import onnx  # noqa: F401
    except ImportError:
        raise ValueError("graphs need the package onnx: pip install 'omfa[device]'") from None


def write_graph(
    module: nn.Module,
    inputs: Mapping[str, Tensor | Sequence[Tensor]],
    outputs: Sequence[str],
    path: Path,
    numbers: Numbers = "float32",
    dynamic: Mapping[str, int] | None = None,
) -> None:
    """Write ``path``, and its weights beside it (``.weights``).

    Args:
        module, inputs, outputs, dynamic: as :func:`traced` takes them.
        path: ``*.onnx``.
        numbers: what to store weights in.
    """
    write_traced(traced(module, inputs, outputs, dynamic), module, path, numbers)


@torch.no_grad()
def traced(
    module: nn.Module,
    inputs: Mapping[str, Tensor | Sequence[Tensor]],
    outputs: Sequence[str],
    dynamic: Mapping[str, int] | None = None,
) -> Any:
    """The graph without its weights, which are inputs of it.

    Args:
        module: float32, on the CPU; takes the inputs in their order. It is run once.
        inputs: name to an example; of a list each tensor is named with its number behind (:func:`numbered`).
        outputs: names, in order.
        dynamic: name of an input to the axis whose size may change (of all tensors of a list); all others are fixed.
    """
    import onnx

    tensors = {
        n: t
        for name, x in inputs.items()
        for n, t in ([(name, x)] if isinstance(x, Tensor) else zip(numbered(name, len(x)), x, strict=True))
    }
    axes = {n: {axis: f"{n}_size"} for name, axis in (dynamic or {}).items() for n in tensors if _of(n, name)}
    # The tracing exporter: ten times as fast as the one by torch.export, and it can leave all weights out.
    _teach_rms_norm()
    drawn: Any = BytesIO()
    with warnings.catch_warnings(), _as_products():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module.eval(),
            tuple(x if isinstance(x, Tensor) else list(x) for x in inputs.values()),
            drawn,
            dynamo=False,
            opset_version=OPSET,
            export_params=False,
            do_constant_folding=False,
            input_names=list(tensors),
            output_names=list(outputs),
            dynamic_axes=axes,
        )
    return onnx.load_from_string(drawn.getvalue())


def write_traced(model: Any, module: nn.Module, path: Path, numbers: Numbers) -> None:
    """Give a graph of :func:`traced` its weights, and write both."""
    import onnx

    weights = {**dict(module.named_buffers()), **dict(module.named_parameters())}
    learned = {name for name, _ in module.named_parameters()}
    kept = [i for i in model.graph.input if i.name not in weights]
    with path.with_suffix(".weights").open("wb") as file:
        for name in [i.name for i in model.graph.input if i.name in weights]:
            large = name in learned and weights[name].ndim > 1 and weights[name].numel() >= LEAST
            _store(model.graph, file, name, weights[name].detach().numpy(), numbers if large else "float32")
    del model.graph.input[:]
    model.graph.input.extend(kept)
    onnx.save(model, path)


def numbered(name: str, many: int) -> list[str]:
    """Names of the tensors of a list."""
    return [f"{name}_{i}" for i in range(many)]


def _of(tensor: str, name: str) -> bool:
    return tensor == name or tensor.rpartition("_")[0] == name


def _store(graph: Any, file: Any, name: str, whole: np.ndarray, numbers: Numbers) -> None:
    """Write one weight, and make the graph turn it back under its own name."""
    from onnx import TensorProto, helper

    if numbers == "float32":
        graph.initializer.append(_written(file, name, whole))
        return
    if numbers == "float16":
        graph.initializer.append(_written(file, f"{name}.half", whole.astype(np.float16)))
        node = helper.make_node("Cast", [f"{name}.half"], [name], to=TensorProto.FLOAT)
    else:
        most = np.abs(whole).max(tuple(range(1, whole.ndim)))
        scale = np.maximum(most / 127, 1e-12).astype(np.float32)
        wide = scale.reshape(-1, *[1] * (whole.ndim - 1))
        small = np.clip(np.round(whole / wide), -127, 127).astype(np.int8)
        graph.initializer.extend([_written(file, f"{name}.int8", small), _written(file, f"{name}.scale", scale)])
        node = helper.make_node("DequantizeLinear", [f"{name}.int8", f"{name}.scale"], [name], axis=0)
    first = next(i for i, user in enumerate(graph.node) if name in user.input)
    graph.node.insert(first, node)


def _written(file: Any, name: str, array: np.ndarray) -> Any:
    """Append an array to the file of weights, and say where it lies."""
    from onnx import TensorProto, helper

    array = np.ascontiguousarray(array)
    file.write(b"\0" * (-file.tell() % (ALIGNED if array.nbytes >= ALIGNED else 16)))
    tensor = TensorProto(name=name, dims=array.shape, data_type=helper.np_dtype_to_tensor_dtype(array.dtype))
    tensor.data_location = TensorProto.EXTERNAL
    where = {"location": Path(file.name).name, "offset": file.tell(), "length": array.nbytes}
    for key, value in where.items():
        tensor.external_data.add(key=key, value=str(value))
    file.write(array.tobytes())
    return tensor


def _teach_rms_norm() -> None:
    """The tracing exporter does not know this one."""

    def rms_norm(g: Any, x: Any, shape: Any, weight: Any, eps: Any) -> Any:
        wanted = torch.finfo(torch.float32).eps if eps.node().mustBeNone() else eps.node().t("value").item()
        mean = g.op("ReduceMean", g.op("Mul", x, x), g.op("Constant", value_t=torch.tensor([-1])))
        norm = g.op("Sqrt", g.op("Add", mean, g.op("Constant", value_t=torch.tensor(wanted, dtype=torch.float32))))
        scaled = g.op("Div", x, norm)
        return scaled if weight.node().mustBeNone() else g.op("Mul", scaled, weight)

    torch.onnx.register_custom_op_symbolic("aten::rms_norm", rms_norm, OPSET)


@contextmanager
def _as_products() -> Iterator[None]:
    """Resizes that the tracing exporter does not know, as products with matrices of these sizes."""
    functional: Any = F
    interpolate, pool = F.interpolate, F.adaptive_avg_pool2d

    def resized(x: Tensor, size: Any = None, *args: Any, antialias: bool = False, **options: Any) -> Tensor:
        return _along_both(x, size, _triangles) if antialias else interpolate(x, size, *args, **options)

    def pooled(x: Tensor, size: Any) -> Tensor:
        return _along_both(x, size, _means)

    functional.interpolate, functional.adaptive_avg_pool2d = resized, pooled
    try:
        yield
    finally:
        functional.interpolate, functional.adaptive_avg_pool2d = interpolate, pool


def _along_both(x: Tensor, size: int | Sequence[int], weights: Any) -> Tensor:
    both = (size, size) if isinstance(size, int) else size
    rows, columns = (torch.from_numpy(weights(int(n), int(m))) for n, m in zip(x.shape[-2:], both, strict=True))
    return rows @ x @ columns.T


def _means(many: int, few: int) -> np.ndarray:
    """(few, many) weights of adaptive mean pooling along one axis."""
    i, at = np.arange(few)[:, None], np.arange(many)
    inside = ((at >= i * many // few) & (at < -(-(i + 1) * many // few))).astype(np.float32)
    return inside / inside.sum(1, keepdims=True)


def _triangles(many: int, few: int) -> np.ndarray:
    """(few, many) weights of an antialiased linear resize along one axis."""
    wide = max(many / few, 1.0)
    centre = (np.arange(few)[:, None] + 0.5) * many / few
    weights = np.maximum(0, 1 - np.abs(np.arange(many) + 0.5 - centre) / wide)
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)

"""A trained model in the formats that others load: plain layers, folded, ONNX. Owns the files and how each is verified.

    plain     plain.safetensors     of the architecture with torch.nn.BatchNorm layers, nothing synchronized
    folded    folded.safetensors    of what `syncbn.fold_batchnorm` makes of it: normalization is part of the layers before it
    onnx      model.onnx            a graph, images -> outputs, for any number of images of the size that was trained with

Every file is read back, and what it computes for held-out samples compared with the trained model. Knows no ranks and no checkpoint.
"""

import importlib.util
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

import syncbn
from worker.contract.manifest import ExportEntry
from worker.contract.spec import JobSpec
from worker.data.split import Splits
from worker.errors import ExportError, WorkerError, classify
from worker.models.norms import Norms, inference_norm, training_norm
from worker.models.registry import build_model
from worker.state import restore_model
from worker.training import PARAMETER_DTYPES

NUM_SAMPLES = 3
"""Compared. Few, because ONNX is evaluated by the reference implementation, in numpy."""
NUM_TRACED = 2
"""Samples that ONNX is traced with: other than are compared, so that a graph for one number of images only is noticed."""
# Of the largest output: the roundings of a deep model, never as much as a wrong layer.
_TOLERANCES = {torch.float32: 1e-3, torch.float64: 1e-8}
_ONNX_PACKAGES = ("onnx", "onnxscript")


@dataclass(frozen=True)
class Exporter:
    """Writes the exports that a spec asks for."""

    spec: JobSpec
    splits: Splits

    def __call__(self, directory: Path, tensors: Mapping[str, Tensor]) -> dict[str, ExportEntry]:
        """Write a file for each format into a directory.

        Args:
            directory: where to.
            tensors: parameters and buffers of the trained model, on the CPU.
        Returns:
            By file name.
        Raises:
            ExportError: a package is missing, the model cannot be brought into the format, or the file computes something else.
            OSError: a file cannot be written.
        """
        try:
            return self._write(directory, tensors)
        except (OSError, WorkerError):
            # A disk that is full is not the model's fault.
            raise
        except Exception as error:
            raise classify(error, ExportError) from error

    def _write(self, directory: Path, tensors: Mapping[str, Tensor]) -> dict[str, ExportEntry]:
        entries = {}
        with torch.no_grad():
            images = torch.as_tensor(self.splits.test.batch(np.arange(min(NUM_SAMPLES, self.splits.test.num_samples)), 0)[0])
            images = images.to(PARAMETER_DTYPES[self.spec.precision])
            wanted = _output(self._loaded(training_norm(self.spec.norm), tensors), images)
            for name in dict.fromkeys(self.spec.export):
                file, write = _WRITERS[name]
                found = write(self._loaded(inference_norm(self.spec.norm), tensors), images, directory / file)
                difference = _difference(wanted, found)
                _refuse_difference(name, difference, wanted.dtype)
                entries[file] = ExportEntry(format=name, max_difference=difference, num_samples=len(images))
        return entries

    def _loaded(self, norm: Norms, tensors: Mapping[str, Tensor]) -> nn.Module:
        spec = self.spec
        model = build_model(spec.model, spec.norm, norm, self.splits.train, spec.seed, task=spec.task.name)
        model.to(PARAMETER_DTYPES[spec.precision])
        restore_model(model, tensors, "that is exported")
        return model.eval()


def _write_plain(model: nn.Module, images: Tensor, path: Path) -> Tensor:
    return _written(model, images, path)


def _write_folded(model: nn.Module, images: Tensor, path: Path) -> Tensor:
    return _written(syncbn.fold_batchnorm(model), images, path)


def _written(model: nn.Module, images: Tensor, path: Path) -> Tensor:
    """Write a model's state, load it back, and return what it computes then."""
    safetensors.torch.save_file({name: tensor.clone().contiguous() for name, tensor in model.state_dict().items()}, path)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.zero_()
    restore_model(model, safetensors.torch.load_file(path), "as it was written")
    return _output(model, images)


def _write_onnx(model: nn.Module, images: Tensor, path: Path) -> Tensor:
    missing = [name for name in _ONNX_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ExportError(
            f"export onnx needs {' and '.join(missing)}, not installed on this node; expected the extra `export`:"
            " pip install 'syncbn[export]' on every node, or leave onnx out"
        )
    import onnx
    from onnx.reference import ReferenceEvaluator

    with warnings.catch_warnings():
        # torch and onnxscript tell of their own future.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            (images[:NUM_TRACED],),
            path,
            dynamo=True,
            external_data=False,
            verbose=False,
            input_names=["images"],
            output_names=["outputs"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
        )
        graph = onnx.load(path)
        onnx.checker.check_model(graph)
        (outputs,) = ReferenceEvaluator(graph).run(None, {"images": images.numpy()})
    return torch.from_numpy(np.asarray(outputs))


_WRITERS: dict[str, tuple[str, Callable[[nn.Module, Tensor, Path], Tensor]]] = {
    "plain": ("plain.safetensors", _write_plain),
    "folded": ("folded.safetensors", _write_folded),
    "onnx": ("model.onnx", _write_onnx),
}


def _output(model: nn.Module, images: Tensor) -> Tensor:
    outputs = model(images)
    if not isinstance(outputs, Tensor):
        raise ExportError(f"the model's output is a {type(outputs).__name__}; expected one tensor; return that in evaluation mode")
    return outputs


def _difference(wanted: Tensor, found: Tensor) -> float:
    """Return the largest difference, relative to the largest output wanted; infinity where they cannot be compared."""
    if wanted.shape != found.shape:
        return float("inf")
    difference = (found.double() - wanted.double()).abs().max() / wanted.double().abs().max().clamp(min=torch.finfo(torch.float64).tiny)
    return float(difference) if difference.isfinite() else float("inf")


def _refuse_difference(name: str, difference: float, dtype: torch.dtype) -> None:
    if difference > _TOLERANCES[dtype]:
        raise ExportError(
            f"export {name} differs from the trained model by {difference:.1e} of its largest output; expected at most"
            f" {_TOLERANCES[dtype]:.0e} for {dtype}; leave this format out, and look for layers whose running variance is near 0"
        )

"""A process that predicts images with one checkpoint, for a parent that must not load torch.

    python -m worker.predictor

On stdin: the manifest, model.safetensors, then one encoded image after the other. On stdout: for the first two together and for each image
one JSON object: `{"ready": true}`, `{"predictions": [{"label", "name", "probability"}, ...]}`, or `{"error": {"code", "message"}}`. Each
message is its length in 8 bytes, big-endian, and then itself. The end of stdin is the end.

Owns the process, its limits and the way from an image to a sample. Whoever sends images is not trusted: the process reads no file and no
network, holds nothing secret, and its parent bounds its time. Digests are verified by the parent.
"""

import io
import json
import resource
import sys
import warnings
from dataclasses import dataclass
from typing import Any, BinaryIO, Final

import numpy as np
import safetensors.torch
import torch
from PIL import Image
from torch import nn

from worker.contract.manifest import InputEntry, Manifest
from worker.contract.spec import JobSpec
from worker.contract.transforms import Resize
from worker.data import digits, geometry, pipeline
from worker.data.images import decode
from worker.data.split import Array
from worker.data.values import floating
from worker.errors import CheckpointMismatchError, DataError, TaskError, WorkerError
from worker.models.norms import inference_norm
from worker.models.registry import build_model
from worker.state import restore_model
from worker.training import PARAMETER_DTYPES

TOP: Final = 5
MAX_PIXELS: Final = 50_000_000
MAX_MEMORY_BYTES: Final = 12 << 30
FORMATS: Final = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
MODES: Final = {1: "gray", 3: "rgb"}
_LENGTH_BYTES: Final = 8


@dataclass(frozen=True)
class Predictor:
    """A model of plain layers in evaluation mode, and what it takes."""

    spec: JobSpec
    inputs: InputEntry
    model: nn.Module

    @classmethod
    def load(cls, manifest: Manifest, content: bytes) -> "Predictor":
        """Build the model of a checkpoint and load it strictly.

        Raises:
            CheckpointMismatchError: it does not fit, or its manifest does not say what it takes.
        """
        if manifest.inputs is None:
            raise CheckpointMismatchError(
                "the manifest does not say what the model takes; expected a checkpoint of this version; train again"
            )
        spec = JobSpec.model_validate(manifest.spec)
        model = build_model(spec.model, spec.norm, inference_norm(spec.norm), manifest.inputs, spec.seed, task=spec.task.name)
        model.to(PARAMETER_DTYPES[spec.precision])
        restore_model(model, safetensors.torch.load(content), f"{manifest.job_id}/{manifest.step}")
        return cls(spec, manifest.inputs, model.eval())

    def predict(self, content: bytes) -> list[dict[str, Any]]:
        """Return the most probable classes of one encoded image, as a batch of its own.

        Raises:
            DataError: it is no image that is read here, or does not fit the transforms.
            TaskError: the model's outputs are not finite.
        """
        sample = torch.from_numpy(np.ascontiguousarray(sample_of(content, self.spec, self.inputs)))
        with torch.inference_mode():
            logits_C = self.model(sample.unsqueeze(0).to(PARAMETER_DTYPES[self.spec.precision]))[0]
            shares_C = torch.softmax(logits_C.double(), 0)
        if not shares_C.isfinite().all():
            raise TaskError(
                "the model's outputs are not finite; expected numbers; look at the health of the checkpoint, and use another one"
            )
        probabilities, classes = shares_C.topk(min(TOP, len(shares_C)))
        pairs = zip(classes.tolist(), probabilities.tolist(), strict=True)
        names = self.inputs.class_names or ()
        return [
            {"label": number, "name": names[number] if number < len(names) else None, "probability": probability}
            for number, probability in pairs
        ]


def sample_of(content: bytes, spec: JobSpec, inputs: InputEntry) -> Array:
    """Return an encoded image as the model takes it, (C, H, W) float32: by the transforms of the evaluation, then resized where needed.

    Raises:
        DataError: it is no image that is read here, or does not fit the transforms.
    """
    channels, *space = inputs.image_shape
    if channels not in MODES or len(space) != 2:
        raise DataError(
            f"the model takes samples of {inputs.image_shape}; expected images of 1 or 3 channels; predict with a script of your own"
        )
    image = _decoded(content, "gray" if channels == 1 else "rgb")
    if spec.data.name == "digits":
        image = (floating(_resized(image, (digits.SIDE, digits.SIDE))) - digits.MEAN) / digits.STD
    applied, _ = pipeline.build(spec.data.transforms, spec.seed, is_training=False).apply(image, None, [])
    return _resized(applied, (space[0], space[1]))


def _resized(image: Array, size: tuple[int, int]) -> Array:
    return geometry.resize(Resize(name="resize", size=size), image, None, ())[0]


def _decoded(content: bytes, mode: Any) -> Array:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content), formats=FORMATS) as opened:
                pixels = opened.width * opened.height
            if pixels > MAX_PIXELS:
                raise DataError(f"the image has {pixels} pixels; expected at most {MAX_PIXELS}; make it smaller")
            return decode(content, mode)
    except DataError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}"
        raise DataError(
            f"the {len(content)} bytes are no image that can be read ({reason}); expected one of {', '.join(FORMATS)}; send another file"
        ) from error


def main() -> int:
    """Serve stdin until it ends; return the exit code."""
    _limit()
    # What prints must not come between the messages.
    messages, sys.stdout = sys.stdout.buffer, sys.stderr
    manifest, content = _receive(sys.stdin.buffer), _receive(sys.stdin.buffer)
    if manifest is None or content is None:
        return 1
    try:
        predictor = Predictor.load(Manifest.model_validate_json(manifest), content)
    except Exception as error:  # noqa: BLE001 - the outermost loop of the process: the parent says it
        _send(messages, {"error": {"code": "not_predictable", "message": _told(error)}})
        return 1
    del content
    _send(messages, {"ready": True})
    while (image := _receive(sys.stdin.buffer)) is not None:
        try:
            answer: dict[str, Any] = {"predictions": predictor.predict(image)}
        except DataError as error:
            answer = {"error": {"code": "invalid_image", "message": str(error)}}
        except Exception as error:  # noqa: BLE001 - as above
            answer = {"error": {"code": "not_predictable", "message": _told(error)}}
        _send(messages, answer)
    return 0


def _told(error: Exception) -> str:
    return str(error) if isinstance(error, WorkerError) else f"{type(error).__name__}: {error}"


def _limit() -> None:
    """Take from this process what it does not need: memory without bound, files of its own, core dumps, threads."""
    Image.MAX_IMAGE_PIXELS = MAX_PIXELS
    torch.set_num_threads(1)
    for what, most in ((resource.RLIMIT_AS, MAX_MEMORY_BYTES), (resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_CORE, 0)):
        resource.setrlimit(what, (most, most))


def _receive(stream: BinaryIO) -> bytes | None:
    """Return the next message, None at the end."""
    head = stream.read(_LENGTH_BYTES)
    if len(head) < _LENGTH_BYTES:
        return None
    length = int.from_bytes(head, "big")
    content = stream.read(length)
    return content if len(content) == length else None


def _send(stream: BinaryIO, answer: dict[str, Any]) -> None:
    content = json.dumps(answer).encode()
    stream.write(len(content).to_bytes(_LENGTH_BYTES, "big") + content)
    stream.flush()


if __name__ == "__main__":
    sys.exit(main())

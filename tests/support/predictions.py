"""A checkpoint to predict with, in a world without training: a small model with random statistics, and digits as images."""

import hashlib
import io

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save
from torch import nn

from worker.contract import parse_spec
from worker.data import digits
from worker.data.registry import build_data
from worker.models.norms import inference_norm
from worker.models.registry import build_model

SMALL = {"model": {"name": "resnet18", "args": {"width": 4}}, "task": "classification"}
SPEC = parse_spec({"name": "t", "data": {"name": "digits"}, **SMALL})


def small_model():
    """Return a model whose running statistics are not those of the beginning, in evaluation mode."""
    found = build_model(SPEC.model, SPEC.norm, inference_norm(SPEC.norm), build_data(SPEC.data, 0).test, 0)
    generator = torch.Generator().manual_seed(1)
    for layer in found.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.5, generator=generator)
            layer.running_var.uniform_(0.5, 2, generator=generator)
    return found.eval()


def published(world, trained, *, inputs=(1, 8, 8), class_names=None, **changes):
    """Start a job and publish a model as its checkpoint; return the address of its predictions."""
    job_id = world.start(**SMALL | changes)
    content = save(trained.state_dict())
    entry = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    world.checkpoint(
        job_id,
        10,
        seq=1,
        spec=world.client.get(f"/v1/jobs/{job_id}").json()["spec"],
        inputs={"image_shape": list(inputs), "num_classes": 10, "class_names": class_names},
        files={"model.safetensors": entry},
    )
    (world.directory(job_id, 10) / "model.safetensors").write_bytes(content)
    return f"/v1/jobs/{job_id}/checkpoints/10/predict"


def digit(number):
    """Return a held-out digit as the model takes it, and as a PNG."""
    x, _ = build_data(SPEC.data, 0).test.batch(np.array([number]), 0)
    pixels = np.rint((x[0, 0] * digits.STD + digits.MEAN) * 255).astype(np.uint8)
    return torch.from_numpy(x), encoded(pixels)


def encoded(pixels, kind="PNG"):
    """Return an image file."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind)
    return out.getvalue()

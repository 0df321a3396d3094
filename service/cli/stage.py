"""The demo's play: a controller, a job, its checkpoint, a prediction, step by step and said aloud. Tidying up is the caller's."""

import json
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from service.cli.board import display
from service.cli.checkpoints import fetch
from service.cli.exits import CommandError
from service.cli.family import Family
from service.cli.following import View, show_event
from service.cli.interrupts import Guard
from service.cli.output import clean
from service.cli.specs import parse
from service.cli.tables import statistics_table
from service.client import Client
from service.client.address import running_url
from service.settings import Home

START_TIMEOUT_S = 40.0
CLUSTER_TIMEOUT_S = 100.0
PREDICT_TIMEOUT_S = 120.0
LEAST_ACCURACY = 0.97
Json = dict[str, Any]


class DemoError(CommandError):
    """A step of the demo did not come out right; the message says which and why."""


@dataclass(frozen=True)
class Stage:
    """Where the demo plays."""

    home: Path
    log: Path
    checkpoint: Path
    workers: int
    family: Family
    guard: Guard
    out: Console

    def play(self) -> Json:
        """Run the whole demo and return its result.

        Raises:
            DemoError: a step failed, or the accuracy is below LEAST_ACCURACY.
        """
        self._say("1. Start a controller with an embedded Ray, on a fresh home and a free port", "syncbn serve")
        self._start_controller()
        with Client(home=self.home) as client:
            self._await_cluster(client)
            job = self._train(client)
            self._say(
                "4. Download the best checkpoint; every file is checked against its SHA-256",
                f"syncbn checkpoints download {job['id']} best",
            )
            manifest = fetch(client, job["id"], "best", self.checkpoint, self.out)
            self._say("5. The running statistics that travel in the checkpoint", f"syncbn checkpoints stats {job['id']} best")
            self.out.print(statistics_table(client.statistics(job["id"], manifest["step"])["layers"]))
        self._say(
            "6. Predict single held-out digits with that file in a plain torch.nn.BatchNorm2d model",
            f"python -m worker.predict {self.checkpoint}",
        )
        return self._result(job, manifest, self._predict())

    def _say(self, title: str, command: str) -> None:
        self.guard.check()
        self.out.print()
        self.out.print(Text(title, style="bold"), soft_wrap=True)
        self.out.print(Text(f"   $ {command}", style="dim"), soft_wrap=True)

    def _start_controller(self) -> None:
        command = [sys.executable, "-m", "service.cli.main", "serve", "--port", "0", "--home", str(self.home)]
        with self.guard.held():
            controller = self.family.start(command, log=self.log)
        deadline = time.monotonic() + START_TIMEOUT_S
        while not (url := running_url(Home(self.home))):
            self.guard.check()
            if controller.poll() is not None:
                raise DemoError(f"the controller ended with exit status {controller.returncode}")
            if time.monotonic() > deadline:
                raise DemoError(f"the controller did not listen within {START_TIMEOUT_S:.0f} s")
            time.sleep(0.05)
        self.out.print(f"   it listens on {url}; `syncbn serve` prints the address of its dashboard once", soft_wrap=True)

    def _await_cluster(self, client: Client) -> None:
        self._say("2. Wait for its cluster", f"curl -H 'Authorization: Bearer TOKEN' {client.url}/v1/cluster")
        deadline = time.monotonic() + CLUSTER_TIMEOUT_S
        while not (cluster := client.cluster()).get("is_connected"):
            self.guard.check()
            if time.monotonic() > deadline:
                raise DemoError(f"the embedded Ray did not come up within {CLUSTER_TIMEOUT_S:.0f} s: {cluster.get('message', '')}")
            time.sleep(0.1)
        self.out.print("   Ray runs, as processes of its own: a controller that is restarted finds its jobs training", soft_wrap=True)

    def _train(self, client: Client) -> Json:
        spec = parse(files("service.cli").joinpath("digits.yaml").read_text(encoding="utf-8"), "digits.yaml")
        spec["resources"] = {**spec.get("resources", {}), "workers": self.workers}
        command = f"syncbn submit service/cli/digits.yaml --set resources.workers={self.workers} --follow"
        self._say(f"3. Train ResNet-18 on {self.workers} workers, BatchNorm synchronized by all-reduce", command)
        job = client.submit(spec)
        self.out.print(f"   {job['id']}", soft_wrap=True)
        view = View(job.id, str(job["name"]))
        with display(self.out, [view]) as show:
            for event in client.follow_events(job.id):
                self.guard.check()
                show_event(event, view, show)
        job = client.job(job["id"])
        if job["state"] != "succeeded":
            raise DemoError(f"the job {job['state']} ({job['reason']}): {job['message']}")
        return job

    def _predict(self) -> Json:
        with self.guard.held():
            process = self.family.start([sys.executable, "-m", "worker.predict", str(self.checkpoint), "--json"])
        try:
            output, errors = process.communicate(timeout=PREDICT_TIMEOUT_S)
        except subprocess.TimeoutExpired as error:
            raise DemoError(f"worker.predict took more than {PREDICT_TIMEOUT_S:.0f} s") from error
        self.guard.check()
        if process.returncode:
            raise DemoError(f"worker.predict ended with exit status {process.returncode}: {clean(errors.decode(errors='replace')[-2000:])}")
        found: Json = json.loads(output)
        return found

    def _result(self, job: Mapping[str, Any], manifest: Mapping[str, Any], found: Json) -> Json:
        for sample in found["samples"][:8]:
            verdict = "right" if sample["predicted"] == sample["label"] else f"wrong, it is {sample['label']}"
            self.out.print(f"   test sample {sample['index']:>4}: predicted {sample['predicted']}, {verdict}")
        accuracy = found["metrics"]["accuracy"]
        num_correct = sum(sample["predicted"] == sample["label"] for sample in found["samples"])
        right = f"{num_correct} of {found['num_samples']}"
        self.out.print(f"   accuracy {accuracy:.4f}: {right}, one sample at a time through {found['norm_class']}", soft_wrap=True)
        if accuracy < LEAST_ACCURACY:
            raise DemoError(f"the accuracy is {accuracy:.4f}; expected at least {LEAST_ACCURACY}")
        return {
            "job": job["id"],
            "step": manifest["step"],
            "accuracy": accuracy,
            "num_correct": num_correct,
            **{key: found[key] for key in ("num_samples", "norm_class")},
        }

"""One process that predicts images with one checkpoint, on the controller's machine, beside the controller: that never loads torch.

Owns the process: one at a time, kept for a minute after its last image, ended when it is slow or when another checkpoint is asked for.
What it does is `worker.predictor`; its end comes by itself when this process is gone, with the end of its stdin.
"""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Any, Final

from service.admission import runs_user_code
from service.artifacts import MODEL_NAME, Artifacts
from service.errors import ConflictError, InvalidError, ServiceError, UnavailableError
from service.reading import Verified, read_verified
from service.settings import bare_environment
from service.store.records import Checkpoint
from worker.contract import JobSpec, Problem

COMMAND = ("nice", "-n", "10", sys.executable, "-m", "worker.predictor")
MAX_MODEL_BYTES: Final = 2 << 30
START_TIMEOUT_S: Final = 90.0
"""For loading torch and the model."""
ANSWER_TIMEOUT_S: Final = 30.0
TURN_TIMEOUT_S: Final = 30.0
IDLE_S: Final = 60.0
_LENGTH_BYTES: Final = 8
_MAX_ANSWER_BYTES: Final = 1 << 16
_END_TIMEOUT_S: Final = 5.0


class Predictor:
    """Predictions from checkpoints, one after the other."""

    def __init__(self, artifacts: Artifacts, verified: Verified) -> None:
        self._artifacts, self._verified = artifacts, verified
        self._turn = asyncio.Lock()
        self._process: asyncio.subprocess.Process | None = None
        self._loaded: tuple[str, int, str] | None = None
        """Job, step and digest of the model that the process has."""
        self._retirement: asyncio.TimerHandle | None = None
        self._endings: set[asyncio.Task[None]] = set()

    async def predict(self, checkpoint: Checkpoint, spec: JobSpec, image: bytes) -> list[dict[str, Any]]:
        """Return the most probable classes of an encoded image, most probable first: `{label, name, probability}`.

        Raises:
            ConflictError: this checkpoint is none that images are classified with here.
            InvalidError: the bytes are no image.
            UnavailableError: another one is being predicted for too long, the process ended or was too slow, or there is no torch here.
        """
        refuse_unpredictable(checkpoint, spec)
        async with self._in_turn():
            try:
                process = await self._process_of(checkpoint)
                async with asyncio.timeout(ANSWER_TIMEOUT_S):
                    answer = await _ask(process, image)
            except BaseException as error:
                # Whatever it was, an answer may still come: nobody else must take it for theirs.
                await self._end()
                if isinstance(error, TimeoutError | OSError | asyncio.IncompleteReadError | ValueError):
                    raise _broken(error) from error
                raise
            self._retire_later()
        return _predictions(answer)

    async def close(self) -> None:
        """End the process."""
        async with self._turn:
            await self._end()

    @asynccontextmanager
    async def _in_turn(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(TURN_TIMEOUT_S):
                await self._turn.acquire()
        except TimeoutError as error:
            raise UnavailableError(
                f"other images have been predicted for {TURN_TIMEOUT_S:g} s; expected a free moment; try again",
                headers={"Retry-After": "10"},
            ) from error
        try:
            yield
        finally:
            self._turn.release()

    async def _process_of(self, checkpoint: Checkpoint) -> asyncio.subprocess.Process:
        """Return the process that has the checkpoint's model, after starting it where it is not there."""
        if self._retirement is not None:
            self._retirement.cancel()
        wanted = (checkpoint.job_id, checkpoint.step, checkpoint.manifest.files[MODEL_NAME].sha256)
        if self._process is not None and self._process.returncode is None and self._loaded == wanted:
            return self._process
        await self._end()
        self._loaded = wanted
        async with asyncio.timeout(START_TIMEOUT_S):
            pipe, nothing = asyncio.subprocess.PIPE, asyncio.subprocess.DEVNULL
            self._process = await asyncio.create_subprocess_exec(
                *COMMAND, stdin=pipe, stdout=pipe, stderr=nothing, env=bare_environment(), start_new_session=True
            )
            await self._hand_over(self._process, checkpoint)
            _refuse_error(await _receive(self._process))
        return self._process

    async def _hand_over(self, process: asyncio.subprocess.Process, checkpoint: Checkpoint) -> None:
        """Send manifest and model, the digest taken on the way."""
        assert process.stdin is not None
        manifest = checkpoint.manifest.model_dump_json().encode()
        process.stdin.write(_head(len(manifest)) + manifest)
        opened = await self._artifacts.open(checkpoint, MODEL_NAME)
        try:
            process.stdin.write(_head(opened.size))
            async with aclosing(read_verified(opened, self._verified)) as chunks:
                async for chunk in chunks:
                    process.stdin.write(chunk)
                    await process.stdin.drain()
        finally:
            opened.file.close()

    def _retire_later(self) -> None:
        self._retirement = asyncio.get_running_loop().call_later(IDLE_S, self._retire)

    def _retire(self) -> None:
        if self._turn.locked():
            return  # whoever has the turn sees to it again
        task = asyncio.ensure_future(self.close())
        self._endings.add(task)
        task.add_done_callback(self._endings.discard)

    async def _end(self) -> None:
        process, self._process = self._process, None
        if self._retirement is not None:
            self._retirement.cancel()
        if process is None:
            return
        with suppress(ProcessLookupError):
            process.kill()
        if process.stdin is not None:
            process.stdin.close()
        async with asyncio.timeout(_END_TIMEOUT_S):
            await process.wait()


def refuse_unpredictable(checkpoint: Checkpoint, spec: JobSpec) -> None:
    """Raise ConflictError where images cannot be classified with a checkpoint by this controller; the message says why."""
    model, inputs = checkpoint.manifest.files.get(MODEL_NAME), checkpoint.manifest.inputs
    if spec.task.name != "classification":
        reason = f"its task is {spec.task.name}; expected classification"
    elif runs_user_code(spec):
        reason = "it runs code of your own, which the controller does not; expected a model of the catalogue"
    elif inputs is None or len(inputs.image_shape) != 3 or inputs.image_shape[0] not in {1, 3}:
        reason = f"it takes {inputs.image_shape if inputs else 'nobody noted what'}; expected images of 1 or 3 channels"
    elif model is None or model.size > MAX_MODEL_BYTES:
        reason = f"its model has {model.size if model else 'no'} bytes; expected at most {MAX_MODEL_BYTES}"
    else:
        return
    raise ConflictError(
        f"checkpoint {checkpoint.step} of {checkpoint.job_id} predicts nothing here: {reason}; download it, and predict with a script",
        code="not_predictable",
    )


async def _ask(process: asyncio.subprocess.Process, image: bytes) -> dict[str, Any]:
    assert process.stdin is not None
    process.stdin.write(_head(len(image)) + image)
    await process.stdin.drain()
    return await _receive(process)


async def _receive(process: asyncio.subprocess.Process) -> dict[str, Any]:
    assert process.stdout is not None
    length = int.from_bytes(await process.stdout.readexactly(_LENGTH_BYTES), "big")
    if length > _MAX_ANSWER_BYTES:
        raise ValueError(f"an answer of {length} bytes")
    answer: dict[str, Any] = json.loads(await process.stdout.readexactly(length))
    return answer


def _predictions(answer: dict[str, Any]) -> list[dict[str, Any]]:
    _refuse_error(answer)
    found: list[dict[str, Any]] = answer["predictions"]
    return found


def _refuse_error(answer: dict[str, Any]) -> None:
    error = answer.get("error")
    if error is None:
        return
    if error["code"] == "invalid_image":
        problem = Problem(loc="body", value=None, expected=error["message"], remedy="send a PNG or JPEG")
        raise InvalidError(error["message"], code="invalid_image", problems=[problem])
    raise ConflictError(f"the checkpoint predicts nothing here: {error['message']}", code="not_predictable")


def _broken(error: BaseException) -> ServiceError:
    reason = "it did not answer in time" if isinstance(error, TimeoutError) else f"it ended ({type(error).__name__})"
    return UnavailableError(
        f"the process that predicts did not do so: {reason}; expected torch and room for the model on the controller's machine; install"
        " syncbn[worker] there, or download the checkpoint and predict with a script"
    )


def _head(length: int) -> bytes:
    return length.to_bytes(_LENGTH_BYTES, "big")

"""What a user might upload: a model that starts processes that do not want to end, or that never lets go of Python's lock."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from torch import Tensor, nn

CALLS = 5
PROGRAM = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"


class Unruly(nn.Module):
    """A small classifier. In its fifth pass it writes the pids of what it starts into a file of the folder `pids`."""

    def __init__(self, in_channels: int, num_classes: int, pids: str, *, keeps_lock: bool) -> None:
        super().__init__()
        self.features, self.head = nn.Sequential(nn.Conv2d(in_channels, 4, 3), nn.BatchNorm2d(4)), nn.Linear(4, num_classes)
        self.pids, self.keeps_lock, self.calls = Path(pids), keeps_lock, 0

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, C, H, W) to (n, num_classes)."""
        self.calls += 1
        if self.calls == CALLS:
            self._start()
            while self.keeps_lock:
                ctypes.PyDLL(None).sleep(600)
        return self.head(self.features(x).mean((2, 3)))

    def _start(self) -> None:
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            if os.fork() == 0:
                os.setsid()
                if os.fork() == 0:
                    os.write(write, b"%d" % os.getpid())
                    time.sleep(600)
                os._exit(0)
            time.sleep(600)
        detached = int(os.read(read, 100))
        program = subprocess.Popen([sys.executable, "-c", PROGRAM], start_new_session=True)
        whole = self.pids / f".{os.getpid()}"
        whole.write_text(f"{os.getpid()} {child} {detached} {program.pid}")
        whole.rename(self.pids / str(os.getpid()))


class Late(Unruly):
    """The same, which does so while it is made, and is not done for ten minutes."""

    def __init__(self, in_channels: int, num_classes: int, pids: str, *, keeps_lock: bool) -> None:
        super().__init__(in_channels, num_classes, pids, keeps_lock=keeps_lock)
        self._start()
        if keeps_lock:
            ctypes.PyDLL(None).sleep(600)
        time.sleep(600)

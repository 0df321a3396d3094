"""Tests of worker/mailbox.py that need no gang. Of what a rank does when it is told, in test_session.py and test_gang.py."""

import subprocess
import sys

_PROGRAM = """
from worker.mailbox import Mailbox
print(Mailbox("127.0.0.1").host_store(1))
"""


def test_a_new_process_serves_the_store_while_it_still_loads_torch():
    """Asked at once, it answers with a port; two threads in the import of torch.distributed would end the process."""
    done = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True, timeout=120, check=False)

    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 0

"""Writes service/client/synchronous from service/client/asynchronous: `python -m tests.support.synchronous`. Names change, nothing else.

A test holds the files to it, so that nothing of the two clients is written, or mended, twice.
"""

import io
import subprocess
import sys
import tokenize
from pathlib import Path

CLIENT = Path(__file__).parent.parent.parent / "service/client"
HEADER = "# Generated from service/client/asynchronous/{name} by `make format`: change that file.\n"
TWINS = {"__init__.py", "blocking.py"}
"""Written by hand on both sides."""
GENERATED = sorted(path.name for path in (CLIENT / "asynchronous").glob("*.py") if path.name not in TWINS)
_NAMES = {
    "asynchronous": "synchronous",
    "asynccontextmanager": "contextmanager",
    "aclose": "close",
    "aiter_bytes": "iter_bytes",
    "aiter_raw": "iter_raw",
    "aread": "read",
    "AsyncBaseTransport": "BaseTransport",
    "AsyncClient": "Client",
    "AsyncIterator": "Iterator",
    "AsyncJob": "Job",
    "__aenter__": "__enter__",
    "__aexit__": "__exit__",
}


def synchronous(source: str) -> str:
    r"""Return the same module without a loop.

    >>> synchronous("async def f(c: AsyncClient):\n    return await c.aread()  # await\n")
    'def f(c: Client):\n    return c.read()  # await\n'
    """
    lines = source.splitlines(keepends=True)
    # From the end, so that what is still to be replaced stands where the tokens say.
    for token in reversed(list(tokenize.generate_tokens(io.StringIO(source).readline))):
        if token.type != tokenize.NAME:
            continue
        (row, start), (_, end) = token.start, token.end
        line = lines[row - 1]
        if token.string in {"async", "await"}:
            lines[row - 1] = line[:start] + line[end + 1 :]
        elif token.string in _NAMES:
            lines[row - 1] = line[:start] + _NAMES[token.string] + line[end:]
    return "".join(lines)


def generated(name: str) -> str:
    """Return what a file of the synchronous client is to be, formatted."""
    text = HEADER.format(name=name) + synchronous((CLIENT / "asynchronous" / name).read_text())
    # Shorter names sort elsewhere: imports too are put in order by the linter.
    for command in (["check", "--quiet", "--select=I", "--fix", "-"], ["format", "-"]):
        ruff = [Path(sys.executable).with_name("ruff"), *command, f"--stdin-filename={CLIENT / 'synchronous' / name}"]
        text = subprocess.run(ruff, input=text, capture_output=True, text=True, check=True, timeout=60).stdout
    return text


if __name__ == "__main__":
    for module in GENERATED:
        (CLIENT / "synchronous" / module).write_text(generated(module))

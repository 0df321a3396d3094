"""The controller's own log: to stderr, one record one line. Owns its form; what is worth a record is said where it happens.

A record may quote what a user or a rank chose: a name, a line of output, an error of somebody's code. Nothing in it ends the line, starts
another record, or drives the terminal of whoever reads it.
"""

import asyncio
import logging
import re
import sys
from collections.abc import MutableMapping
from typing import Any, Final

import structlog

from service.cli.output import console

# C0 and C1 controls, and what some readers take for the end of a line or for a change of direction.
_DRIVING: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def escaped(text: str) -> str:
    r"""Return text on one line, with everything that drives a terminal made visible.

    >>> escaped("a\n2026 [error] forged\x1b[2J")
    'a\\n2026 [error] forged\\x1b[2J'
    """
    return _DRIVING.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)


def log_to_stderr(log_format: str, *extra: structlog.typing.Processor) -> None:
    """Keep stdout for the address, and colours out of files; one line, or one JSON object, for each thing that happens.

    Args:
        log_format: `console` or `json`.
        extra: what else completes each record.
    """
    stamp = structlog.processors.TimeStamper(fmt="iso", utc=True)
    chain: list[structlog.typing.Processor] = [structlog.processors.add_log_level, stamp, structlog.processors.format_exc_info, *extra]
    # JSON escapes by itself.
    renderer: structlog.typing.Processor = structlog.processors.JSONRenderer(default=str)
    if log_format == "console":
        chain.append(_escape_values)
        renderer = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty() and not console(stderr=True).no_color)
    structlog.configure(processors=[*chain, renderer], logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    logging.getLogger("uvicorn.error").addFilter(_is_news)
    foreign = logging.StreamHandler(sys.stderr)
    foreign.setFormatter(structlog.stdlib.ProcessorFormatter(renderer, foreign_pre_chain=[structlog.stdlib.add_logger_name, *chain]))
    logging.basicConfig(level=logging.WARNING, handlers=[foreign])


def _escape_values(_logger: Any, _method: str, record: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for key, value in record.items():
        if isinstance(value, str):
            record[key] = _indented(value) if key == "exception" else escaped(value)
    return record


def _indented(traceback: str) -> str:
    return "\n".join("  " + escaped(line) for line in traceback.split("\n"))


def _is_news(record: logging.LogRecord) -> bool:
    """Return whether a log record is more than a stream that was cut because the process ends."""
    is_cut = record.exc_info is not None and record.exc_info[0] is asyncio.CancelledError
    return not is_cut and not str(record.msg).startswith("Cancel %s running task")

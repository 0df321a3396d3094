"""Traces for OpenTelemetry: a span for every request, and for every state that a job has been in. Off unless the operator says where to.

A job is a trace of its own, whose id is that of the job: the ULID, in hexadecimal. Where spans go, and with which headers, OpenTelemetry's
exporter reads from its own OTEL_ variables.
"""

import re
from collections.abc import MutableMapping
from typing import Any, Final

from fastapi import FastAPI

from service.store.ids import JOB_ID_PATTERN, number_of
from service.store.session import StateLeft

_UNTRACED: Final = "healthz,readyz,metrics"
CLOSE_S: Final = 3.0
"""Longest time for the last spans to leave; what has not left then is lost."""


class TracingError(RuntimeError):
    """Traces are asked for and cannot be made here. The operator's to mend."""


class Tracing:
    """The spans of one controller.

    Raises:
        TracingError: the packages of the extra `otel` are not installed.
    """

    def __init__(self) -> None:
        try:
            from opentelemetry import trace
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
            from opentelemetry.sdk.resources import SERVICE_NAME, Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError as error:
            raise TracingError(
                f"OTEL_EXPORTER_OTLP_ENDPOINT is set and {error.name} is not installed; expected the extra otel; "
                "install it with pip install 'syncbn[otel]', or unset the variable"
            ) from error
        self._api = trace
        self._instrumentor = FastAPIInstrumentor
        resource = Resource.create()
        if str(resource.attributes[SERVICE_NAME]).startswith("unknown_service"):  # the operator says no name
            resource = resource.merge(Resource({SERVICE_NAME: "syncbn"}))
        self._provider = TracerProvider(resource=resource)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("syncbn")

    def watch(self, app: FastAPI) -> None:
        """Have every request of an application be a span, but for those of probes."""
        self._instrumentor.instrument_app(app, tracer_provider=self._provider, excluded_urls=_UNTRACED, exclude_spans=["receive", "send"])

    def state_left(self, left: StateLeft) -> None:
        """Send the time that a job was in a state as a span of the job's trace."""
        number = number_of(left.job_id)
        flags = self._api.TraceFlags(self._api.TraceFlags.SAMPLED)
        # The whole job has no span: it would have to be sent when the job ends, weeks later and perhaps by another controller.
        job = self._api.SpanContext(number, number & (2**64 - 1) or 1, is_remote=True, trace_flags=flags)
        context = self._api.set_span_in_context(self._api.NonRecordingSpan(job))
        attributes = {"syncbn.job.id": left.job_id, "syncbn.reason": left.reason, "syncbn.next_state": left.to}
        span = self._tracer.start_span(left.state, context, attributes=attributes, start_time=int(left.since.timestamp() * 1e9))
        span.end(int(left.until.timestamp() * 1e9))

    def annotate(self, _logger: Any, _method: str, record: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        """Complete a record of the log by `trace_id`: that of the request at hand, else of the job that the record is about."""
        current = self._api.get_current_span().get_span_context()
        if current.is_valid:
            record["trace_id"] = f"{current.trace_id:032x}"
        elif re.match(JOB_ID_PATTERN, str(record.get("job"))):
            record["trace_id"] = f"{number_of(record['job']):032x}"
        return record

    def close(self) -> None:
        """Send what has not been sent yet, if that is quick."""
        self._provider.force_flush(int(CLOSE_S * 1000))
        self._provider.shutdown()

"""Choose whether calls are traced; OpenTelemetry is imported only where they are."""

from apps.chassis.observability.traces import Traces
from apps.chassis.settings import Settings, WrongSetting


def traces_of(settings: Settings, service: str) -> Traces:
    """Return what traces the calls of a service; off unless `OTEL_EXPORTER_OTLP_ENDPOINT` is set.

    Raises `WrongSetting` when it is, and the extra `tracing` is not installed.
    """
    if not settings.otel_exporter_otlp_endpoint:
        return Traces()
    try:
        from apps.chassis.observability.opentelemetry import sending_to  # noqa: PLC0415 - it need not be installed where traces are off
    except ImportError as error:
        raise WrongSetting(
            f"OTEL_EXPORTER_OTLP_ENDPOINT: sending traces needs the extra `tracing` ({error.name} is missing)"
        ) from None
    return sending_to(settings.otel_exporter_otlp_endpoint, service)

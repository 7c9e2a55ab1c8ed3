"""Choose whether calls are traced; OpenTelemetry is imported only if they are."""

from apps.chassis.observability.traces import Traces
from apps.chassis.setting_types import WrongSetting
from apps.chassis.settings import Settings


def traces_of(settings: Settings, service: str) -> Traces:
    """Return the tracing of a service; it is off unless `OTEL_EXPORTER_OTLP_ENDPOINT` is set.

    Raises `WrongSetting` when that is set but the extra `tracing` is not installed.
    """
    if not settings.otel_exporter_otlp_endpoint:
        return Traces()
    try:
        from apps.chassis.observability.opentelemetry import sending_to  # noqa: PLC0415 - it need not be installed when traces are off
    except ImportError as error:
        raise WrongSetting(
            f"OTEL_EXPORTER_OTLP_ENDPOINT: sending traces needs the extra `tracing` ({error.name} is missing)"
        ) from None
    return sending_to(settings.otel_exporter_otlp_endpoint, service)

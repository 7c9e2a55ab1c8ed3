"""Run the producer: `python -m apps.producer`."""

from apps.chassis.service import serve
from apps.producer.app import create_app

if __name__ == "__main__":
    serve(create_app, lambda settings: settings.producer_port, "PRODUCER_PORT")

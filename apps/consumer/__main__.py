"""Run the consumer: `python -m apps.consumer`."""

from apps.chassis.service import serve
from apps.consumer.app import create_app

if __name__ == "__main__":
    serve(create_app, lambda settings: settings.consumer_port, "CONSUMER_PORT")

"""Where Locust looks: the scenarios `bench.run` plays. Alone: see `python -m bench.run --help`."""

from bench.scenarios.flash_sale import Customer

__all__ = ["Customer"]

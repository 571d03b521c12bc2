"""What customers do, as Locust users."""

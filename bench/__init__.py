"""A client of the HTTP API that measures and audits it. Imports nothing of `api` or `core`."""

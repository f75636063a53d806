"""Integrations with frameworks. Each module needs its own extra, so import the one that you want by its full name."""

"""AWS Secrets Manager as a source: ``source`` fetches, ``layouts`` reads what a secret may look like, ``client`` calls.

Imported on demand only: boto's modules are many.
"""

from .source import SecretsManagerSource

__all__ = ["SecretsManagerSource"]

"""AWS Secrets Manager as a source: ``source`` fetches, ``layouts`` interprets a secret, ``client`` talks to AWS.

Import this on demand only, because boto is slow to import.
"""

from .source import SecretsManagerSource

__all__ = ["SecretsManagerSource"]

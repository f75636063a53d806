"""Secrets Manager for these tests."""

from support.moto import _models_are_read_once, aws_secret, client, service

__all__ = ["_models_are_read_once", "aws_secret", "client", "service"]

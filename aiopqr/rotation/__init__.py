"""The other half: changing the passwords of a pair so that nobody is ever locked out.

``store`` says what a secret store must do and ``file`` does it for a JSON file; ``plan`` decides and ``gates`` says what
speaks against it, both pure; ``database`` asks and alters Postgres; ``rotator`` puts them in order.
"""

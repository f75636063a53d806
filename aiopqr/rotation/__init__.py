"""The other half: changing the passwords of a pair so that nobody is ever locked out.

``store`` says what a secret store must do, ``file`` does it for a JSON file and ``document`` holds the keys they share.
``plan`` decides and ``gates`` say what speaks against it, both pure; ``database`` asks and alters Postgres; ``rotator``
puts them in order.
"""

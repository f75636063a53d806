"""``aiopqr demo``: passwords change under load on a real Postgres, and nothing fails.

``stage`` is the operator's side, ``pools`` what is under load, and ``load`` the load; ``run`` puts them together.
``view`` draws what happens, in ``words``; ``verdict`` says what came of it, and ``picture`` shows it.
"""

from .command import demo

__all__ = ["demo"]

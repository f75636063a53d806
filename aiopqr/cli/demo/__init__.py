"""``aiopqr demo``: passwords change under load on a real Postgres, and nothing fails.

``stage`` is the operator's side, ``pools`` makes the pools, and ``load`` puts them under load; ``run`` combines these.
``view`` shows what happens, in the sentences of ``words``. ``verdict`` sums up the results, and ``picture`` draws them.
"""

from .command import demo

__all__ = ["demo"]

"""Base classes that make the pool generic, for type checkers and at run time."""

from __future__ import annotations

from types import GenericAlias
from typing import TYPE_CHECKING, Generic

import asyncpg
from asyncpg.pool import PoolAcquireContext

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    RecordT = TypeVar("RecordT", bound=asyncpg.Record, default=asyncpg.Record)
    ConnectionT = TypeVar("ConnectionT", default=asyncpg.Connection[asyncpg.Record])

    class BasePool(asyncpg.Pool[RecordT], Generic[RecordT, ConnectionT]):
        """The parameters of ``AlternatingPool[Record, Connection]`` are the classes of its records and connections."""

    class BaseAcquireContext(PoolAcquireContext[RecordT], Generic[RecordT, ConnectionT]):
        """What ``acquire()`` returns."""

else:
    from typing import TypeVar

    RecordT = TypeVar("RecordT")
    ConnectionT = TypeVar("ConnectionT")

    class BasePool(asyncpg.Pool):
        """asyncpg's pool, which can be subscripted."""

        __slots__ = ()
        __class_getitem__ = classmethod(GenericAlias)

    class BaseAcquireContext(PoolAcquireContext):
        """asyncpg's context, which can be subscripted."""

        __slots__ = ()
        __class_getitem__ = classmethod(GenericAlias)

"""SQLAlchemy's ORM on an engine whose database passwords change while it works.

    python examples/sqlalchemy_orm.py

It starts its own Postgres, and exits when it is done. Needs: pip install 'aiopqr[sqlalchemy,testing]'
"""

from __future__ import annotations

import asyncio
import time

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import async_sessionmaker
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from aiopqr.integrations.sqlalchemy import create_async_engine
from aiopqr.testing import EmbeddedPostgres, RotatingPostgres


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"

    id: Mapped[int] = mapped_column(primary_key=True)
    item: Mapped[str]
    taken_by: Mapped[str] = mapped_column(server_default=func.session_user())


async def use(database: RotatingPostgres) -> None:
    # A service would pass its URL, without user and password, and a source such as FileSource("/etc/secrets/db").
    engine = create_async_engine(
        database.dsn.replace("postgresql:", "postgresql+asyncpg:"),
        credentials=database.source,
        max_lifetime=1.0,  # seconds; half an hour by default
        pool_size=5,
    )
    async with engine.begin() as con:
        await con.run_sync(Base.metadata.create_all)
    new_session = async_sessionmaker(engine, expire_on_commit=False)

    async def order_until(end: float) -> None:
        while time.monotonic() < end:
            async with new_session.begin() as session:
                session.add(Order(item="tea"))
            await asyncio.sleep(0.01)

    for account in ("odd", "even", "odd"):
        await database.rotate(account)
        await asyncio.gather(*(order_until(time.monotonic() + 1.5) for _ in range(5)))

    async with new_session() as session:
        rows = await session.execute(select(Order.taken_by, func.count()).group_by(Order.taken_by))
        print("3 passwords changed, no order failed:", {row.taken_by: row[1] for row in rows})

    await engine.dispose()  # closes the connections, and ends the background refresh


async def main() -> None:
    async with EmbeddedPostgres() as server:
        await use(await RotatingPostgres.create(server))


if __name__ == "__main__":
    asyncio.run(main())

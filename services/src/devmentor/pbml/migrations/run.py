"""How a revision runs SQL."""

from alembic import op


def execute(sql: str) -> None:
    """Run a script of statements as it stands: no parameters, so that `%` and `:` mean themselves."""
    connection = op.get_bind().connection.driver_connection
    assert connection is not None
    with connection.cursor() as cursor:
        cursor.execute(sql)

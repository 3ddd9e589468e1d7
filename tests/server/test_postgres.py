"""docker/postgres/init.sh against a real Postgres."""

from __future__ import annotations

import psycopg
import pytest

from tests.server.stack import TeamPostgres, make_secrets

DATABASES = ("mlflow", "mlflow_auth", "optuna", "postgres")


@pytest.fixture(scope="module")
def secrets(tmp_path_factory):
    return make_secrets(tmp_path_factory.mktemp("postgres") / "secrets")


@pytest.fixture(scope="module")
def postgres(secrets):
    server = TeamPostgres(secrets)
    yield server
    server.close()


def connect(postgres, secrets, role: str, database: str) -> psycopg.Connection:
    return psycopg.connect(postgres.login(role, database), password=(secrets / f"{role}_database").read_text())


@pytest.mark.fault("the login of one database is tried on another", "it reaches its own and no other")
@pytest.mark.parametrize(("role", "own"), [("mlflow", {"mlflow", "mlflow_auth"}), ("optuna", {"optuna"})])
def test_a_role_reaches_its_databases_and_no_other(postgres, secrets, role, own):
    for database in DATABASES:
        if database in own:
            with connect(postgres, secrets, role, database) as connection:
                connection.execute("CREATE TABLE its_own (number int)")
        else:
            with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
                connect(postgres, secrets, role, database)


@pytest.mark.parametrize("role", ["mlflow", "optuna"])
def test_a_role_may_make_neither_roles_nor_databases(postgres, secrets, role):
    rights = (
        "SELECT rolsuper, rolcreaterole, rolcreatedb, rolreplication, rolbypassrls FROM pg_roles WHERE rolname = %s"
    )
    with connect(postgres, secrets, role, role) as connection:
        assert connection.execute(rights, [role]).fetchone() == (False,) * 5


@pytest.mark.fault("a wrong password, or none, for the database", "no connection")
@pytest.mark.parametrize("password", ["", "optuna", "postgres"])
def test_nobody_connects_without_the_password(postgres, password):
    with pytest.raises(psycopg.OperationalError, match=r"password authentication failed|no password supplied"):
        psycopg.connect(postgres.login("optuna", "optuna"), password=password)


def test_passwords_are_kept_as_hashes(postgres):
    kept = postgres.rows("SELECT rolpassword FROM pg_authid WHERE rolname IN ('mlflow', 'optuna')")
    assert len(kept) == 2
    assert all(password.startswith("SCRAM-SHA-256$") for (password,) in kept)

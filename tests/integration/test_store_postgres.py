"""A PostgreSQL server that is away, restarts, refuses or deadlocks."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import psycopg
import pytest
import sqlalchemy as sa

from assay.errors import StoreDataError, StoreError
from assay.store import Committed, DeadLetter, Store
from assay.store import _tables as tables
from servers import PostgresServer, free_port
from stores import A_FAILURE, EPOCH, a_record, assert_sums_true, commit, connected, dump

pytestmark = pytest.mark.integration


@pytest.fixture
def store(postgres_url: str) -> Iterator[Store]:
    with Store(postgres_url) as store:
        store.upgrade()
        yield store


def test_a_server_that_is_not_there_is_named_without_the_password() -> None:
    port = free_port()
    with Store(f"postgresql+psycopg://user:hunter2@127.0.0.1:{port}/scores?password=hunter3") as store:
        for call in (store.ping, store.check, store.upgrade, store.totals, lambda: commit(store, (a_record(), 0.5))):
            with pytest.raises(StoreError, match=f"127.0.0.1:{port}/scores: ") as caught:
                call()
            error: BaseException | None = caught.value
            while error is not None:
                assert "hunter" not in str(error)
                error = error.__cause__


def test_a_password_that_the_server_repeats_is_struck_out(postgres_url: str) -> None:
    # A user or database named like the password: the server's own words would show it.
    url = sa.make_url(postgres_url).set(password="hunter2", database="hunter2")
    with Store(url.render_as_string(hide_password=False)) as store:
        with pytest.raises(StoreError) as caught:
            store.ping()
        assert 'database "[secret]" does not exist' in str(caught.value)


def test_a_database_that_is_not_there_says_what_to_do(postgres_url: str) -> None:
    url = sa.make_url(postgres_url).set(database="elsewhere")
    with Store(url.render_as_string(hide_password=False)) as store, pytest.raises(StoreError, match='"elsewhere"'):
        store.ping()


def test_a_server_that_restarts_is_found_again(postgres_server: PostgresServer) -> None:
    with Store(postgres_server.create_database()) as store:
        store.upgrade()
        for index in range(5):
            commit(store, (a_record(f"before-{index}"), 0.5))
        for mode in ("fast", "immediate"):
            postgres_server.stop(mode)
            for call in (store.totals, store.ping, lambda: commit(store, (a_record("lost"), 0.5))):
                with pytest.raises(StoreError):
                    call()
            postgres_server.start()
            # Without an error in between: connections that died meanwhile are replaced.
            assert store.totals()[0].scored == 5
        # Nor does a restart that went unnoticed show.
        postgres_server.stop("fast")
        postgres_server.start()
        assert store.totals()[0].scored == 5
        assert commit(store, (a_record("after"), 0.5)) == Committed(
            inserted_records=1, inserted=1, duplicates=0, recovered=0
        )
        assert_sums_true(store)


def test_a_server_that_dies_under_a_commit_leaves_all_or_nothing(postgres_server: PostgresServer) -> None:
    with Store(postgres_server.create_database()) as store:
        store.upgrade()
        stop = threading.Event()
        committed: list[str] = []
        refused: list[str] = []

        def work() -> None:
            index = 0
            while not stop.is_set():
                index += 1
                try:
                    commit(store, *((a_record(f"{index}-{part}"), 0.5) for part in range(20)))
                    committed.append(str(index))
                except StoreError:
                    refused.append(str(index))
                    stop.wait(0.05)

        thread = threading.Thread(target=work)
        thread.start()
        for _ in range(2):
            while len(committed) < 10 * (len(refused) + 1):
                stop.wait(0.01)
            postgres_server.stop("immediate")
            postgres_server.start()
            seen = len(committed)
            while len(committed) == seen:
                stop.wait(0.01)
        stop.set()
        thread.join()
        assert refused
        stored = {record_id.split("-")[0] for (record_id, *_) in dump(store)["records"]}
        # A commit whose answer was lost may be stored all the same; one that was answered always is.
        assert set(committed) <= stored <= {*committed, *refused}
        assert store.totals()[0].scored == len(stored) * 20
        assert_sums_true(store)


@pytest.mark.parametrize("state", ["40P01", "40001", "23503"])
def test_what_a_second_try_mends_is_tried_again(store: Store, state: str) -> None:
    _refuse_counters(store, state, times=2)
    record = a_record("a", cohort={"tier": "gold"})
    assert commit(store, (record, A_FAILURE)) == Committed(inserted_records=1, inserted=1, duplicates=0, recovered=0)
    assert commit(store, (record, 0.5), replay=True).recovered == 1
    assert_sums_true(store)


def test_trying_again_has_an_end(store: Store) -> None:
    commit(store, (a_record(), 0.5))
    _refuse_counters(store, "40001", times=1_000)
    before = dump(store)
    with pytest.raises(StoreError, match="synthetic refusal"):
        commit(store, (a_record(), 0.5))
    assert dump(store) == before


@pytest.mark.parametrize("state", ["22003", "22P05", "23514", "54000"])
def test_a_refusal_of_the_data_is_no_fault_of_the_database(store: Store, state: str) -> None:
    _refuse_counters(store, state, times=1)
    with pytest.raises(StoreDataError, match="synthetic refusal"):
        commit(store, (a_record(), 0.5))
    commit(store, (a_record(), 0.5))
    assert store.totals()[0].scored == 1


def test_a_text_that_the_encoding_of_the_database_lacks_is_refused_for_good(postgres_server: PostgresServer) -> None:
    url = sa.make_url(postgres_server.create_database())
    engine = sa.create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql(
            "CREATE DATABASE latin ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"
        )
    engine.dispose()
    with Store(url.set(database="latin").render_as_string(hide_password=False)) as store:
        store.upgrade()
        with pytest.raises(StoreDataError):
            commit(store, (a_record(input="\u4e2d"), 0.5))
        commit(store, (a_record(), 0.5))
        assert store.totals()[0].scored == 1


def test_another_refusal_is_not_tried_again(store: Store) -> None:
    _refuse_counters(store, "53100", times=1)
    with pytest.raises(StoreError, match="synthetic refusal: free some disk space"):
        commit(store, (a_record(), 0.5))
    commit(store, (a_record(), 0.5))
    assert store.totals()[0].scored == 1


def _refuse_counters(store: Store, state: str, *, times: int) -> None:
    """Make the last statement of the next commits fail with this SQLSTATE."""
    with connected(store) as connection:
        connection.execute(sa.text("CREATE SEQUENCE tries"))
        connection.execute(
            sa.text(
                "CREATE FUNCTION refuse() RETURNS trigger AS $$ BEGIN "
                f"IF nextval('tries') <= {times} THEN RAISE 'synthetic refusal' USING ERRCODE = '{state}'; END IF; "
                "RETURN NEW; END $$ LANGUAGE plpgsql"
            )
        )
        connection.execute(
            sa.text("CREATE TRIGGER refuse BEFORE INSERT ON counters FOR EACH ROW EXECUTE FUNCTION refuse()")
        )


def test_a_purge_waits_for_nobody(store: Store) -> None:
    commit(store, *((a_record(f"r{index}", seconds=index * 60), 0.5) for index in range(10)))
    store.commit([], [], [DeadLetter(dead_id=f"d{i}", reason="invalid", message="", payload=b"") for i in range(10)])
    purge = partial(store.purge, payload_days=0, score_days=0, rollup_days=0, dead_days=0)
    with connected(store) as commit_under_way:
        for table, condition in (
            (tables.records, "record_id = 'r3'"),
            (tables.rollups, f"resolution_seconds = 60 AND start = {EPOCH + 180}"),
            (tables.dead_letters, "dead_id = 'd3'"),
        ):
            commit_under_way.execute(sa.text(f"SELECT 1 FROM {table.name} WHERE {condition} FOR UPDATE")).one()
        with ThreadPoolExecutor(1) as pool:
            gone = pool.submit(purge).result(timeout=30)
        assert (gone["records"], gone["evaluations"], gone["dead_letters"]) == (9, 9, 9)
        assert gone["rollups"] == 9 + 1
    gone = purge()
    assert (gone["records"], gone["rollups"], gone["dead_letters"]) == (1, 1, 1)


def test_commits_in_opposite_order_do_not_deadlock(store: Store, postgres_url: str) -> None:
    rounds, size = 20, 150
    errors: list[StoreError] = []
    together = threading.Barrier(4)

    def work(order: int) -> None:
        try:
            for number in range(rounds):
                pairs = [(a_record(f"{number}-{index}", seconds=index * 60), 0.5) for index in range(size)[::order]]
                # At first the records are new, then only their evaluations.
                for rubric in ("relevance", "safety"):
                    together.wait(60)
                    commit(store, *pairs, rubric=rubric)
        except StoreError as error:
            together.abort()
            errors.append(error)

    threads = [threading.Thread(target=work, args=(order,)) for order in (1, -1, 1, -1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert [total.scored for total in store.totals()] == [rounds * size] * 2
    # A server process reports its deadlocks when it ends, at the latest.
    store.close()
    dsn = postgres_url.replace("postgresql+psycopg", "postgresql")
    with psycopg.connect(dsn) as connection:
        row = connection.execute("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()").fetchone()
    assert row == (0,), "not even one that was tried again"

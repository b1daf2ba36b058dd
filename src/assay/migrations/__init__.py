"""The history of the schema, applied by `assay db upgrade` (`Store.upgrade`).

To change the schema: edit `assay/store/_tables.py`, add a file to `versions/` whose `down_revision` is the newest there
is, and run `pytest tests/unit/test_migrations.py`, which says what is still missing. A released version file is never
edited. SQLite changes a table by `op.batch_alter_table`; everything runs in one transaction.
"""

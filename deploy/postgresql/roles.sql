-- Roles that assay needs no more than. Run it as the owner of the tables, in assay's database, after each `assay db upgrade`;
-- it may be run again. `assay db upgrade` itself runs as the owner; nothing else changes tables.
--
-- assay_worker: workers, and every command but `assay db upgrade`.
-- assay_reader: `assay exporter`, and commands that only show.
--
-- Give each a way in of its own, such as: CREATE ROLE shop_worker LOGIN PASSWORD '...' IN ROLE assay_worker;

DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'assay_worker') THEN CREATE ROLE assay_worker NOLOGIN; END IF;
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'assay_reader') THEN CREATE ROLE assay_reader NOLOGIN; END IF;
END
$$;

GRANT USAGE ON SCHEMA public TO assay_worker, assay_reader;
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO assay_worker;
GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO assay_worker;
GRANT SELECT ON ALL TABLES IN SCHEMA public TO assay_reader;
-- What an upgrade notes is the owner's alone.
REVOKE INSERT, UPDATE, DELETE ON alembic_version, schema_support FROM assay_worker;

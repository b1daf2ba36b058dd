-- Row-level security: a role in `assay_tenant_reader` sees the rows of its apps, whatever it asks and whatever ASSAY_APPS says.
-- Run it as the owner of the tables after roles.sql, and again after each `assay db upgrade`. Then, for each tenant:
--
--   CREATE ROLE shop_reader LOGIN PASSWORD '...' IN ROLE assay_tenant_reader;
--   INSERT INTO assay_tenants (role_name, app) VALUES ('shop_reader', 'shop');
--
-- Roles in assay_worker and assay_reader see all rows, as before. What is of no app (rubrics, judges, calibrations, canaries) all see.

DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'assay_tenant_reader') THEN
        CREATE ROLE assay_tenant_reader NOLOGIN;
    END IF;
END
$$;

CREATE TABLE IF NOT EXISTS assay_tenants (role_name text NOT NULL, app text NOT NULL, PRIMARY KEY (role_name, app));
REVOKE ALL ON assay_tenants FROM assay_worker, assay_reader;

GRANT USAGE ON SCHEMA public TO assay_tenant_reader;
GRANT SELECT ON ALL TABLES IN SCHEMA public TO assay_tenant_reader;

-- The apps of whoever asks. session_user: it cannot be changed by SET ROLE.
CREATE OR REPLACE FUNCTION assay_is_mine(app text) RETURNS boolean
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp
    AS $$ SELECT EXISTS (SELECT FROM assay_tenants t WHERE t.role_name = session_user AND t.app = $1) $$;

ALTER TABLE assay_tenants ENABLE ROW LEVEL SECURITY;

DO $$
DECLARE
    -- Table, and which of its rows are a tenant's.
    rule record;
BEGIN
    FOR rule IN
        SELECT * FROM (VALUES
            ('records', 'assay_is_mine(app)'),
            ('series', 'assay_is_mine(app)'),
            ('input_bins', 'assay_is_mine(app)'),
            ('dead_letters', 'assay_is_mine(app)'),
            ('change_events', 'app = '''' OR assay_is_mine(app)'),
            ('counters', 'name = ''received'' AND assay_is_mine(label)'),
            -- The tables that they look into have rules of their own.
            ('payloads', 'EXISTS (SELECT FROM records r WHERE r.record_id = payloads.record_id)'),
            ('evaluations', 'EXISTS (SELECT FROM records r WHERE r.record_id = evaluations.record_id)'),
            ('outbox', 'EXISTS (SELECT FROM records r WHERE r.record_id = outbox.record_id)'),
            ('label_requests', 'EXISTS (SELECT FROM records r WHERE r.record_id = label_requests.record_id)'),
            ('rollups', 'EXISTS (SELECT FROM series s WHERE s.series_id = rollups.series_id)'),
            ('totals', 'EXISTS (SELECT FROM series s WHERE s.series_id = totals.series_id)'),
            ('outcome_counts', 'EXISTS (SELECT FROM series s WHERE s.series_id = outcome_counts.series_id)'),
            ('exemplars', 'EXISTS (SELECT FROM series s WHERE s.series_id = exemplars.series_id)'),
            ('signal_rollups', 'EXISTS (SELECT FROM series s WHERE s.series_id = signal_rollups.series_id)'),
            ('cost_rollups', 'EXISTS (SELECT FROM series s WHERE s.series_id = cost_rollups.series_id)'),
            ('defect_counts', 'EXISTS (SELECT FROM series s WHERE s.series_id = defect_counts.series_id)'),
            ('change_streams', 'EXISTS (SELECT FROM series s WHERE s.series_id = change_streams.series_id)')
        ) AS rules (table_name, condition)
    LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', rule.table_name);
        EXECUTE format('DROP POLICY IF EXISTS assay_all ON %I', rule.table_name);
        EXECUTE format('DROP POLICY IF EXISTS assay_own ON %I', rule.table_name);
        EXECUTE format('CREATE POLICY assay_all ON %I TO assay_worker, assay_reader USING (true) WITH CHECK (true)', rule.table_name);
        EXECUTE format('CREATE POLICY assay_own ON %I FOR SELECT TO assay_tenant_reader USING (%s)', rule.table_name, rule.condition);
    END LOOP;
END
$$;

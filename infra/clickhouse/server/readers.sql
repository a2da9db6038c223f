-- A ClickHouse server's readers: run once as an administrator, after the sink has made the tables. Then
-- `trunkline bi-user NAME --tenant TENANT` prints the statement that makes a user. Whose rows a user sees is said by its
-- name: the tenant is what follows the last @. Views run with the reader's rights, so that the policies hold in them.

CREATE ROLE IF NOT EXISTS bi;

CREATE SETTINGS PROFILE IF NOT EXISTS bi SETTINGS readonly = 2, max_execution_time = 30,
    max_memory_usage = 1073741824, max_result_rows = 1000000 TO bi;

CREATE QUOTA IF NOT EXISTS bi FOR INTERVAL 1 minute MAX queries = 600 TO bi;

GRANT SELECT, SHOW ON trunkline.* TO bi;

REVOKE SELECT, SHOW ON trunkline.migrations FROM bi;

REVOKE SELECT, SHOW ON trunkline.sink_batches FROM bi;

REVOKE SELECT, SHOW ON trunkline.sink_offsets FROM bi;

CREATE ROW POLICY IF NOT EXISTS of_tenant ON trunkline.audio_frames FOR SELECT
    USING tenant_id = arrayElement(splitByChar('@', currentUser()), -1) TO bi;

CREATE ROW POLICY IF NOT EXISTS of_tenant ON trunkline.call_audio FOR SELECT
    USING tenant_id = arrayElement(splitByChar('@', currentUser()), -1) TO bi;

CREATE ROW POLICY IF NOT EXISTS of_tenant ON trunkline.controls FOR SELECT
    USING tenant_id = arrayElement(splitByChar('@', currentUser()), -1) TO bi;

CREATE ROW POLICY IF NOT EXISTS of_tenant ON trunkline.dead_letters FOR SELECT
    USING tenant_id = arrayElement(splitByChar('@', currentUser()), -1) TO bi;

CREATE ROW POLICY IF NOT EXISTS of_tenant ON trunkline.deliveries FOR SELECT
    USING tenant_id = arrayElement(splitByChar('@', currentUser()), -1) TO bi;

CREATE ROW POLICY IF NOT EXISTS of_tenant ON trunkline.health FOR SELECT
    USING tenant_id = arrayElement(splitByChar('@', currentUser()), -1) TO bi;

CREATE ROW POLICY IF NOT EXISTS of_tenant ON trunkline.intents FOR SELECT
    USING tenant_id = arrayElement(splitByChar('@', currentUser()), -1) TO bi;

CREATE ROW POLICY IF NOT EXISTS of_tenant ON trunkline.responses FOR SELECT
    USING tenant_id = arrayElement(splitByChar('@', currentUser()), -1) TO bi;

CREATE ROW POLICY IF NOT EXISTS of_tenant ON trunkline.sessions FOR SELECT
    USING tenant_id = arrayElement(splitByChar('@', currentUser()), -1) TO bi;

CREATE ROW POLICY IF NOT EXISTS of_tenant ON trunkline.speech_chunks FOR SELECT
    USING tenant_id = arrayElement(splitByChar('@', currentUser()), -1) TO bi;

CREATE ROW POLICY IF NOT EXISTS of_tenant ON trunkline.transcripts FOR SELECT
    USING tenant_id = arrayElement(splitByChar('@', currentUser()), -1) TO bi;

CREATE ROW POLICY IF NOT EXISTS of_tenant ON trunkline.turn_costs FOR SELECT
    USING tenant_id = arrayElement(splitByChar('@', currentUser()), -1) TO bi;

CREATE ROW POLICY IF NOT EXISTS of_tenant ON trunkline.turn_times FOR SELECT
    USING tenant_id = arrayElement(splitByChar('@', currentUser()), -1) TO bi;

-- A ClickHouse server's readers: run once as an administrator, after the sink has made the tables. Then
-- `trunkline bi-user NAME --tenant TENANT` prints the statement that makes a user. Whose rows a user sees is said by its
-- name: the tenant is what follows the last @. Views run with the reader's rights, so that the policies hold in them.

CREATE ROLE IF NOT EXISTS bi;

CREATE SETTINGS PROFILE IF NOT EXISTS bi SETTINGS readonly = 2, max_execution_time = 30,
    max_memory_usage = 1073741824, max_result_rows = 1000000 TO bi;

CREATE QUOTA IF NOT EXISTS bi FOR INTERVAL 1 minute MAX queries = 600 TO bi;

-- One by one: a materialised view hands on its table's rows without the table's policy, and the sink's memory is its own.
GRANT SELECT, SHOW ON trunkline.accesses TO bi;
GRANT SELECT, SHOW ON trunkline.audio TO bi;
GRANT SELECT, SHOW ON trunkline.audio_frames TO bi;
GRANT SELECT, SHOW ON trunkline.call_audio TO bi;
GRANT SELECT, SHOW ON trunkline.call_summaries TO bi;
GRANT SELECT, SHOW ON trunkline.calls TO bi;
GRANT SELECT, SHOW ON trunkline.checkpoints TO bi;
GRANT SELECT, SHOW ON trunkline.controls TO bi;
GRANT SELECT, SHOW ON trunkline.costs TO bi;
GRANT SELECT, SHOW ON trunkline.customers TO bi;
GRANT SELECT, SHOW ON trunkline.dead_letters TO bi;
GRANT SELECT, SHOW ON trunkline.deliveries TO bi;
GRANT SELECT, SHOW ON trunkline.dialogue TO bi;
GRANT SELECT, SHOW ON trunkline.errors TO bi;
GRANT SELECT, SHOW ON trunkline.health TO bi;
GRANT SELECT, SHOW ON trunkline.heard TO bi;
GRANT SELECT, SHOW ON trunkline.intents TO bi;
GRANT SELECT, SHOW ON trunkline.latencies TO bi;
GRANT SELECT, SHOW ON trunkline.latency_by_minute TO bi;
GRANT SELECT, SHOW ON trunkline.messages TO bi;
GRANT SELECT, SHOW ON trunkline.refusals TO bi;
GRANT SELECT, SHOW ON trunkline.responses TO bi;
GRANT SELECT, SHOW ON trunkline.sessions TO bi;
GRANT SELECT, SHOW ON trunkline.speculation TO bi;
GRANT SELECT, SHOW ON trunkline.speech_chunks TO bi;
GRANT SELECT, SHOW ON trunkline.suggestions TO bi;
GRANT SELECT, SHOW ON trunkline.tool_calls TO bi;
GRANT SELECT, SHOW ON trunkline.transcripts TO bi;
GRANT SELECT, SHOW ON trunkline.turn_costs TO bi;
GRANT SELECT, SHOW ON trunkline.turn_times TO bi;
GRANT SELECT, SHOW ON trunkline.turns TO bi;

CREATE ROW POLICY IF NOT EXISTS of_tenant ON trunkline.accesses FOR SELECT
    USING tenant_id = arrayElement(splitByChar('@', currentUser()), -1) TO bi;

CREATE ROW POLICY IF NOT EXISTS of_tenant ON trunkline.audio_frames FOR SELECT
    USING tenant_id = arrayElement(splitByChar('@', currentUser()), -1) TO bi;

CREATE ROW POLICY IF NOT EXISTS of_tenant ON trunkline.call_audio FOR SELECT
    USING tenant_id = arrayElement(splitByChar('@', currentUser()), -1) TO bi;

CREATE ROW POLICY IF NOT EXISTS of_tenant ON trunkline.checkpoints FOR SELECT
    USING tenant_id = arrayElement(splitByChar('@', currentUser()), -1) TO bi;

CREATE ROW POLICY IF NOT EXISTS of_tenant ON trunkline.controls FOR SELECT
    USING tenant_id = arrayElement(splitByChar('@', currentUser()), -1) TO bi;

CREATE ROW POLICY IF NOT EXISTS of_tenant ON trunkline.customers FOR SELECT
    USING tenant_id = arrayElement(splitByChar('@', currentUser()), -1) TO bi;

CREATE ROW POLICY IF NOT EXISTS of_tenant ON trunkline.dead_letters FOR SELECT
    USING tenant_id = arrayElement(splitByChar('@', currentUser()), -1) TO bi;

CREATE ROW POLICY IF NOT EXISTS of_tenant ON trunkline.deliveries FOR SELECT
    USING tenant_id = arrayElement(splitByChar('@', currentUser()), -1) TO bi;

CREATE ROW POLICY IF NOT EXISTS of_tenant ON trunkline.health FOR SELECT
    USING tenant_id = arrayElement(splitByChar('@', currentUser()), -1) TO bi;

CREATE ROW POLICY IF NOT EXISTS of_tenant ON trunkline.intents FOR SELECT
    USING tenant_id = arrayElement(splitByChar('@', currentUser()), -1) TO bi;

CREATE ROW POLICY IF NOT EXISTS of_tenant ON trunkline.refusals FOR SELECT
    USING tenant_id = arrayElement(splitByChar('@', currentUser()), -1) TO bi;

CREATE ROW POLICY IF NOT EXISTS of_tenant ON trunkline.responses FOR SELECT
    USING tenant_id = arrayElement(splitByChar('@', currentUser()), -1) TO bi;

CREATE ROW POLICY IF NOT EXISTS of_tenant ON trunkline.sessions FOR SELECT
    USING tenant_id = arrayElement(splitByChar('@', currentUser()), -1) TO bi;

CREATE ROW POLICY IF NOT EXISTS of_tenant ON trunkline.speech_chunks FOR SELECT
    USING tenant_id = arrayElement(splitByChar('@', currentUser()), -1) TO bi;

CREATE ROW POLICY IF NOT EXISTS of_tenant ON trunkline.suggestions FOR SELECT
    USING tenant_id = arrayElement(splitByChar('@', currentUser()), -1) TO bi;

CREATE ROW POLICY IF NOT EXISTS of_tenant ON trunkline.transcripts FOR SELECT
    USING tenant_id = arrayElement(splitByChar('@', currentUser()), -1) TO bi;

CREATE ROW POLICY IF NOT EXISTS of_tenant ON trunkline.turn_costs FOR SELECT
    USING tenant_id = arrayElement(splitByChar('@', currentUser()), -1) TO bi;

CREATE ROW POLICY IF NOT EXISTS of_tenant ON trunkline.turn_times FOR SELECT
    USING tenant_id = arrayElement(splitByChar('@', currentUser()), -1) TO bi;

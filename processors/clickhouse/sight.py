"""What a reader of one tenant sees of the embedded ClickHouse.

The engine has no users of its own here. A reader of one tenant asks under the engine's own row filters
(`additional_table_filters`), which hold inside views, joins, subqueries and table functions, too. They do not hold
everywhere: PREWHERE runs before them, EXPLAIN and a few columns of system tables count all rows. Therefore the
engine's own reading of the query is checked as well, as written and with every name resolved, against lists of what is
allowed. To resolve names it runs scalar subqueries, whose errors would tell of rows: then under filters that let none
pass. What it has resolved lacks what it found superfluous, which it runs nonetheless: hence both readings
(docs/adr/0008-analytics-by-tenant.md).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from clickhouse_connect.driver.client import Client

# What a tenant's reader may name of the engine's own tables.
_PLAIN = frozenset(
    f"system.{name}" for name in "one numbers settings functions formats data_type_families time_zones".split()
)
# The same, with the columns that may be named: none counts foreign rows.
_CATALOGUE: Mapping[str, frozenset[str]] = {
    "system.databases": frozenset({"name", "engine", "comment", "uuid"}),
    "system.tables": frozenset(
        """database name uuid engine is_temporary create_table_query engine_full as_select comment partition_key
        sorting_key primary_key sampling_key""".split()
    ),
    "system.columns": frozenset(
        """database table name type position default_kind default_expression comment is_in_partition_key
        is_in_sorting_key is_in_primary_key is_in_sampling_key compression_codec character_octet_length
        numeric_precision numeric_precision_radix numeric_scale datetime_precision""".split()
    ),
}
# Statements other than SELECT, by the name that the parser gives them.
_STATEMENTS = frozenset(
    """SelectWithUnionQuery SelectIntersectExceptQuery SelectQuery ShowTables ShowColumns ShowCreateTableQuery
    ShowCreateViewQuery DescribeQuery ExistsTableQuery ExistsViewQuery ExistsDatabaseQuery""".split()
)
# The row filters hold as they stand only while the engine moves no other condition before them.
_FILTER_SETTINGS = {"optimize_move_to_prewhere": "0", "query_plan_merge_filters": "0"}
_NAME = re.compile(r"^\s*(?:TableIdentifier|Identifier) (\S+)", re.MULTILINE)
_ALL_COLUMNS = re.compile(r"^\s*(?:Qualified)?(?:Asterisk|Columns\w*Matcher)\b", re.MULTILINE)
_RESOLVED = re.compile(r"\btable_name: ([^\s,]+)")
# Columns that every table has, and that tell where rows lie among all rows.
_VIRTUAL = re.compile(r"_(?:part|block|row|sample|disk|table|database)\w*")


@dataclass(frozen=True, slots=True)
class Sight:
    """What one tenant sees: the settings to ask under, `blind` ones to read a query under, and what may be named."""

    settings: Mapping[str, str]
    blind: Mapping[str, str]
    tables: frozenset[str]
    hidden: frozenset[str] = field(repr=False)
    counting: frozenset[str]

    def checked(
        self, client: Client, query: str, bare: str, parsed: str, parameters: Mapping[str, str]
    ) -> Mapping[str, str]:
        """The settings to run the query under; `bare` is its text without literals, `parsed` the engine's tree of it.

        Raises ValueError where it would show more than the tenant's own rows.
        """
        statement = parsed.split(maxsplit=1)[0]
        if statement not in _STATEMENTS:
            raise ValueError("of a tenant: a SELECT, SHOW TABLES, SHOW CREATE, DESCRIBE or EXISTS is expected")
        if re.search(r"\bPREWHERE\b", bare, re.IGNORECASE):
            raise ValueError("of a tenant: PREWHERE is refused; WHERE does the same")
        if statement.startswith("Show") and re.search(r"\bWHERE\b|\(", bare, re.IGNORECASE):
            raise ValueError("of a tenant: SHOW without a condition is expected; LIKE may be used")
        self._check_written(parsed)
        if not statement.startswith("Select"):
            return self.blind if statement == "DescribeQuery" else self.settings
        tree = client.raw_query(
            f"EXPLAIN QUERY TREE {query}", parameters=dict(parameters), settings=dict(self.blind), fmt="TSVRaw"
        )
        for name in _RESOLVED.findall(tree.decode()):
            if name not in self.tables:
                raise ValueError(f"of a tenant: the table {name} is refused")
        return self.settings

    def _check_written(self, parsed: str) -> None:
        names = _NAME.findall(parsed)
        catalogue = any(name in _CATALOGUE for name in names)
        if catalogue and _ALL_COLUMNS.search(parsed):
            raise ValueError("of a tenant: the columns of system tables are expected by name")
        for name in names:
            # The parser cannot tell tables from columns after IN.
            foreign = name.lower().startswith(("system.", "information_schema."))
            if name in self.hidden or (foreign and not self._is_known(name)):
                raise ValueError(f"of a tenant: {name} is refused")
            column = name.rpartition(".")[2]
            if _VIRTUAL.fullmatch(column) or (catalogue and column in self.counting):
                raise ValueError(f"of a tenant: the column {column} is refused")

    def _is_known(self, name: str) -> bool:
        return name in self.tables or name.rpartition(".")[0] in self.tables


def sight(client: Client, database: str, tenant: str) -> Sight:
    """What the tenant sees of the tables that are there now: rows of its own, and of other tables none."""
    tables = client.query("SELECT database, name, engine FROM system.tables").result_rows
    owned = {
        name
        for (name,) in client.query(
            "SELECT table FROM system.columns WHERE database = {database:String} AND name = 'tenant_id'",
            parameters={"database": database},
        ).result_rows
    }
    filters, hidden, shown = {}, set(), []
    for where, name, engine in tables:
        full = f"{where}.{name}"
        if where == database and name in owned and engine != "MaterializedView":
            shown.append(name)
            if engine != "View":
                filters[full] = f"tenant_id = {_literal(tenant)}"
        elif full not in _PLAIN and full not in _CATALOGUE:
            filters[full] = "0"
            hidden |= {full, name} if where == database else {full}
    ours = f"database = {_literal(database)}"
    listed = ", ".join(_literal(name) for name in shown)
    filters["system.databases"] = f"name = {_literal(database)}"
    filters["system.tables"] = f"{ours} AND name IN ({listed})"
    filters["system.columns"] = f"{ours} AND table IN ({listed})"
    allowed = {f"{database}.{name}" for name in shown} | _PLAIN | set(_CATALOGUE)
    return Sight(
        _filtering(filters),
        _filtering(dict.fromkeys(filters, "0")),
        frozenset(allowed),
        frozenset(hidden),
        _counting(client),
    )


def _counting(client: Client) -> frozenset[str]:
    """The columns of the engine's catalogue that may not be named."""
    rows = client.query("SELECT concat(database, '.', table), name FROM system.columns WHERE database = 'system'")
    allowed = frozenset().union(*_CATALOGUE.values())
    return frozenset(name for table, name in rows.result_rows if table in _CATALOGUE and name not in allowed)


def _filtering(filters: Mapping[str, str]) -> Mapping[str, str]:
    written = ", ".join(f"{_literal(name)}: {_literal(rule)}" for name, rule in filters.items())
    return {"additional_table_filters": f"{{{written}}}", **_FILTER_SETTINGS}


def _literal(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"

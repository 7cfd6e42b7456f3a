"""What of SQLAlchemy's suite applies: to PostgreSQL with psycopg, and of that to a session.

`docs/sqlalchemy.md` lists `EXCLUDED` with the same reasons.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from sqlalchemy.testing import exclusions
from sqlalchemy.testing.requirements import SuiteRequirements

EXCLUDED: Final = {
    "two_phase_transactions": "a session commits by COMMIT, and finds out its outcome; PREPARE TRANSACTION is refused",
    "temporary_tables": "a temporary table belongs to one connection, and each transaction may have another one",
    "temp_table_names": "as temporary_tables",
    "temp_table_reflection": "as temporary_tables",
    "temp_table_reflect_indexes": "as temporary_tables",
    "temp_table_comment_reflection": "as temporary_tables",
    "has_temp_table": "as temporary_tables",
    "temporary_views": "as temporary_tables",
    "create_temp_table_as": "as temporary_tables",
    "default_schema_name_switch": "SET search_path outlives its transaction; the schema is the tenant's",
}
"""Requirements that psycopg's dialect fulfils and this one does not, each with its reason."""

DESELECTED: Final = {
    "JSONTest::test_round_trip_custom_json": (
        "an engine's `json_deserializer` has no effect: psycopg reads JSON, by the loaders of its connections"
    ),
}
"""Tests that are left out alone."""

_OPEN: Final = """
unique_constraints_reflect_as_index create_table_as table_ddl_if_exists index_ddl_if_exists uuid_data_type
table_value_constructor deferrable_fks boolean_col_expressions nullsordering intersect except_
window_functions window_range window_range_numeric window_range_non_numeric ctes ctes_with_update_delete
ctes_with_values ctes_on_dml tuple_in views cross_schema_fk_reflection foreign_key_constraint_name_reflection
reflects_pk_names reflect_tables_no_columns comment_reflection comment_reflection_full_unicode
constraint_comment_reflection column_collation_reflection schema_create_delete
foreign_key_constraint_option_reflection_ondelete fk_constraint_option_reflection_ondelete_restrict
foreign_key_constraint_option_reflection_onupdate fk_constraint_option_reflection_onupdate_restrict
create_or_replace_view index_reflects_included_columns indexes_with_expressions
reflect_indexes_with_expressions inline_check_constraint_reflection check_constraint_reflection unicode_ddl
datetime_interval datetime_timezone time_timezone timestamp_microseconds datetime_historic date_historic
autocommit skip_autocommit_rollback isolation_level array_type json_type precision_numerics_enotation_small
precision_numerics_many_significant_digits server_defaults expression_server_defaults aggregate_order_by
precision_numerics_retains_significant_digits infinity_floats float_or_double_precision_behaves_generically
savepoints update_from delete_from mod_operator_as_percent_sign order_by_label_with_expression async_dialect
computed_columns computed_columns_stored computed_columns_virtual computed_columns_reflect_persisted
supports_distinct_on identity_columns identity_columns_standard regexp_match regexp_replace fetch_first
fetch_ties fetch_no_order_by fetch_expression reflect_table_options materialized_views supports_bitwise_or
supports_bitwise_and supports_bitwise_not supports_bitwise_xor supports_bitwise_shift
"""
"""Closed unless a dialect opens them: PostgreSQL has all of these."""


def _always(rule: Callable[[], Any]) -> property:
    return property(lambda _: rule())


class Requirements(SuiteRequirements):
    """PostgreSQL through a session."""

    def get_isolation_levels(self, config: Any) -> dict[str, Any]:
        """What the dialect says of itself."""
        levels = ("AUTOCOMMIT", "READ COMMITTED", "READ UNCOMMITTED", "REPEATABLE READ", "SERIALIZABLE")
        return {"default": "READ COMMITTED", "supported": list(levels)}


for _name in _OPEN.split():
    setattr(Requirements, _name, _always(exclusions.open))
for _name in EXCLUDED:
    setattr(Requirements, _name, _always(exclusions.closed))

"""Every use of Dagster that is not public, in one place.

`pyproject.toml` pins Dagster's minor version because of this package, and
`mlops_assets_tests/dagster_internals/` fails when one of the things used here moves.
"""

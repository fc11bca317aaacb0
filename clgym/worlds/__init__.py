"""Embedded worlds: small deterministic data sources that ship with the package."""

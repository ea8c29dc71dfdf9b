"""Kedro's settings: its defaults."""

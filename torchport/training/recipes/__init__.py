"""Recipes: one TOML file per experiment, its keys the fields of `Settings`."""

"""Entrypoints: flags in, one call, files and a table out."""

"""Shared by all rooms: errors, commands, files, photos, provenance. Needs no torch and imports no other room."""

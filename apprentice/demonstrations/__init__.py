"""Demonstrations: the file format, recording, validation, and the loader."""

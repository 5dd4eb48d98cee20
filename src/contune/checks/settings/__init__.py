"""Settings a method is checked in: one file each, found by walking this folder."""

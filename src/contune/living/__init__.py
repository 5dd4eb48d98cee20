"""A living model: a folder that goes from version to version as new data comes in."""
